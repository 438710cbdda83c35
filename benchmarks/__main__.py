"""Measure how fast this project is beside what people would use instead: ``python -m benchmarks``, or ``make bench``.

Each part runs in a process of its own and writes its results as soon as it is finished. This needs an idle machine.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.given import Given
from benchmarks.parts import PARTS, measure
from benchmarks.report import markdown, write


def main() -> None:
    """Measure the parts, and write and print their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default="", metavar="PART,PART", help=f"some of {', '.join(PARTS)} (default: all)")
    parser.add_argument(
        "--data_uri", default="", help="directory of photos that preprocess can read (default: drawn ones)"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="directory of the results")
    parser.add_argument(
        "--peers", type=Path, default=Path(".venv-bench/bin/python"), help="Python of the peers' environment"
    )
    parser.add_argument("--quick", action="store_true", help="few photos and one round, to see that everything works")
    arguments = parser.parse_args()
    names = [name for name in arguments.only.split(",") if name] or list(PARTS)
    if unknown := set(names) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is not one of {', '.join(PARTS)}")
    for name in names:
        print(f"bench: {name} …", file=sys.stderr, flush=True)
        # A new process, so that no part sees the memory, the threads or the settings of another one.
        with (
            TemporaryDirectory(prefix="carmodel-bench-") as folder,
            ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
        ):
            given = Given(arguments.data_uri, arguments.quick, Path(folder), arguments.peers)
            part = pool.submit(measure, name, given).result()
        write(part, arguments.out)
        print("\n".join(map(markdown, part.tables)), flush=True)


if __name__ == "__main__":
    main()
