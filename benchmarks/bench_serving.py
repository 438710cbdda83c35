"""Measure rows per second of the served classifier, over HTTP and in process: ``python -m benchmarks.bench_serving``.

All numbers of a table come from one run, in which the variants take turns on the same drawn photos. The networks have
random weights, which take the same time as trained ones. This needs an idle machine.
"""

import argparse
import base64
import io
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import keras
import mlflow
import numpy as np
import pandas as pd
import tensorflow as tf
from mlflow.pyfunc import PythonModel, PythonModelContext
from PIL import Image

from carmodel.data import sample
from carmodel.mlflow_model import log_network
from carmodel.model.backbone import application
from carmodel.model.folding import fold
from carmodel.model.resnet import resnet
from carmodel.parameters import PackagePyfunc
from carmodel.serving.forward import Forward
from carmodel.serving.packaging import log_classifier
from carmodel.tracking.digests import ROOT
from carmodel.training.precision import fast_bfloat16, onednn_bfloat16
from tests.endpoint import Server, serve

CLASSES = 196
BATCHES = (1, 8, 32)
FOLDED, UNFOLDED, PLAIN = "carmodel, folded", "carmodel, unfolded", "plain pyfunc"
LIMIT, LIMIT_UNFOLDED, LIMIT_BFLOAT16 = "forward pass", "forward pass, unfolded", "forward pass, folded, bfloat16"
WHOLE, WHOLE_UNFOLDED = "one call of the whole batch, folded", "one call of the whole batch, unfolded"
DECODE = "decoding alone"

Numbers = dict[tuple[str, int], list[float]]


class PlainClassifier(PythonModel):
    """A plain classifier, as in MLflow's example for images: decode in a loop, then call `predict` once."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the network."""
        import carmodel.model.scale  # noqa: F401 (registers the layer)

        self.network = keras.saving.load_model(context.artifacts["model"], compile=False)

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Return the best class and the probability of each class."""
        size = self.network.input_shape[1:3]
        photos = []
        for text in model_input["image"]:
            photo = Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")
            photos.append(np.asarray(photo.resize(size), np.uint8))
        probabilities = self.network.predict(np.stack(photos), verbose=0)
        columns = [f"p({i})" for i in range(probabilities.shape[1])]
        return pd.DataFrame(probabilities, columns=columns).assign(class_id=probabilities.argmax(1))


def main() -> None:
    """Measure the networks and print the tables, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["50", "MobileNetV2"], help="depths, keras.applications names")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--photo_width", type=int, default=640, help="width of the photos that are sent, in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="carmodel-bench-") as folder:
        texts = draw(Path(folder), arguments.photo_width)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        experiment = mlflow.create_experiment("bench", artifact_location=Path(folder, "artifacts").as_uri())
        mlflow.set_experiment(experiment_id=experiment)
        for name in arguments.networks:
            measure(name, arguments, texts, Path(folder))


