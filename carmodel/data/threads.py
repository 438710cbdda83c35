"""How many threads work on photos, and how many each call of OpenCV may use."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""File with the CPU limit of a container: microseconds of CPU time per period, or "max", and the period (cgroup v2)."""


def cores(quota: Path = QUOTA) -> int:
    """Return the number of cores that this process may use: its CPU affinity, and the CPU limit of its container.

    See https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    time, period = quota.read_text().split() if quota.is_file() else ("max", "1")
    return available if time == "max" else min(available, math.ceil(int(time) / int(period)))


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Run OpenCV on the calling thread within the block, and restore its number of threads afterwards.

    The number is one per process. Blocks may nest. Blocks of several threads may not overlap.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
