"""Start the ranks of a training, on this machine or others, and end them together."""

import json
import os
import queue
import shlex
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

from carmodel.errors import InputError
from carmodel.training.worker import address_towards

# Seconds that a rank has to end when told to.
GRACE = 5

# Lines of a dead rank's output that its error shows.
LAST_LINES = 30

# A host that vanishes from the network is noticed after 30 seconds.
SSH = shlex.split("ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=10 -o ServerAliveCountMax=3")

# Variables with these beginnings go along to other machines: credentials, settings of TensorFlow and Horovod.
FORWARDED = ("MLFLOW_", "DATABRICKS_", "AWS_", "AZURE_", "GOOGLE_", "TF_", "HOROVOD_", "NCCL_")

# Seconds after which a rank gives up on a silent one; a minute lets slow imports pass.
GLOO_TIMEOUT = "60"


class RankError(RuntimeError):
    """A rank died; the message names it and ends with the last lines it printed."""


@dataclass(frozen=True)
class Host:
    """A machine and how many ranks it has room for."""

    name: str
    slots: int

    @property
    def local(self) -> bool:
        """Whether it is this machine, reached without ssh."""
        return self.name in ("localhost", "127.0.0.1", socket.gethostname())


def check(processes: int, hosts: str) -> list[Host]:
    """The machines for `processes` ranks, each with the number of ranks it gets; all are known to be usable.

    Args:
        processes: number of ranks; 0: all slots of `hosts`, or one.
        hosts: ``host:slots,host:slots``. Empty: this machine, a slot for each GPU or, where it has none, each core.

    Raises:
        InputError: Horovod is missing, more processes than slots, or a host that can't be reached or used by ssh.
    """
    require_horovod()
    machines = [
        Host(name, int(slots)) for name, _, slots in (item.rpartition(":") for item in hosts.split(",") if item)
    ]
    machines = machines or [Host("localhost", local_slots())]
    available = sum(host.slots for host in machines)
    wanted = processes or (available if hosts else 1)
    if wanted > available:
        where, rule = (f"hosts={hosts}", "") if hosts else ("this machine", " (one a GPU or, without GPUs, one a core)")
        raise InputError(
            f"processes={wanted}, but {where} has {available} slots{rule}; "
            f"to run more here than it has slots, say so: hosts=localhost:{wanted}"
        )
    used = []
    for host in machines:
        used.append(Host(host.name, min(host.slots, wanted)))
        wanted -= used[-1].slots
    used = [host for host in used if host.slots]
    remote = [host.name for host in used if not host.local]
    with ThreadPoolExecutor(max(1, len(remote))) as pool:
        problems = [problem for problem in pool.map(_probe, remote) if problem]
    if problems:
        raise InputError("; ".join(problems))
    return used


def require_horovod() -> None:
    """Raise an InputError that says how to install it where Horovod is missing."""
    if find_spec("horovod") is None:
        raise InputError("training on several processes needs Horovod, which is not installed: make horovod")


def local_slots() -> int:
    """One a GPU, or one a core that this process may use."""
    import tensorflow as tf

    # Physical devices are only counted; logical ones would take the GPUs' memory.
    return len(tf.config.list_physical_devices("GPU")) or len(os.sched_getaffinity(0))


