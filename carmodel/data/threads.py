"""How many threads work on photos, and how many each call of OpenCV may use."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import cv2


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
