"""Limit OpenCV to one thread while other threads process whole photos."""

from collections.abc import Iterator
from contextlib import contextmanager

import cv2


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
