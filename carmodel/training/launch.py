"""Start the ranks of a training on this machine or on others, and end them together."""

import json
import os
import queue
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from carmodel.data.threads import cores
from carmodel.errors import InputError
from carmodel.training.rendezvous import rendezvous
from carmodel.training.worker import address_towards

# Seconds between the request to end and SIGKILL.
GRACE = 5

# Number of lines from the output of a dead rank in its error message.
LAST_LINES = 30

# A host that vanishes from the network is noticed after 30 seconds.
SSH = shlex.split("ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=10 -o ServerAliveCountMax=3")

# Environment variables with these prefixes are passed to other machines: credentials, settings of TensorFlow and Horovod.
FORWARDED = ("MLFLOW_", "DATABRICKS_", "AWS_", "AZURE_", "GOOGLE_", "TF_", "HOROVOD_", "NCCL_")

# Seconds after which a rank gives up on a silent one. A minute is longer than slow imports take.
GLOO_TIMEOUT = "60"


class RankError(RuntimeError):
    """A rank died. The message names it and ends with the last lines of its output."""


@dataclass(frozen=True)
class Host:
    """A machine.

    Attributes:
        name: as ssh knows it.
        slots: number of ranks that it can run.
    """

    name: str
    slots: int

    @property
    def local(self) -> bool:
        """Whether it is this machine, which needs no ssh."""
        return self.name in ("localhost", "127.0.0.1", socket.gethostname())


def check(processes: int, hosts: str) -> list[Host]:
    """Return the machines for `processes` ranks, each with the number of its ranks, after checking that all are usable.

    Args:
        processes: number of ranks. 0 uses all slots of `hosts`, or one process.
        hosts: ``HOST:SLOTS,HOST:SLOTS``. Empty for this machine, with one slot per GPU or, without GPUs, per core.

    Raises:
        InputError: Horovod is missing, there are more processes than slots, or a host cannot be used by ssh.
    """
    require_horovod()
    machines = [
        Host(name, int(slots)) for name, _, slots in (item.rpartition(":") for item in hosts.split(",") if item)
    ]
    machines = machines or [Host("localhost", local_slots())]
    available = sum(host.slots for host in machines)
    remaining = processes or (available if hosts else 1)
    if remaining > available:
        where, rule = (f"hosts={hosts}", "") if hosts else ("this machine", " (one per GPU or, without GPUs, per core)")
        raise InputError(
            f"processes={remaining}, but {where} has {available} slots{rule}; "
            f"to run more processes on this machine, give hosts=localhost:{remaining}"
        )
    used = []
    for host in machines:
        used.append(Host(host.name, min(host.slots, remaining)))
        remaining -= used[-1].slots
    used = [host for host in used if host.slots]
    remote = [host.name for host in used if not host.local]
    if remote and shutil.which("ssh") is None:
        raise InputError(f"hosts={hosts} needs ssh, which is not installed (apt-get install openssh-client)")
    with ThreadPoolExecutor(max(1, len(remote))) as pool:
        problems = [problem for problem in pool.map(_probe, remote) if problem]
    if problems:
        raise InputError("; ".join(problems))
    return used


def require_horovod() -> None:
    """Check that Horovod is installed.

    Raises:
        InputError: it is not. Names the command that installs it.
    """
    if find_spec("horovod") is None:
        raise InputError("training on several processes needs Horovod, which is not installed: make horovod")


def local_slots() -> int:
    """Return the number of GPUs or, without GPUs, of cores that this process may use."""
    import tensorflow as tf

    # Listing logical devices would allocate the memory of the GPUs.
    return len(tf.config.list_physical_devices("GPU")) or cores()