def draw(folder: Path, width: int) -> list[str]:
    """Draw cars, and return JPEG files of `width` pixels as Base64."""
    drawn = sorted(sample.draw(folder, classes=8, photos=5, seed=0).glob("cars_t*/*.jpg"))[: max(BATCHES)]
    texts = []
    for photo in map(cv2.imread, map(str, drawn)):
        size = (width, width * photo.shape[0] // photo.shape[1])
        texts.append(base64.b64encode(cv2.imencode(".jpg", cv2.resize(photo, size))[1]).decode())
    return texts


def measure(name: str, arguments: argparse.Namespace, texts: list[str], folder: Path) -> None:
    """Measure all variants of one network and print its tables."""
    size = arguments.image_size
    network = resnet(int(name), CLASSES) if name.isdigit() else application(name, CLASSES)
    models = {variant: mlflow.artifacts.download_artifacts(uri) for variant, uri in log_all(network, size).items()}
    in_process: dict[str, Callable[[int], object]] = {}
    loaded = {variant: mlflow.pyfunc.load_model(model) for variant, model in models.items()}
    for variant, model in loaded.items():
        in_process[variant] = partial(predict, model, texts)
    photos = np.random.default_rng(0).integers(0, 256, (max(BATCHES), size, size, 3), np.uint8)
    for variant, of in {LIMIT: FOLDED, LIMIT_UNFOLDED: UNFOLDED}.items():
        in_process[variant] = partial(run, loaded[of].unwrap_python_model()._forward, photos)
    for variant, of in {WHOLE: fold(network), WHOLE_UNFOLDED: network}.items():
        in_process[variant] = partial(run_whole, traced(of), photos)
    in_process[DECODE] = partial(decode, texts, size)
    if fast_bfloat16():
        in_process[LIMIT_BFLOAT16] = partial(run, Forward(fold(network), size, bfloat16=True), photos)
        onednn_bfloat16(False)
    with ExitStack() as stack:
        servers = {
            variant: stack.enter_context(serve(model, scratch(folder, variant))) for variant, model in models.items()
        }
        over_http = {variant: partial(ask, server, texts) for variant, server in servers.items()}
        http, local, processor = take_turns(over_http, in_process, arguments.rounds)
        started = {variant: (server.start_seconds, server.memory() / 2**20) for variant, server in servers.items()}
    title = f"ResNet-{name} with Scale" if name.isdigit() else name
    print(
        f"\n{title}, {size} px, photos {arguments.photo_width} px wide, {len(os.sched_getaffinity(0))} cores, "
        f"{arguments.rounds} rounds; rows/s: median (slowest to fastest)"
    )
    report(http, local)
    compare(http, local, processor)
    header("server", ("seconds from start to first answer", "memory after the rounds, MB"))
    for variant, (seconds, megabytes) in started.items():
        print(f"| {variant} | {seconds:.1f} | {megabytes:.0f} |", flush=True)


def log_all(network: keras.Model, size: int) -> dict[str, str]:
    """Log the network and its three classifiers, and return ``{variant: URI}``."""
    facts = {"class_names": [f"Class {i}" for i in range(CLASSES)], "image_size": size, "crop": "none", "margin": 0.0}
    photos = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), np.uint8)
    with mlflow.start_run():
        trained = log_network(network, photos[:1], facts, {}).model_uri
    uris = {}
    for variant in (FOLDED, UNFOLDED):
        with mlflow.start_run():
            settings = PackagePyfunc(model_uri=trained, folded=variant == FOLDED)
            uris[variant] = log_classifier(settings, photos)[0].model_uri
    with mlflow.start_run():
        file = Path(mlflow.artifacts.download_artifacts(trained), "data", "model.keras")
        uris[PLAIN] = mlflow.pyfunc.log_model(
            name="plain",
            python_model=PlainClassifier(),
            artifacts={"model": str(file)},
            code_paths=[str(ROOT / "carmodel")],
            pip_requirements=["mlflow"],
        ).model_uri
    return uris


def scratch(folder: Path, name: str) -> Path:
    """Create a new directory for a server."""
    folder = folder / f"{name}-{time.monotonic_ns()}"
    folder.mkdir()
    return folder


def ask(server: Server, texts: list[str], rows: int) -> None:
    """Request answers for the first rows over HTTP."""
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[text] for text in texts[:rows]]}}).encode()
    status, answer = server.post(body)
    if status != 200 or len(json.loads(answer)["predictions"]) != rows:
        raise RuntimeError(f"the server answered {status}: {answer[:500]!r}")


def predict(model: mlflow.pyfunc.PyFuncModel, texts: list[str], rows: int) -> None:
    """Predict the first rows in this process, with MLflow's schema enforcement."""
    model.predict(pd.DataFrame({"image": texts[:rows]}))


def run(forward: Forward, photos: np.ndarray, rows: int) -> None:
    """Run the network alone on prepared photos."""
    forward(photos[:rows])


