# make demo: install and run the whole pipeline on the built-in sample. make test: install and run all tests. `make help` lists all.
PYTHON ?= python3.11
UV_VERSION := 0.13.9
BIN := .venv/bin
# The virtual environment's commands first, as an activated shell has them.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export TF_CPP_MIN_LOG_LEVEL := 3

# Runs of these targets are found again by a person's own commands after the `export` of README.md.
demo serve pretrained load: export MLFLOW_EXPERIMENT_NAME := carmodel
demo serve pretrained load bench: export MLFLOW_LOGGING_LEVEL := WARNING
demo serve pretrained load bench: export MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR := false

PORT ?= 5001
PAGE_PORT ?= 5002
PAGE_HOST ?= 127.0.0.1
# Where PYTHONDONTWRITEBYTECODE is set, as in many images, Python would otherwise compile each package at each import.
export UV_COMPILE_BYTECODE := 1

.PHONY: help install demo serve pretrained test browser test-hosts test-engine test-recipes bench fuzz load lint horovod gpu spark azure sweep lock clean
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

.venv/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	touch $@

.venv/runtime: .venv/uv pyproject.toml requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --constraint requirements.lock -r pyproject.toml
	touch $@

# HOROVOD_GPU_OPERATIONS=NCCL make horovod: on a machine with NVIDIA GPUs.
.venv/horovod: .venv/runtime backends/install_horovod.sh
	backends/install_horovod.sh $(BIN)/python .
	touch $@

# The other extras of pyproject.toml: dev, spark, azure, sweep, gpu.
.venv/%: .venv/runtime
	$(BIN)/uv pip install --python $(BIN)/python --constraint requirements.lock -r pyproject.toml --extra $*
	touch $@

install: .venv/runtime  ## virtual environment with the locked dependencies

demo: .venv/runtime  ## run the whole pipeline on the built-in synthetic sample
	mlflow run . --env-manager local

serve: .venv/runtime  ## the endpoint, and a page to drop photos on: make serve MODEL=models:/NAME@ALIAS PORT=5001 PAGE_PORT=5002
	@python -m carmodel.serving.serve --model "$(MODEL)" --port $(PORT) --page-port $(PAGE_PORT) --page-host $(PAGE_HOST)

pretrained: .venv/runtime  ## package the pretrained network of this repository: models:/carmodel-pretrained@champion
	python -m carmodel.serving.pretrained

test: .venv/dev .venv/horovod .venv/spark .venv/azure .venv/sweep browser  ## install everything and run all tests
	python -m pytest -n 2 --durations=10

quick: .venv/dev  ## run the tests that take at most some seconds
	python -m pytest -n 2 -m "not slow and not hosts and not engine and not recipes"

# The system's Chromium, by apt where that is possible, or else the one that Playwright downloads.
browser: .venv/dev  ## install the browser that the tests of the page need
	@command -v chromium > /dev/null \
	|| { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium > /dev/null; } \
	|| playwright install chromium \
	|| echo "no Chromium could be installed: the tests of the page will be skipped"
	@echo "browser of the tests: $$(command -v chromium || echo 'the Chromium of Playwright')"

test-hosts: .venv/dev .venv/horovod  ## training by ssh on two loopback addresses; needs an sshd: apt-get install openssh-server
	python -m pytest -m hosts

test-engine: .venv/dev  ## the docker target on a Docker engine: builds images, 10 minutes
	python -m pytest -m engine -s tests/cloud

test-recipes: .venv/dev  ## the GPU recipes with few small pictures on the CPU, killed and resumed
	python -m pytest -m recipes

lint: .venv/dev .venv/azure .venv/spark .venv/sweep  ## ruff, formatting, types
	ruff check .
	ruff format --check .
	mypy

# What the benchmark compares this project with, such as OpenVINO, in an environment of its own.
.venv-bench/peers: .venv/uv benchmarks/peers.txt
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) .venv-bench
	$(BIN)/uv pip install --quiet --python .venv-bench/bin/python -r benchmarks/peers.txt
	touch $@

# BENCH_DATA=/data/stanford_cars make bench: with real photos; without, with drawn ones. ONLY=loader: one part.
bench: .venv/runtime .venv/horovod .venv/spark .venv-bench/peers  ## speed beside other ways, to docs/benchmarks (up to an hour, wants an idle machine)
	python -m benchmarks --data_uri "$(BENCH_DATA)" --only "$(ONLY)" --out docs/benchmarks

fuzz: .venv/dev  ## 10,000 mutated requests to a live server
	python -m tests.fuzz_endpoint

load: .venv/runtime  ## 16 clients on the newest candidate's endpoint for a minute, and through its restart for another
	python -m benchmarks.load

horovod: .venv/horovod  ## build Horovod against the installed TensorFlow

gpu: .venv/gpu  ## install CUDA's libraries for TensorFlow, on Linux with an NVIDIA driver

spark: .venv/spark  ## install PySpark: preprocess, augment or train on a Spark cluster

azure: .venv/azure  ## install the Azure SDK: deployments, remote runs, data in ADLS

sweep: .venv/sweep  ## install Optuna, for the entry point sweep

lock: .venv/uv  ## resolve requirements.lock again from pyproject.toml
	$(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --all-extras --no-annotate --no-header pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --python-version 3.11 --constraint requirements.lock --no-annotate --no-header benchmarks/peers.in -o benchmarks/peers.txt

clean:  ## remove the environments (runs and models stay)
	rm -rf .venv .venv-bench .pytest_cache .mypy_cache .ruff_cache .hypothesis
