"""Compare ranks with threads, and measure the all-reduce: ``python -m benchmarks.bench_horovod``.

All numbers of a table come from one run, in which the variants take turns on random batches of the same global size. A
second table predicts the efficiency of many GPUs. This needs Horovod (``make horovod``) and two idle cores.
"""

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from carmodel.training.launch import Host, run

WARM_UP = 2  # steps that trace, compile and fill caches


@dataclass(frozen=True)
class Variant:
    """A way to train on the same global batch."""

    name: str
    ranks: int
    compression: str = "none"
    fused: bool = True
    exchanges: bool = True


VARIANTS = (
    Variant("1 process, all threads", 1),
    Variant("2 processes that exchange nothing (the limit)", 2, exchanges=False),
    Variant("2 ranks, float32", 2),
    Variant("2 ranks, float32, one tensor at a time", 2, fused=False),
    Variant("2 ranks, float16", 2, "float16"),
    Variant("2 ranks, bfloat16", 2, "bfloat16"),
)

# Horovod's benchmark (https://github.com/horovod/horovod/blob/master/docs/benchmarks.rst): ResNet-101 with 64 images per
# GPU and step, 1656.82 images/s on 16 Pascal GPUs, four GPUs per server, 25 Gbit/s; 90% efficiency on 512 GPUs.
PUBLISHED_RATE = 1656.82 / 16
PUBLISHED_BATCH = 64
PUBLISHED_DEPTH = 101
LATENCY = 10e-6  # seconds per message between two servers, an assumption


