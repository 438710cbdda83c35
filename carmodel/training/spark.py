"""Start the ranks of a training on the executors of a Spark cluster: the way without ssh, as on Databricks."""

import os
import re
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from carmodel.errors import InputError
from carmodel.training.launch import LAST_LINES, RankError, describe, forwarded, require_horovod
from carmodel.training.rank import call


def run(
    function: str, arguments: Sequence[str], processes: int, logs: Path, environment: Mapping[str, str] | None = None
) -> None:
    """As `carmodel.training.launch.run`, with the ranks on the executors of the Spark session that is active.

    Where none is, one is made with Spark's own settings (``spark-defaults.conf``, ``PYSPARK_SUBMIT_ARGS``) and stopped
    in the end. The project must lie in this folder on the executors too, with the Python packages it needs: on
    Databricks a Git folder and the cluster's libraries. When a rank dies, Horovod ends those that wait for it; one that
    is busy otherwise notices at its next exchange.

    Raises:
        InputError: no PySpark, no number of processes, or a cluster that has fewer cores.
        RankError: names the first rank that died and ends with its last lines.
    """
    require_horovod()
    if find_spec("pyspark") is None:
        raise InputError("launcher=spark needs PySpark, which is not installed: make spark")
    if not processes:
        raise InputError("launcher=spark needs processes: how many to start, at most one a core of the cluster")
    import horovod.spark
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    found = SparkSession.getActiveSession()
    session = found or SparkSession.builder.getOrCreate()
    variables = forwarded() | dict(environment or {}) | {"PYTHONPATH": str(Path.cwd()), "PYTHONUNBUFFERED": "1"}
    output = _Output(logs, processes)
    try:
        if processes > (slots := session.sparkContext.defaultParallelism):
            raise InputError(f"processes={processes}, but the Spark cluster has {slots} slots (a core each)")
        task = (str(Path.cwd()), function, list(arguments))
        horovod.spark.run(
            _call_in, task, num_proc=processes, use_gloo=True, env=variables, stdout=output, stderr=output
        )
    except RuntimeError as error:
        if died := re.search(r"Process name: (\d+)\nExit code: (-?\d+)", str(error)):
            number, code = map(int, died.groups())
            raise RankError(describe(number, processes, "", code, output.last[number])) from None
        raise
    finally:
        if found is None:
            session.stop()


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
