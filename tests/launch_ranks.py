"""What the ranks of tests/test_launch.py do; none of it needs TensorFlow."""

import os
import signal
import time
from pathlib import Path


def begin(folder: str) -> int:
    """Leave this process's id in a file, and return the rank."""
    rank = int(os.environ["HOROVOD_RANK"])
    (partial := Path(folder) / f"partial-{rank}").write_text(str(os.getpid()))
    partial.rename(Path(folder) / f"pid-{rank}")
    print(f"rank {rank} has begun", flush=True)
    return rank


def die(fault: str, folder: str) -> None:
    """Rank 1 dies when rank 0 has begun, which would go on for long."""
    if begin(folder) == 0:
        time.sleep(300)
    while not (Path(folder) / "pid-0").exists():
        time.sleep(0.1)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError("row 17 is bad")


def wait(folder: str) -> None:
    """Go on until somebody ends the process."""
    begin(folder)
    time.sleep(300)


def report(folder: str) -> None:
    """Leave the place of the rank, and a variable that was sent along."""
    rank = begin(folder)
    names = ("HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE", "HOROVOD_HOSTNAME", "GREETING")
    (Path(folder) / f"place-{rank}").write_text(" ".join(os.environ[name] for name in names))


def machines(folder: str) -> None:
    """Join, and leave which rank of this machine did the work of the machine."""
    from carmodel.training.distributed import Horovod

    ranks = Horovod()
    (Path(folder) / f"did-{ranks.rank}").write_text(str(ranks.once_per_machine(lambda: ranks.rank)))