def run(
    function: str,
    arguments: Sequence[str],
    hosts: Sequence[Host],
    logs: Path,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Call ``function(*arguments)`` in a new process for each slot of `hosts`, as ranks of one Horovod job; wait for all.

    The ranks' output comes out here line by line as ``[rank] line`` and is kept in ``logs/rank-N.log``. When a rank
    dies, so do the others, within seconds; when this process dies, even by SIGKILL, so do all.

    Args:
        function: ``module:name``, importable in this project's folder.
        arguments: passed on to it; must survive JSON.
        hosts: as `check` returned them. On other hosts the project lies in the same folder, with the same Python.
        logs: folder for the output; made here.
        environment: further variables for the ranks, beside this process's own (on other machines: `forwarded`).

    Raises:
        RankError: names the first rank that died and ends with its last lines.
    """
    from horovod.runner.common.util.hosts import HostInfo, get_host_assignments
    from horovod.runner.gloo_run import create_slot_env_vars
    from horovod.runner.http.http_server import RendezvousServer

    slots = get_host_assignments([HostInfo(h.name, h.slots) for h in hosts], sum(h.slots for h in hosts))
    remote = [_address(host.name) for host in hosts if not host.local]
    server = RendezvousServer()
    common = (
        forwarded()
        | dict(environment or {})
        | {
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(server.start()),
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
            "HOROVOD_GLOO_TIMEOUT_SECONDS": os.environ.get("HOROVOD_GLOO_TIMEOUT_SECONDS", GLOO_TIMEOUT),
            "PYTHONUNBUFFERED": "1",
        }
    )
    server.init(slots)
    logs.mkdir(parents=True, exist_ok=True)
    ranks: list[_Rank] = []
    ended: queue.Queue[_Rank] = queue.Queue()
    try:
        for slot in slots:
            host = next(host for host in hosts if host.name == slot.hostname)
            # Ranks of this machine use the interface that the other machines see.
            towards = remote[0] if host.local and remote else _address(host.name)
            own = {"HOROVOD_GLOO_RENDEZVOUS_ADDR": address_towards(towards)}
            task = {
                "environment": common | own | create_slot_env_vars(slot),
                "function": function,
                "arguments": list(arguments),
            }
            ranks.append(_Rank(slot.rank, host, json.dumps(task), logs, ended))
        failed = _wait(len(ranks), ended)
    finally:
        _end(ranks)
        server.stop()
    if failed:
        raise RankError(
            describe(failed.number, len(ranks), f"on {failed.host.name}, ", failed.process.returncode, failed.last)
        )


@dataclass
class _Rank:
    """A running rank and the thread that prints and keeps its output."""

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
            # Ctrl-C reaches the launcher alone, which ends the ranks.
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        assert self.process.stdin is not None
        # One that died already is reported like any other.
        with suppress(BrokenPipeError):
            self.process.stdin.write(f"{self.task}\n")
            self.process.stdin.flush()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with (self.logs / f"rank-{self.number}.log").open("w") as log:
            for line in self.process.stdout:
                print(f"[{self.number}] {line}", end="", flush=True)
                log.write(line)
                log.flush()
                self.last.append(line)
        self.process.wait()
        self.ended.put(self)


def _wait(running: int, ended: "queue.Queue[_Rank]") -> _Rank | None:
    """Wait until all ranks ended well, or the first one failed, which is returned."""
    for _ in range(running):
        if (rank := ended.get()).process.returncode != 0:
            return rank
    return None


def _end(ranks: Sequence[_Rank]) -> None:
    """End what still runs: the end of its input ends a rank, SIGKILL what does not listen."""
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
    """This process's environment variables that mean something on other machines too."""
    return {name: value for name, value in os.environ.items() if name.startswith(FORWARDED)}


def describe(rank: int, ranks: int, where: str, code: int, last: Iterable[str]) -> str:
    """Say which rank died, how, and what it printed last."""
    # ssh, shells and Horovod report a signal as 128 + its number.
    number = -code if code < 0 else code - 128
    named = number in set(signal.Signals)
    if code == 255 and where:
        how = "ended by a signal, or its ssh connection broke"
    else:
        how = f"ended by {signal.Signals(number).name}" if named else f"failed with exit code {code}"
    return f"rank {rank} of {ranks}, {where}{how}; its last lines:\n{''.join(last) or '(none)'}"


def _address(host: str) -> str:
    """The name or address that ssh connects to for `host`, which may be an alias of its configuration."""
    text = subprocess.run(["ssh", "-G", host], capture_output=True, text=True, check=True).stdout
    return next(line.partition(" ")[2] for line in text.splitlines() if line.startswith("hostname "))


def _probe(host: str) -> str:
    """What is wrong with a host; empty if it has the project, Python and Horovod where this machine has them."""
    try_it = [sys.executable, "-c", "import carmodel.training.launch as launch; launch.require_horovod()"]
    command = [*SSH, host, f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(try_it)}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
    return (
        f"host {host} can't be used: {said} (ssh {host} must work without a password, "
        f"and {Path.cwd()} and {sys.executable} be there as here)"
    )
