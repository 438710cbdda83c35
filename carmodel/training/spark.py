"""Start the ranks of a training on the executors of a Spark cluster, without ssh, for example on Databricks."""

import os
import re
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from carmodel.data.spark_session import spark_session
from carmodel.errors import InputError
from carmodel.training.launch import LAST_LINES, RankError, describe, forwarded, require_horovod
from carmodel.training.worker import call


def run(
    function: str,
    arguments: Sequence[str],
    processes: int,
    logs: Path,
    environment: Mapping[str, str] | None = None,
    *,
    master: str = "",
) -> None:
    """Call ``function(*arguments)`` as the ranks of one Horovod job, on the executors of a Spark cluster, and wait.

    Executors must have the project in the same directory, and the Python packages that it needs. On Databricks these are
    a Git folder and the cluster's libraries. When a rank dies, Horovod ends the others at their next exchange.

    Args:
        function: see `carmodel.training.launch.run`.
        arguments: arguments of the function.
        processes: number of ranks, at most one per core of the cluster.
        logs: directory for the output of the ranks, which is created.
        environment: further variables for the ranks.
        master: see `carmodel.data.spark_session.spark_session`.

    Raises:
        InputError: PySpark or Java is missing, `processes` is 0, or the cluster has fewer cores than processes.
        RankError: a rank died. Names the first one and ends with the last lines of its output.
    """
    require_horovod()
    if not processes:
        raise InputError("launcher=spark needs processes=N, the number of ranks, at most one per core of the cluster")
    variables = forwarded() | dict(environment or {}) | {"PYTHONPATH": str(Path.cwd()), "PYTHONUNBUFFERED": "1"}
    output = _Output(logs, processes)
    with spark_session(master, "launcher=spark") as session:
        import horovod.spark

        if processes > (slots := session.sparkContext.defaultParallelism):
            raise InputError(f"processes={processes}, but the Spark cluster has {slots} slots (one per core)")
        task = (str(Path.cwd()), function, list(arguments))
        try:
            horovod.spark.run(
                _call_in, task, num_proc=processes, use_gloo=True, env=variables, stdout=output, stderr=output
            )
        except RuntimeError as error:
            if died := re.search(r"Process name: (\d+)\nExit code: (-?\d+)", str(error)):
                number, code = map(int, died.groups())
                raise RankError(describe(number, processes, "", code, output.last[number])) from None
            raise


def _call_in(folder: str, function: str, arguments: Sequence[str]) -> None:
    """Call the function on an executor, in the directory of the driver, so that relative paths are the same."""
    os.chdir(folder)
    call(function, arguments)


class _Output:
    """The stream to which Horovod writes the output of all ranks, from one thread per rank."""

    def __init__(self, logs: Path, processes: int) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.files = [logs / f"rank-{rank}.log" for rank in range(processes)]
        for file in self.files:  # A rank that prints nothing has an empty log, as with the other launcher.
            file.touch()
        self.last: list[deque[str]] = [deque(maxlen=LAST_LINES) for _ in range(processes)]
        self.thread = threading.local()

    def write(self, text: str) -> None:
        """Receive a piece of ``[rank]<stdout>:line``, and print and save each complete line as ``[rank] line``."""
        *lines, self.thread.rest = (getattr(self.thread, "rest", "") + text).split("\n")
        for line in lines:
            if parts := re.match(r"\[(\d+)\]<std(?:out|err)>:(.*)", line):
                rank, text = int(parts[1]), parts[2]
                print(f"[{rank}] {text}", flush=True)
                with self.files[rank].open("a") as file:
                    file.write(f"{text}\n")
                self.last[rank].append(f"{text}\n")

    def flush(self) -> None:
        """Do nothing, since complete lines are printed at once."""
