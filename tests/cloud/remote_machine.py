"""The machine behind a stand-in: it really runs the command of a submitted job, on the project that was uploaded."""

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Job:
    """A command on a remote machine.

    Attributes:
        process: its shell, which leads a process group.
        log: file with its output.
        cancelled: whether the user cancelled it.
    """

    process: subprocess.Popen
    log: Path
    cancelled: bool = False

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait for the end, or for some seconds. Return the exit code, or None if the command still runs."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def cancel(self) -> None:
        """End the command and all that it started."""
        self.cancelled = True
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def said(self) -> str:
        """Return its output so far."""
        return self.log.read_text()


def start(command: list[str], folder: Path, log: Path, environment: dict[str, str], commands: str) -> Job:
    """Start a command in `folder`, with none of the variables that belong to this process.

    Args:
        command: program and arguments.
        folder: working directory.
        log: file for the output.
        environment: variables of the machine. With CARMODEL_HOLD, the machine waits instead of running the command.
        commands: folder with `python` and `mlflow`, as `tests.preloaded` makes it.
    """
    kept = ("HOME", "LANG", "TMPDIR", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
    inherited = {name: os.environ[name] for name in kept if name in os.environ}
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["sleep", "600"] if "CARMODEL_HOLD" in environment else command,
            cwd=folder,
            env=inherited | {"PATH": f"{commands}:/usr/bin:/bin", "TF_CPP_MIN_LOG_LEVEL": "3"} | environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Job(process, log)
