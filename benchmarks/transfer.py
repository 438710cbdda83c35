"""Measure transfer learning to new classes: ``python -m benchmarks.transfer --data FOLDER``.

The classes of a data set are divided at random into two halves. A network is trained on the first half. Then networks that
start from it, from ImageNet weights, and from random weights are trained on the second half, with 5, 20 or all photos per
class and the same number of steps. The network that ships with the clone is not used, since it has seen all the classes.

A finished training is kept in ``--work``, so the command can be interrupted and started again. Two idle cores need about
an hour.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from carmodel.data.store import Store, open_store
from carmodel.evaluation.predictions import predictor
from carmodel.evaluation.wilson import wilson_interval
from carmodel.model.network import build
from carmodel.parameters import Train
from carmodel.recipe import load_recipe
from carmodel.training.fit import fit

TRAINED_AT, TESTED_AT = 128, 160
"""Sides of the images in pixels."""
PHOTOS = {"5": 5, "20": 20, "all": 10**6}
"""Training photos per class."""
STARTS = {
    "cars": "the network trained on other cars",
    "imagenet": "ImageNet weights",
    "random": "random weights",
}


@dataclass
class Subset:
    """Some rows of a store, with the classes that they have. It is a `carmodel.training.batches.Photos`."""

    store: Store
    rows: np.ndarray
    classes: np.ndarray

    def __post_init__(self) -> None:
        self.labels = np.searchsorted(self.classes, self.store.labels[self.rows])
        self.validation = self.store.validation[self.rows]
        self.class_names = [self.store.class_names[label] for label in self.classes]
        self.image_size = self.store.image_size

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return images, uint8 (n, H, W, 3)."""
        return self.store.take(self.rows[rows])


def subset(store: Store, classes: np.ndarray, most: int = PHOTOS["all"]) -> Subset:
    """Return the first `most` training rows of each class, and all validation rows of these classes."""
    chosen = np.isin(store.labels, classes)
    training = pd.Series(store.labels[chosen & ~store.validation], np.flatnonzero(chosen & ~store.validation))
    first = training.groupby(training).head(most).index.to_numpy()
    return Subset(store, np.sort(np.concatenate([first, np.flatnonzero(chosen & store.validation)])), classes)


def settings(start: str, rows: int, steps: int, rate: float) -> Train:
    """Return the settings of `configs/own_photos.yaml` for a start and a number of steps."""
    train = load_recipe("own_photos")["train"] | {
        "init": "",
        "backbone": "pretrained/efficientnet_lite2.keras",
        "batch_size": 32,
        "learning_rate": rate,
        "ema": 0.98,
    }
    train["epochs"] = f"{TRAINED_AT}x{max(1, round(steps / max(1, rows // 32)))}"
    if start == "random":
        train |= {"head_init": "random", "batch_norm": "train", "layer_decay": 1.0}
    return Train.model_validate(train)


def accuracy(network: keras.Model, photos: Subset, rows: np.ndarray) -> float:
    """Return the top-1 accuracy on some rows, averaged over each photo and its mirror image."""
    predict = predictor(network, TESTED_AT, flip=True)
    right = [
        predict(photos.take(part)).argmax(1) == photos.labels[part]
        for part in np.array_split(rows, len(rows) // 64 + 1)
    ]
    return float(np.concatenate(right).mean())


def train(
    name: str, start: str, data: Subset, test: Subset, *, work: Path, steps: int, rate: float
) -> dict[str, float]:
    """Train and test a network, unless its results exist. It is saved to ``work/NAME.keras``."""
    results = work / f"{name}.json"
    if results.exists():
        found: dict[str, float] = json.loads(results.read_text())
        return found
    training = int((~data.validation).sum())
    params = settings(start, training, steps, rate)
    keras.utils.set_random_seed(params.seed)
    network = build(params, data.class_names)
    if start == "random":
        network = keras.models.clone_model(network)
    if start == "cars":
        other = keras.models.load_model(work / "other_cars.keras", compile=False)
        network = build(params, data.class_names, (other, [f"other {i}" for i in range(other.output_shape[-1])]))
    history = fit(network, data, params, work / name)
    network.save(work / f"{name}.keras")
    found = {
        "rows": training,
        "epochs": len(history["loss"]),
        "rate": rate,
        "validation": accuracy(network, data, np.flatnonzero(data.validation)),
        "test": accuracy(network, test, np.arange(len(test))),
        "test_rows": len(test),
    }
    results.write_text(json.dumps(found))
    print(name, found, flush=True)
    return found


def table(results: pd.DataFrame) -> str:
    """Return the results as a Markdown table with 95% intervals: one row per start, one column per number of photos."""
    lines = [
        "| start | " + " | ".join(f"{name} per class" for name in PHOTOS) + " |",
        "| --- |" + " --- |" * len(PHOTOS),
    ]
    for start, words in STARTS.items():
        cells = []
        for photos in PHOTOS:
            row = results[(results.start == start) & (results.photos == photos)].iloc[0]
            low, high = wilson_interval(row.test, int(row.test_rows))
            cells.append(f"{row.test:.3f} ({low:.3f} to {high:.3f})")
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(results: pd.DataFrame) -> Figure:
    """Draw the test accuracy against the mean number of training photos per class."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for start, words in STARTS.items():
        part = results[results.start == start]
        low, high = np.array([wilson_interval(r.test, int(r.test_rows)) for r in part.itertuples()]).T
        axes.errorbar(
            part.per_class, part.test, [part.test - low, high - part.test], label=words, marker="o", capsize=3
        )
    axes.set(xscale="log", xlabel="training photos per class", ylabel="test top-1 accuracy", ylim=(0, 1))
    axes.set_xticks(sorted(set(results.per_class)), [f"{n:.0f}" for n in sorted(set(results.per_class))], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    axes.set_title("Transfer to new classes, from three starting points", loc="left")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Train all networks, then write the table and the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="stores: the `data` output of preprocess, of 160 px or more"
    )
    parser.add_argument("--out", type=Path, default=Path("transfer/results"), help="prefix of the .md, .json and .png")
    parser.add_argument("--work", type=Path, default=Path("transfer"), help="directory of the networks and checkpoints")
    parser.add_argument("--steps", type=int, default=240, help="steps of each training on the second half")
    parser.add_argument("--first_steps", type=int, default=726, help="steps of the training on the first half")
    parser.add_argument("--rate", type=float, default=0.001, help="peak learning rate")
    given = parser.parse_args(arguments)
    given.work.mkdir(parents=True, exist_ok=True)
    stores = [open_store(given.data / f"{split}.h5") for split in ("train", "test")]
    classes = np.random.default_rng(0).permutation(len(stores[0].class_names))
    first, second = np.sort(classes[: len(classes) // 2]), np.sort(classes[len(classes) // 2 :])
    common = {"work": given.work, "rate": given.rate}
    train("other_cars", "imagenet", *(subset(store, first) for store in stores), steps=given.first_steps, **common)
    rows = []
    for photos, most in PHOTOS.items():
        data, test = subset(stores[0], second, most), subset(stores[1], second)
        for start in STARTS:
            found = train(f"{start}_{photos}", start, data, test, steps=given.steps, **common)
            rows.append({"start": start, "photos": photos, "per_class": found["rows"] / len(second), **found})
    results = pd.DataFrame(rows)
    given.out.with_suffix(".json").write_text(results.to_json(orient="records", indent=1) + "\n")
    given.out.with_suffix(".md").write_text(table(results))
    picture(results).savefig(given.out.with_suffix(".png"), dpi=120)
    print(table(results))


if __name__ == "__main__":
    main()
