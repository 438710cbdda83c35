#!/usr/bin/env bash
# Install the project's packages and Horovod into a Python that lacks them: `install_horovod.sh [PYTHON] [FOLDER]`.
#
# As an init script of a Databricks cluster it takes no arguments: the cluster's Python, and the folder of the workspace that
# this script, pyproject.toml and requirements.lock were put into. Spark and Java are the cluster's own: PySpark is not installed.
# HOROVOD_GPU_OPERATIONS=NCCL (spark_env_vars of the cluster, or a build argument of the image) builds for NVIDIA GPUs.
set -euo pipefail
python=${1:-/databricks/python/bin/python}
folder=${2:-/Workspace/Shared/carmodel}

"$python" -m pip install --quiet --disable-pip-version-check uv==0.13.9
install() { "$python" -m uv pip install --python "$python" --constraint "$folder/requirements.lock" "$@"; }

install -r "$folder/pyproject.toml" azure-storage-file-datalake  # the last for photos by abfss://
install cmake wheel packaging setuptools
if [ "${HOROVOD_GPU_OPERATIONS:-}" = NCCL ]; then
  # CUDA's libraries in TensorFlow's own versions; CUDA's compiler is the machine's.
  install "tensorflow[and-cuda]"
  nccl=$("$python" -c 'import nvidia.nccl; print(list(nvidia.nccl.__path__)[0])')
  ln -sf libnccl.so.2 "$nccl/lib/libnccl.so"
  export HOROVOD_NCCL_HOME=$nccl
fi
# Horovod is source only: it compiles against the TensorFlow that is installed, hence without build isolation. One that was there
# is compiled against another.
if ! "$python" -c 'import horovod.tensorflow' 2> /dev/null; then
  "$python" -m uv pip uninstall --quiet --python "$python" horovod || true
  PATH="$(dirname "$python"):$PATH" HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 HOROVOD_WITHOUT_PYTORCH=1 \
    HOROVOD_WITHOUT_MXNET=1 MAKEFLAGS=-j$(nproc) \
    "$python" -m uv pip install --python "$python" --no-build-isolation --constraint "$folder/requirements.lock" horovod
fi
