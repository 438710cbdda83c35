"""One GPU for each of several trainings that run on this machine at the same time."""

import fcntl
import os
import tempfile
import time
from pathlib import Path
from typing import IO

ONE_GPU = "CARMODEL_ONE_GPU"
"""Environment variable of trainings that share the GPUs of a machine."""

DRIVER = Path("/proc/driver/nvidia/gpus")
"""Directory in which NVIDIA's driver lists the GPUs."""

POLL = 1.0
"""Seconds between two attempts to take a GPU."""

_taken: list[IO[str]] = []  # closing a file, or the end of this process, releases its lock


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. Empty on a machine without any."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in chosen.split(",") if gpu not in ("", "-1")]
    return [str(number) for number in range(len(list(DRIVER.glob("*"))))]


def take_gpu(folder: Path | None = None) -> str | None:
    """Wait for a GPU that no other training has taken, and make it the only one that this process sees.

    Call it before TensorFlow is imported. The GPU is free again when this process ends.

    Args:
        folder: directory of the lock files (default: the directory of temporary files).

    Returns:
        the GPU, or None on a machine without any.
    """
    gpus, said = visible_gpus(), False
    while gpus:
        for gpu in gpus:
            file = (folder or Path(tempfile.gettempdir())) / f"carmodel-{os.getuid()}-gpu-{gpu}.lock"
            stream = file.open("w")
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.close()
                continue
            _taken.append(stream)
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            return gpu
        if not said:
            print(f"train: waiting for one of {len(gpus)} GPUs; other trainings use them", flush=True)
            said = True
        time.sleep(POLL)
    return None
