"""The parts of the benchmark, and how one of them is measured."""

import time
from importlib import import_module

from benchmarks.given import Given
from benchmarks.report import Part

PARTS = ("preprocess", "spark", "loader", "inference", "training", "augmentation", "startup", "ranks")
"""The parts, in the order in which they run. Each is a module with `TITLE` and `measure`."""


def measure(name: str, given: Given) -> Part:
    """Measure one part in this process."""
    import carmodel.quiet_tensorflow  # noqa: F401

    # isort: split
    from benchmarks.hardware import describe
    from benchmarks.photos import describe_data

    part = import_module(f"benchmarks.{name}")
    began = time.monotonic()
    tables = part.measure(given)
    header = describe(describe_data(given))
    header["duration"] = f"{time.monotonic() - began:.0f} s"
    if given.quick:
        header["quick"] = "few photos and one round, so the figures mean nothing"
    return Part(name, part.TITLE, header, tables)
