"""Train on two ranks: beside one process with all threads, and two processes that exchange nothing."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from benchmarks.clusters import predictions
from benchmarks.given import Given
from benchmarks.turns import Competitor, Entry, Table, take_turns
from carmodel.data.threads import cores
from carmodel.training.launch import Host, run

TITLE = "Two ranks"
RANKS = 2
DEPTH = 26
"""Layers of the residual network. Depth 50 has 1.7 times the weights and the computation, and takes too long here."""
SIDE = 128
BATCH, QUICK_BATCH = 32, 8
"""Images of a step, of all ranks together."""
STEPS = 3
"""Steps of a turn. The second one is timed: both processes are in the middle of their work then."""
OURS, ALONE, LIMIT = "carmodel: 2 ranks", "1 process", "2 processes that exchange nothing"


def measure(given: Given) -> list[Table]:
    """Measure all ways in one job of two ranks, which also starts the one process and waits while it trains."""
    sizes = [given.rounds(), given.size(BATCH, QUICK_BATCH)]
    run(
        "benchmarks.ranks:turns",
        [str(given.folder), json.dumps(sizes)],
        [Host("localhost", RANKS)],
        given.folder / "logs",
    )
    measured = json.loads((given.folder / "measured.json").read_text())
    entries = [Entry(**entry) for entry in measured["entries"]]
    title = f"Residual network of depth {DEPTH}, {SIDE} px, {sizes[1]} images per step of all processes together"
    remarks = [
        f"A step sends {measured['megabytes']:.0f} MB, and takes {measured['share']:.1%} of its time between gradients and "
        "averages, in which a rank also waits for the slower one.",
        "The weights of both ranks were equal after every turn. The images are random numbers.",
    ]
    return [
        Table(title, "images/s", entries, remarks + predictions(), "Training on two ranks", list(entries[0].values)[-1])
    ]


def turns(folder: str, sizes: str) -> None:
    """Let all ways take turns, as one rank of the job. All ranks make the same calls. Rank 0 writes what it measured."""
    import numpy as np
    from keras.callbacks import LambdaCallback

    from carmodel.training.distributed import Horovod, SynchronizeRanks, distribute

    ranks = Horovod()
    rounds, batch = json.loads(sizes)
    share = batch // ranks.count
    network, apart = Trainer(share, ranks.rank), Trainer(share, ranks.rank)
    average = distribute(network.model.optimizer)
    synchronize = SynchronizeRanks(average, share)
    spent: list[float] = []

    def of_both(rate: float) -> float:
        return float(ranks.gather(np.array([rate])).sum())

    def together(kind: str) -> float:
        marks: list[float] = []
        mark = LambdaCallback(on_train_batch_end=lambda step, logs: marks.append(float(average.seconds)))
        rate = network.rate(kind, [synchronize, mark])
        spent.append((marks[1] - marks[0]) * rate / share)
        return of_both(rate)

    def separately(kind: str) -> float:
        ranks.gather(np.zeros(1))  # waits for the other rank
        return of_both(apart.rate(kind, []))

    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=start_alone, initargs=(batch,)) as pool:

        def alone(kind: str) -> float:
            rate = pool.submit(rate_alone, kind).result() if ranks.rank == 0 else 0.0
            ranks.gather(np.zeros(1))  # waits for the other rank
            return rate

        from benchmarks.training import precisions

        def works(way: Callable[[str], float]) -> dict[str, Callable[[], float]]:
            return {kind: partial(way, kind) for kind in precisions()}

        threads = cores() // ranks.count
        competitors = [
            Competitor(OURS, "ours", f"2 × {threads}", works(together)),
            Competitor(ALONE, "peer", cores(), works(alone)),
            Competitor(LIMIT, "limit", f"2 × {threads}", works(separately)),
        ]
        entries = take_turns(competitors, rounds)
    if ranks.rank == 0:
        after_warm_up = spent[len(precisions()) :]
        measured = {"megabytes": average.bytes / 1e6, "share": median(after_warm_up)}
        measured["entries"] = [asdict(entry) for entry in entries]
        Path(folder, "measured.json").write_text(json.dumps(measured))


class Trainer:
    """The residual network and random photos.

    Args:
        batch: images per step of this process.
        seed: seed of the photos.
    """

    def __init__(self, batch: int, seed: int) -> None:
        import keras
        import numpy as np

        from carmodel.model.resnet import resnet
        from carmodel.training.fused_normalization import with_fused_normalization

        self.model = with_fused_normalization(resnet(DEPTH, 196))
        self.model.compile(
            keras.optimizers.SGD(0.001, momentum=0.9), "sparse_categorical_crossentropy", jit_compile=False
        )
        numbers = np.random.default_rng(seed)
        self.images = numbers.integers(0, 256, (batch, SIDE, SIDE, 3), np.uint8)
        self.labels = numbers.integers(0, 196, batch)

    def rate(self, kind: str, callbacks: list) -> float:
        """Train for some steps, and return images per second of the second one."""
        import keras
        import tensorflow as tf

        from carmodel.training.dataset import untuned
        from carmodel.training.precision import onednn_bfloat16

        onednn_bfloat16(kind == "bfloat16")
        times: list[float] = []

        def tick(step: int, logs: dict[str, float]) -> None:
            float(logs["loss"])  # waits for the step
            times.append(time.perf_counter())

        clock = keras.callbacks.LambdaCallback(on_train_batch_end=tick)
        data = untuned(tf.data.Dataset.from_tensors((self.images, self.labels)).repeat(STEPS))
        self.model.fit(data, epochs=1, shuffle=False, verbose=0, callbacks=[clock, *callbacks])
        return len(self.images) / (times[1] - times[0])


alone_trainer: Trainer | None = None


def start_alone(batch: int) -> None:
    """Build the network of the one process, which uses all threads."""
    global alone_trainer  # noqa: PLW0603
    alone_trainer = Trainer(batch, 0)


def rate_alone(kind: str) -> float:
    """Train in the one process, and return images per second."""
    assert alone_trainer
    return alone_trainer.rate(kind, [])