def measure(folder: str, variant: str, sizes: str) -> None:
    """Train on random photos, as one rank. Rank 0 writes the seconds per step, those of the all-reduce, and the bytes."""
    import keras
    import numpy as np
    import tensorflow as tf

    from carmodel.model.resnet import resnet
    from carmodel.training.distributed import Horovod, SynchronizeRanks, distribute

    job = Horovod()
    rank, ranks = job.rank, job.count
    depth, side, batch, steps = json.loads(sizes)
    share = batch // ranks
    network = resnet(depth, 196)
    network.compile(keras.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy", jit_compile=False)
    clock = Clock()
    callbacks: list[keras.callbacks.Callback] = [keras.callbacks.LambdaCallback(on_train_batch_end=clock.tick)]
    own = Variant(**json.loads(variant))
    if ranks > 1 and own.exchanges:
        clock.average = distribute(network.optimizer, own.compression)
        callbacks.append(SynchronizeRanks(clock.average, share))
    numbers = np.random.default_rng(rank)
    images = numbers.integers(0, 256, (share, side, side, 3), np.uint8)
    data = tf.data.Dataset.from_tensors((images, numbers.integers(0, 196, share))).repeat(WARM_UP + steps)
    network.fit(data, epochs=1, verbose=0, callbacks=callbacks)
    if rank == 0:
        (Path(folder) / "measured.json").write_text(json.dumps(clock.read()))


class Clock:
    """Record the time, and the seconds spent in all-reduce, at the end of every step."""

    def __init__(self) -> None:
        self.average = None
        self.times: list[tuple[float, float]] = []

    def tick(self, step: int, logs: dict[str, float]) -> None:
        """Record the end of a step, after waiting for its loss."""
        float(logs["loss"])
        self.times.append((time.perf_counter(), float(self.average.seconds) if self.average else 0.0))

    def read(self) -> dict[str, float]:
        """Return medians over the steps after the warm-up."""
        pairs = list(zip(self.times[WARM_UP - 1 :], self.times[WARM_UP:], strict=False))
        return {
            "step": median(after[0] - before[0] for before, after in pairs),
            "all_reduce": median(after[1] - before[1] for before, after in pairs),
            "bytes": self.average.bytes if self.average else 0,
        }


def one_run(variant: Variant, arguments: argparse.Namespace) -> dict[str, float]:
    """Train one variant, in new processes."""
    plain = {} if variant.fused else {"HOROVOD_FUSION_THRESHOLD": "0", "HOROVOD_DISABLE_GROUP_FUSION": "1"}
    sizes = (arguments.depth, arguments.image_size, arguments.batch, arguments.steps)
    with TemporaryDirectory() as folder:
        task = [folder, json.dumps(asdict(variant)), json.dumps(sizes)]
        run("benchmarks.bench_horovod:measure", task, [Host("localhost", variant.ranks)], Path(folder) / "logs", plain)
        return json.loads((Path(folder) / "measured.json").read_text())


def parameters(depth: int) -> int:
    """Return the number of trainable parameters of the residual network for 196 classes."""
    import numpy as np

    from carmodel.model.resnet import resnet

    return sum(int(np.prod(variable.shape)) for variable in resnet(depth, 196).trainable_variables)


def efficiency(gpus: int, size: float, step: float, gigabits: float, gpus_a_server: int = 4) -> float:
    """Predict the efficiency of training with a ring all-reduce that starts when all gradients are computed.

    Each server sends and receives ``2 (n - 1) / n`` times the bytes over its link, in ``2 (servers - 1)`` messages.

    Args:
        gpus: number of GPUs.
        size: bytes of all gradients.
        step: seconds per step without the exchange.
        gigabits: rate of a server's link, in Gbit/s.
        gpus_a_server: GPUs per server.
    """
    servers = max(1, gpus // gpus_a_server)
    exchange = 2 * (gpus - 1) / gpus * size * 8 / (gigabits * 1e9) + 2 * (servers - 1) * LATENCY
    return step / (step + exchange)


def main() -> None:
    """Measure and print the tables, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32, help="rows per step of all ranks together")
    parser.add_argument("--steps", type=int, default=6, help="measured steps per turn")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    turns = [{variant: one_run(variant, arguments) for variant in VARIANTS} for _ in range(arguments.turns)]

    cores = len(os.sched_getaffinity(0))
    print(
        f"\nResNet-{arguments.depth}, {arguments.image_size} px, global batch {arguments.batch}, {cores} cores, "
        f"medians of {arguments.turns} turns of {arguments.steps} steps:\n"
    )
    print("| variant | images/s | of 1 process | all-reduce, ms per step | share of the step | MB per step |")
    print("|---|---|---|---|---|---|")
    for variant in VARIANTS:
        seen = [turn[variant] for turn in turns]
        rate = median(arguments.batch / one["step"] for one in seen)
        # Measurements of the same turn are compared, since the speed of the machine may change over time.
        ratio = median(turn[VARIANTS[0]]["step"] / turn[variant]["step"] for turn in turns)
        wait = median(one["all_reduce"] for one in seen)
        share = median(one["all_reduce"] / one["step"] for one in seen)
        print(
            f"| {variant.name} | {rate:.2f} | {ratio:.3f} | {1e3 * wait:.0f} | {share:.1%} | {seen[0]['bytes'] / 1e6:.1f} |"
        )

    measured = turns[0][VARIANTS[2]]["bytes"] / parameters(arguments.depth)
    size = measured * parameters(PUBLISHED_DEPTH)
    print(
        f"\nPredicted, not measured: efficiency of ResNet-{PUBLISHED_DEPTH} with {PUBLISHED_BATCH} images per GPU and step, "
        f"four GPUs per server. A step sends {measured:.0f} bytes per parameter or {size / 1e6:.0f} MB. The "
        f"exchange does not overlap with the computation, and a message takes {LATENCY * 1e6:.0f} µs.\n"
    )
    counts = (8, 64, 512)
    print("| GPU | link of a server | gradients sent as | " + " | ".join(f"{count} GPUs" for count in counts) + " |")
    print("|---|---|---|" + "---|" * len(counts))
    for times in (1, 10):
        step = PUBLISHED_BATCH / (PUBLISHED_RATE * times)
        gpu = f"{PUBLISHED_RATE * times:.0f} images/s" + (" (Pascal, published)" if times == 1 else "")
        for gigabits in (25, 100, 400):
            for kind, part in (("float32", 1.0), ("16 bits", 0.5)):
                row = " | ".join(f"{efficiency(count, size * part, step, gigabits):.0%}" for count in counts)
                print(f"| {gpu} | {gigabits} Gbit/s | {kind} | {row} |")
    print("| Pascal, published by Horovod, measured | 25 Gbit/s | float32 | – | – | 90% |")


if __name__ == "__main__":
    main()
