"""Identify processes of this machine across restarts, so that a run whose process was killed can be recognised. Linux only."""

import json
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


def identify(pid: int) -> str:
    """Return the identity of a running process as JSON, or an empty string on a system without ``/proc``.

    A process id is reused, so the identity also has the start time of the process, the boot of the machine and the
    namespace of process ids.
    """
    try:
        identity = _machine() | {"pid": pid, "started": _start_time(pid)}
    except OSError:
        return ""
    return json.dumps(identity)


def has_died(identity: str) -> bool:
    """Return whether the process with this identity ran on this machine and does not run any more.

    False if that cannot be proved: for a process of another machine or container, and for an empty identity.
    """
    try:
        other, here = json.loads(identity), _machine()
    except (OSError, ValueError):
        return False
    if other["host"] != here["host"] or other["machine_id"] != here["machine_id"]:
        return False
    if other["boot"] != here["boot"]:
        return bool(here["machine_id"])  # without an id, it may be another machine with the same name
    return other["namespace"] == here["namespace"] and _start_time(other["pid"]) != other["started"]


def is_alive(identity: str) -> bool:
    """Return whether the process with this identity runs on this machine. False if that cannot be proved."""
    try:
        return identify(json.loads(identity)["pid"]) == identity
    except ValueError:
        return False


def any_process_has(variable: str, value: str) -> bool:
    """Return whether a process of this machine has an environment variable with this value."""
    entry = f"{variable}={value}".encode()
    for environment in PROC.glob("[0-9]*/environ"):
        try:
            if entry in environment.read_bytes().split(b"\0"):
                return True
        except OSError:  # another user's process, or one that has ended meanwhile
            continue
    return False


def terminate_children() -> None:
    """Send SIGTERM to the processes that this process has started and that still run."""
    for status in PROC.glob("[0-9]*/stat"):
        try:
            parent = status.read_text().rpartition(")")[2].split()[4 - 3]
        except OSError:  # it has ended meanwhile
            continue
        if parent == str(os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(int(status.parent.name), signal.SIGTERM)


def _machine() -> dict[str, str]:
    id_file = Path("/etc/machine-id")
    return {
        "host": socket.gethostname(),
        "machine_id": id_file.read_text().strip() if id_file.is_file() else "",
        "boot": (PROC / "sys/kernel/random/boot_id").read_text().strip(),
        "namespace": str((PROC / "self/ns/pid").readlink()),
    }


def _start_time(pid: int) -> str | None:
    """Return when a process started, in clock ticks since the boot, or None if there is no such process or it has ended."""
    try:
        status = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it may end between the opening and the reading
        return None
    # The program's name, in parentheses, may hold blanks. The field after it is number 3, and the start time is number 22.
    fields = status.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[22 - 3]  # a zombie has ended, and its parent has not asked how
