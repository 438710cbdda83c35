"""Describe the machine and the versions of a measurement."""

import os
import platform
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version

from carmodel.tracking.digests import ROOT
from carmodel.training.precision import cpu_fields

PACKAGES = ("tensorflow", "keras", "mlflow", "numpy", "opencv-python-headless", "h5py", "pyspark", "horovod")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
"""Instruction sets that decide how fast a network runs."""


def describe(data: str) -> dict[str, str]:
    """Return the header of a report: processor, cores, instruction sets, memory, commit, date, versions, and the data used."""
    processor = cpu_fields()
    flags = processor.get("flags", "").split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": processor.get("model name", platform.machine()),
        "cores": str(len(os.sched_getaffinity(0))),
        "instruction sets": ", ".join(flag for flag in FLAGS if flag in flags) or "none of " + ", ".join(FLAGS),
        "memory": f"{memory:.0f} GiB",
        "commit": _commit(),
        "date": date.today().isoformat(),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {found}" for name in PACKAGES if (found := _installed(name))),
        "data": data,
    }


def _commit() -> str:
    """Return the commit of the code, and whether the code has changed since then. Results and documents do not count."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "benchmarks", "carmodel", "steps", "tests")
    return (git("rev-parse", "--short=7", "HEAD") or "unknown") + (" with changes" if changed else "")


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