def run(
    function: str,
    arguments: Sequence[str],
    hosts: Sequence[Host],
    logs: Path,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Call ``function(*arguments)`` as the ranks of one Horovod job, in a process for each slot of `hosts`, and wait.

    The output of the ranks is printed line by line as ``[rank] line``, and saved in ``logs/rank-N.log``. When a rank
    dies, the others end within seconds. When this process dies, even by SIGKILL, all ranks end.

    Args:
        function: ``module:name``, importable in this project's directory.
        arguments: arguments that JSON can represent.
        hosts: from `check`. Other hosts have the project in the same directory, with the same Python.
        logs: directory for the output, which is created.
        environment: further variables for the ranks. Other machines also receive `forwarded`.

    Raises:
        RankError: a rank died. Names the first one and ends with the last lines of its output.
    """
    remote = [_address(host.name) for host in hosts if not host.local]
    common = forwarded() | dict(environment or {})
    common |= {
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_TIMEOUT_SECONDS": os.environ.get("HOROVOD_GLOO_TIMEOUT_SECONDS", GLOO_TIMEOUT),
        "PYTHONUNBUFFERED": "1",
    }
    logs.mkdir(parents=True, exist_ok=True)
    ranks: list[_Rank] = []
    ended: queue.Queue[_Rank] = queue.Queue()
    with rendezvous([(host.name, host.slots) for host in hosts]) as (slots, port):
        try:
            for slot in slots:
                host = next(host for host in hosts if host.name == slot.host)
                # Ranks on this machine must use the network interface that the other machines reach.
                own = remote[0] if remote else host.name
                address = address_towards(own if host.local else _address(host.name))
                server = {"HOROVOD_GLOO_RENDEZVOUS_ADDR": address, "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port)}
                task = {
                    "environment": common | server | slot.environment,
                    "function": function,
                    "arguments": list(arguments),
                }
                ranks.append(_Rank(slot.rank, host, json.dumps(task), logs, ended))
            failed = _wait(len(ranks), ended)
        finally:
            _end(ranks)
    if failed:
        raise RankError(
            describe(failed.number, len(ranks), f"on {failed.host.name}, ", failed.process.returncode, failed.last)
        )


@dataclass
class _Rank:
    """A running rank, and the thread that prints and saves its output."""

    number: int
    host: Host
    task: str
    logs: Path
    ended: "queue.Queue[_Rank]"
    last: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))

    def __post_init__(self) -> None:
        command: Sequence[str] = (sys.executable, "-m", "carmodel.training.worker")
        if not self.host.local:
            command = (*SSH, self.host.name, f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(command)}")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Only the launcher receives Ctrl-C, and it ends the ranks.
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        assert self.process.stdin is not None
        # The pipe is broken if the rank has died already, which `_wait` reports.
        with suppress(BrokenPipeError):
            self.process.stdin.write(f"{self.task}\n")
            self.process.stdin.flush()

    def _read(self) -> None:
        assert self.process.stdout is not None
        try:
            with (self.logs / f"rank-{self.number}.log").open("w") as log:
                for line in self.process.stdout:
                    self.last.append(line)
                    with suppress(OSError):  # a rank must not wait because the terminal is closed or the disk is full
                        print(f"[{self.number}] {line}", end="", flush=True)
                        log.write(line)
                        log.flush()
        finally:
            self.process.wait()
            self.ended.put(self)


def _wait(running: int, ended: "queue.Queue[_Rank]") -> _Rank | None:
    """Wait until all ranks have succeeded, or one has failed. Return the one that failed."""
    for _ in range(running):
        if (rank := ended.get()).process.returncode != 0:
            return rank
    return None


def _end(ranks: Sequence[_Rank]) -> None:
    """End the ranks that still run, by closing their input and, after `GRACE` seconds, by SIGKILL."""
    for rank in ranks:
        assert rank.process.stdin is not None
        with suppress(BrokenPipeError):
            rank.process.stdin.close()
    deadline = time.monotonic() + GRACE
    for rank in ranks:
        try:
            rank.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.process.kill()
            rank.process.wait()
        rank.reader.join(GRACE)


def forwarded() -> dict[str, str]:
    """Return the environment variables of this process that other machines need."""
    return {name: value for name, value in os.environ.items() if name.startswith(FORWARDED)}


def describe(rank: int, ranks: int, where: str, code: int, last: Iterable[str]) -> str:
    """Return a message that says which rank died, how, and what it printed last.

    Args:
        rank: number of the rank.
        ranks: number of ranks.
        where: text that names the machine, or empty.
        code: exit code of the process that ran the rank, or of ssh.
        last: last lines of its output.
    """
    # ssh, shells and Horovod report a signal as 128 + its number.
    number = -code if code < 0 else code - 128
    named = number in set(signal.Signals)
    if code == 255 and where:
        how = "ended by a signal, or the ssh connection broke"
    else:
        how = f"ended by {signal.Signals(number).name}" if named else f"failed with exit code {code}"
    return f"rank {rank} of {ranks}, {where}{how}; its last lines:\n{''.join(last) or '(none)'}"


def _address(host: str) -> str:
    """Return the name or address that ssh uses for `host`, which may be an alias in the configuration of ssh."""
    text = subprocess.run(["ssh", "-G", host], capture_output=True, text=True, check=True).stdout
    return next(line.partition(" ")[2] for line in text.splitlines() if line.startswith("hostname "))


def _probe(host: str) -> str:
    """Return why a host cannot be used, or an empty text if it has the project, Python and Horovod at the same paths."""
    test = [sys.executable, "-c", "import carmodel.training.launch as launch; launch.require_horovod()"]
    command = [*SSH, host, f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(test)}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
    return (
        f"host {host} cannot be used: {reason}. Check that `ssh {host}` works without a password, and that the host has "
        f"{Path.cwd()} and {sys.executable}"
    )
