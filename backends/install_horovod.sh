#!/usr/bin/env bash
# Install the project's packages and Horovod: `install_horovod.sh [PYTHON] [FOLDER]`.
#
# FOLDER holds pyproject.toml and requirements.lock. As the init script of a Databricks cluster, it runs without arguments: it uses
# the cluster's Python, and the workspace directory that the two files and this script were copied to. It does not install
# PySpark, because a cluster has its own Spark and Java.
# HOROVOD_GPU_OPERATIONS=NCCL (in the cluster's spark_env_vars, or as a build argument of the image) builds for NVIDIA GPUs.
set -euo pipefail
python=${1:-/databricks/python/bin/python}
folder=${2:-/Workspace/Shared/carmodel}

"$python" -m pip install --quiet --disable-pip-version-check uv==0.13.9
install() { "$python" -m uv pip install --python "$python" --constraint "$folder/requirements.lock" "$@"; }

install -r "$folder/pyproject.toml" azure-storage-file-datalake  # reads photos from abfss://
install cmake wheel packaging setuptools
if [ "${HOROVOD_GPU_OPERATIONS:-}" = NCCL ]; then
  # CUDA's libraries in the versions that TensorFlow needs. CUDA's compiler is already on the machine.
  install "tensorflow[and-cuda]"
  nccl=$("$python" -c 'import nvidia.nccl; print(list(nvidia.nccl.__path__)[0])')
  ln -sf libnccl.so.2 "$nccl/lib/libnccl.so"
  export HOROVOD_NCCL_HOME=$nccl
fi
# Horovod compiles against the installed TensorFlow, hence without build isolation. The runtime's own Horovod is replaced, because
# it was compiled against another version.
if ! "$python" -c 'import horovod.tensorflow' 2> /dev/null; then
  "$python" -m uv pip uninstall --quiet --python "$python" horovod || true
  PATH="$(dirname "$python"):$PATH" HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 HOROVOD_WITHOUT_PYTORCH=1 \
    HOROVOD_WITHOUT_MXNET=1 MAKEFLAGS=-j$(nproc) \
    "$python" -m uv pip install --python "$python" --no-build-isolation --constraint "$folder/requirements.lock" horovod
fi
