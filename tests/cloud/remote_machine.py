"""The machine behind a stand-in: it really runs the command of a submitted job, on the project that was uploaded."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Job:
    """A command that runs on the remote machine.

    Attributes:
        process: its shell, the leader of a process group.
        log: what it prints.
        cancelled: whether the user asked for its end.
    """

    process: subprocess.Popen
    log: Path
    cancelled: bool = False

    def wait(self, seconds: float) -> int | None:
        """The exit code, None if it still runs after `seconds`."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def cancel(self) -> None:
        """End the command and all that it started."""
        self.cancelled = True
        if self.process.poll() is None:
            os.killpg(self.process.pid, 15)

    def said(self) -> str:
        """All that it has printed so far."""
        return self.log.read_text()


def start(command: list[str], folder: Path, log: Path, environment: dict[str, str]) -> Job:
    """Start a command in `folder`, with this interpreter's packages and nothing of this process's own settings.

    With CARMODEL_HOLD in its environment the machine does not get to it.
    """
    kept = ("HOME", "LANG", "TMPDIR", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
    inherited = {name: os.environ[name] for name in kept if name in os.environ}
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["sleep", "600"] if "CARMODEL_HOLD" in environment else command,
            cwd=folder,
            env=inherited | {"PATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"} | environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Job(process, log)
