"""Preprocess on Spark: this project's Spark engine beside its local engine, on few and on many photos."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.given import Given
from benchmarks.photos import IMAGE_SIZE, photos, repeated, scaled
from benchmarks.preprocess import LIMIT, bare, fresh, stores_rate
from benchmarks.turns import Competitor, Table, rate, take_turns
from carmodel.data.local_engine import Engine, local_engine
from carmodel.data.preprocessing import write_stores
from carmodel.data.spark_engine import spark_engine
from carmodel.data.spark_session import ship, spark_session
from carmodel.data.store import open_store
from carmodel.data.table import CarTable
from carmodel.data.threads import cores
from carmodel.parameters import Preprocess

TITLE = "Preprocess on Spark"
SIDE = 320
DISTINCT = 6500
"""Number of different photos. More photos are the same ones under other names."""
ROUNDS = {6500: 5, 50_000: 1}
"""Number of rounds for each number of photos. The speed of the limit does not depend on the number: it keeps nothing."""
QUICK = {6500: 130, 50_000: 1000}
CHECKED = 500
"""Number of photos whose images are compared. This also starts the Python workers."""


def measure(given: Given) -> list[Table]:
    """Measure both engines on each number of photos, within one Spark session."""
    few = scaled(photos(given, given.size(DISTINCT, QUICK[DISTINCT])), SIDE, given.folder / "scaled")
    with ExitStack() as stack:
        session = stack.enter_context(spark_session(f"local[{cores()}]"))
        ship(session, ["carmodel"])
        spark = spark_engine(session)
        same = check(few, given.folder / "out", spark)
        tables = []
        for number, rounds in ROUNDS.items():
            table = repeated(few, given.size(number, QUICK[number]))
            tables.append(compare(given, table, spark, rounds, same))
    return tables


def compare(given: Given, table: CarTable, spark: Engine, rounds: int, same: str) -> Table:
    """Measure both engines on the same photos. `same` is the sentence of `check`."""
    number, out = len(table.photos), given.folder / "out"
    competitors = [
        Competitor("carmodel: Spark engine", "ours", cores(), {"": partial(stores_rate, table, out, spark)}),
        Competitor("carmodel: local engine", "peer", cores(), {"": partial(stores_rate, table, out, local_engine)}),
    ]
    if several := rounds > 1:
        competitors.append(Competitor(LIMIT, "limit", cores(), {"": rate(number, lambda: bare(table.photos))}))
    remarks = [same, "The Spark session has started before, and its Python workers have run."]
    if not several:
        remarks.append("Measured once, because it takes a minute.")
    return Table(
        f"{number:,} photos of {SIDE} px to {IMAGE_SIZE} px",
        "images/s",
        take_turns(competitors, given.rounds(rounds), warm_up=0),
        remarks,
        headline=f"Preprocess with engine=spark: {number:,} photos" + ("" if several else ", one round"),
    )


def check(table: CarTable, out: Path, spark: Engine) -> str:
    """Write stores of the first photos with both engines, and return a sentence on their images.

    Raises:
        RuntimeError: the images differ.
    """
    first = repeated(table, CHECKED)
    images = []
    for engine in (spark, local_engine):
        write_stores(first, fresh(out), Preprocess(image_size=IMAGE_SIZE), engine=engine)
        store = open_store(out / "train.h5")
        images.append(store.take(np.arange(len(store))))
    if not np.array_equal(*images):
        raise RuntimeError("the engines write different images")
    return "Both engines write the same images."
