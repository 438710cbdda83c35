"""Start the ranks of a training on the executors of a Spark cluster: the way without ssh, as on Databricks."""

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
    """As `carmodel.training.launch.run`, with the ranks on the executors of a Spark cluster.

    The project must lie in this folder on the executors too, with the Python packages it needs: on Databricks a Git
    folder and the cluster's libraries. When a rank dies, Horovod ends those that wait for it; one that is busy otherwise
    notices at its next exchange.

    Args:
        function: see `carmodel.training.launch.run`, as for the next four.
        arguments: of the function.
        processes: ranks, at most one a core of the cluster.
        logs: folder for what the ranks print.
        environment: variables for the ranks.
        master: see `carmodel.data.spark_session.spark_session`.

    Raises:
        InputError: no PySpark or Java, no number of processes, or a cluster that has fewer cores.
        RankError: names the first rank that died and ends with its last lines.
    """
    require_horovod()
    if not processes:
        raise InputError("launcher=spark needs processes: how many to start, at most one a core of the cluster")
    variables = forwarded() | dict(environment or {}) | {"PYTHONPATH": str(Path.cwd()), "PYTHONUNBUFFERED": "1"}
    output = _Output(logs, processes)
    with spark_session(master, "launcher=spark") as session:
        import horovod.spark

        if processes > (slots := session.sparkContext.defaultParallelism):
            raise InputError(f"processes={processes}, but the Spark cluster has {slots} slots (a core each)")
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
    """On an executor: relative paths mean what they mean on the driver."""
    os.chdir(folder)
    call(function, arguments)


class _Output:
    """The stream to which Horovod writes what all ranks print, each from threads of its own."""

    def __init__(self, logs: Path, processes: int) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.files = [logs / f"rank-{rank}.log" for rank in range(processes)]
        self.last: list[deque[str]] = [deque(maxlen=LAST_LINES) for _ in range(processes)]
        self.thread = threading.local()

    def write(self, text: str) -> None:
        """Take part of ``[rank]<stdout>:line``; print whole lines as ``[rank] line`` and keep them."""
        *lines, self.thread.rest = (getattr(self.thread, "rest", "") + text).split("\n")
        for line in lines:
            if parts := re.match(r"\[(\d+)\]<std(?:out|err)>:(.*)", line):
                rank, said = int(parts[1]), parts[2]
                print(f"[{rank}] {said}", flush=True)
                with self.files[rank].open("a") as file:
                    file.write(f"{said}\n")
                self.last[rank].append(f"{said}\n")

    def flush(self) -> None:
        """Nothing waits: lines are printed when they are whole."""