def traced(network: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the bare forward pass, as one graph per batch size."""
    return tf.function(lambda images: network(images, training=False), autograph=False)


def run_whole(call: Callable[[tf.Tensor], tf.Tensor], photos: np.ndarray, rows: int) -> None:
    """Run the network on all rows at once, so that TensorFlow divides each operation among the cores."""
    call(tf.constant(photos[:rows])).numpy()


def decode(texts: list[str], size: int, rows: int) -> None:
    """Decode and resize the first rows on one core, the work besides the forward pass."""
    for text in texts[:rows]:
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_COLOR_RGB)
        cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)


def take_turns(
    over_http: dict[str, Callable[[int], None]], in_process: dict[str, Callable[[int], None]], rounds: int
) -> tuple[Numbers, Numbers, Numbers]:
    """Time every variant at every batch size once per round, after a warm-up round.

    Returns:
        rows per second over HTTP and in process, and milliseconds of processor time per row in process.
    """
    http, local, processor = defaultdict(list), defaultdict(list), defaultdict(list)
    for turn in range(rounds + 1):
        for rows in BATCHES:
            for variant, answer in over_http.items():
                seconds, _ = clock(answer, rows)
                http[variant, rows].append(1 / seconds)
            for variant, answer in in_process.items():
                seconds, used = clock(answer, rows)
                local[variant, rows].append(1 / seconds)
                processor[variant, rows].append(used * 1e3)
        if turn == 0:
            for numbers in (http, local, processor):
                numbers.clear()
    return http, local, processor


def clock(answer: Callable[[int], None], rows: int) -> tuple[float, float]:
    """Return seconds per row and processor seconds of this process per row, over at least eight rows."""
    requests = max(1, 8 // rows)
    began, used = time.perf_counter(), time.process_time()
    for _ in range(requests):
        answer(rows)
    total = requests * rows
    return (time.perf_counter() - began) / total, (time.process_time() - used) / total


def report(http: Numbers, local: Numbers) -> None:
    """Print the median rates, with the slowest and the fastest round in parentheses."""
    header("variant", [f"batch {rows}" for rows in BATCHES])
    for where, rates in (("over HTTP", http), ("in process", local)):
        for variant in dict.fromkeys(variant for variant, _ in rates):
            seen = [rates[variant, rows] for rows in BATCHES]
            cells = [f"{median(rate):.1f} ({min(rate):.1f} to {max(rate):.1f})" for rate in seen]
            print(f"| {where}: {variant} | {' | '.join(cells)} |")
    if (LIMIT_BFLOAT16, BATCHES[0]) not in local:
        print(f"| in process: {LIMIT_BFLOAT16} | " + " | ".join(["not available on this CPU"] * len(BATCHES)) + " |")


def compare(http: Numbers, local: Numbers, processor: Numbers) -> None:
    """Print the ratios of rates, and those of processor time, which depends less on other programs."""
    both = {
        (LIMIT, rows): [a + b for a, b in zip(processor[LIMIT, rows], processor[DECODE, rows], strict=True)]
        for rows in BATCHES
    }
    header("ratio, median of the rounds", [f"batch {rows}" for rows in BATCHES])
    ratios = [
        ("over HTTP: carmodel, folded, of the plain pyfunc", http, FOLDED, http, PLAIN),
        ("in process: carmodel, folded, of the forward pass", local, FOLDED, local, LIMIT),
        ("in process: carmodel, folded, of one call of the whole batch", local, FOLDED, local, WHOLE),
        ("forward pass: folded, of unfolded", local, LIMIT, local, LIMIT_UNFOLDED),
        ("one call of the whole batch: folded, of unfolded", local, WHOLE, local, WHOLE_UNFOLDED),
        ("forward pass: bfloat16, of unfolded float32", local, LIMIT_BFLOAT16, local, LIMIT_UNFOLDED),
        ("processor time: forward pass, of carmodel, folded", processor, LIMIT, processor, FOLDED),
        ("processor time: forward pass and bare decoding, of carmodel, folded", both, LIMIT, processor, FOLDED),
        ("processor time: forward pass, unfolded, of folded", processor, LIMIT_UNFOLDED, processor, LIMIT),
        ("processor time: plain pyfunc, of carmodel, folded", processor, PLAIN, processor, FOLDED),
    ]
    for name, numbers, variant, others, other in ratios:
        if (variant, BATCHES[0]) in numbers:
            # Measurements of the same round are compared, since the speed of the machine may change over time.
            pairs = [zip(numbers[variant, rows], others[other, rows], strict=True) for rows in BATCHES]
            print(f"| {name} | " + " | ".join(f"{median(a / b for a, b in pair):.2f}" for pair in pairs) + " |")


def header(first: str, others: Sequence[str]) -> None:
    """Print the header of a table."""
    print(f"\n| {first} | {' | '.join(others)} |\n|---|" + "---|" * len(others))


if __name__ == "__main__":
    main()
