"""What tests on a Spark cluster need: Java and PySpark, and processes to wait for and to kill."""

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec

import psutil
import pytest

NEEDS_SPARK = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("java") is None, reason="Java is not installed: apt-get install openjdk-17-jre-headless"
    ),
    pytest.mark.skipif(find_spec("pyspark") is None, reason="PySpark is not installed (Java is): make spark"),
]


def needs_spark(test: Callable[..., None]) -> Callable[..., None]:
    """Mark one test as `NEEDS_SPARK` marks a module."""
    for mark in NEEDS_SPARK:
        test = mark(test)
    return test


def wait_until(happened: Callable[[], bool], what: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"{what}: nothing for {seconds} s"
        time.sleep(0.1)


def executors(ancestor: psutil.Process) -> list[psutil.Process]:
    """The running executors that a process has started, directly or not."""
    found = []
    for child in ancestor.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # what has just ended
            if any("ExecutorBackend" in word for word in child.cmdline()):
                found.append(child)
    return found
