"""Rows a second of the served classifier, over HTTP and in process: ``python -m benchmarks.bench_serving``.

All numbers of a table come from one run of this program, in which the ways of answering take turns on the same drawn
photos. The networks have random weights, which cost as much as trained ones. Wants an idle machine.
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
from tests.endpoint import Endpoint, serve

CLASSES = 196
BATCHES = (1, 8, 32)
FOLDED, UNFOLDED, PLAIN = "ours, folded", "ours, unfolded", "plain pyfunc"
LIMIT, LIMIT_UNFOLDED, LIMIT_BFLOAT16 = "forward pass", "forward pass, unfolded", "forward pass, folded, bfloat16"
WHOLE, WHOLE_UNFOLDED = "one call of the whole batch, folded", "one call of the whole batch, unfolded"
DECODE = "decoding alone"

Numbers = dict[tuple[str, int], list[float]]


class PlainClassifier(PythonModel):
    """The usual way, as in MLflow's example of an image classifier: decode in a loop, then one `predict`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the network."""
        import carmodel.model.scale  # noqa: F401 (registers the layer)

        self.network = keras.saving.load_model(context.artifacts["model"], compile=False)

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Answer with the number of the best class, and the probability of each."""
        size = self.network.input_shape[1:3]
        photos = []
        for text in model_input["image"]:
            photo = Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")
            photos.append(np.asarray(photo.resize(size), np.uint8))
        probabilities = self.network.predict(np.stack(photos), verbose=0)
        columns = [f"p({i})" for i in range(probabilities.shape[1])]
        return pd.DataFrame(probabilities, columns=columns).assign(class_id=probabilities.argmax(1))


def main() -> None:
    """Measure and print the tables, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["50", "MobileNetV2"], help="depths, keras.applications names")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--photo_width", type=int, default=640, help="of the photos sent, in pixels")
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
    """Draw cars, `width` pixels wide, as Base64 of JPEG files."""
    drawn = sorted(sample.draw(folder, classes=8, photos=5, seed=0).glob("cars_t*/*.jpg"))[: max(BATCHES)]
    texts = []
    for photo in map(cv2.imread, map(str, drawn)):
        size = (width, width * photo.shape[0] // photo.shape[1])
        texts.append(base64.b64encode(cv2.imencode(".jpg", cv2.resize(photo, size))[1]).decode())
    return texts


def measure(name: str, arguments: argparse.Namespace, texts: list[str], folder: Path) -> None:
    """Measure one network in all ways and print its tables."""
    size = arguments.image_size
    network = resnet(int(name), CLASSES) if name.isdigit() else application(name, CLASSES)
    models = {way: mlflow.artifacts.download_artifacts(uri) for way, uri in log_all(network, size).items()}
    in_process: dict[str, Callable[[int], object]] = {}
    loaded = {way: mlflow.pyfunc.load_model(model) for way, model in models.items()}
    for way, model in loaded.items():
        in_process[way] = partial(predict, model, texts)
    photos = np.random.default_rng(0).integers(0, 256, (max(BATCHES), size, size, 3), np.uint8)
    for way, of in {LIMIT: FOLDED, LIMIT_UNFOLDED: UNFOLDED}.items():
        in_process[way] = partial(run, loaded[of].unwrap_python_model()._forward, photos)
    for way, of in {WHOLE: fold(network), WHOLE_UNFOLDED: network}.items():
        in_process[way] = partial(run_whole, traced(of), photos)
    in_process[DECODE] = partial(decode, texts, size)
    if fast_bfloat16():
        in_process[LIMIT_BFLOAT16] = partial(run, Forward(fold(network), size, bfloat16=True), photos)
        onednn_bfloat16(False)
    with ExitStack() as stack:
        servers = {way: stack.enter_context(serve(model, scratch(folder, way))) for way, model in models.items()}
        over_http = {way: partial(ask, server, texts) for way, server in servers.items()}
        http, local, processor = take_turns(over_http, in_process, arguments.rounds)
        started = {way: (server.start_seconds, server.memory() / 2**20) for way, server in servers.items()}
    title = f"ResNet-{name} with Scale" if name.isdigit() else name
    print(
        f"\n{title}, {size} px, photos {arguments.photo_width} px wide, {len(os.sched_getaffinity(0))} cores, "
        f"{arguments.rounds} rounds; rows/s: median (slowest to fastest)"
    )
    report(http, local)
    compare(http, local, processor)
    header("server", ("seconds from start to first answer", "memory after the rounds, MB"))
    for way, (seconds, megabytes) in started.items():
        print(f"| {way} | {seconds:.1f} | {megabytes:.0f} |", flush=True)


def log_all(network: keras.Model, size: int) -> dict[str, str]:
    """Log the network and its three classifiers: ``{way: URI}``."""
    facts = {"class_names": [f"Class {i}" for i in range(CLASSES)], "image_size": size, "crop": "none", "margin": 0.0}
    photos = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), np.uint8)
    with mlflow.start_run():
        trained = log_network(network, photos[:1], facts, {}).model_uri
    uris = {}
    for way in (FOLDED, UNFOLDED):
        with mlflow.start_run():
            settings = PackagePyfunc(model_uri=trained, folded=way == FOLDED)
            uris[way] = log_classifier(settings, photos)[0].model_uri
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
    """Make a folder of its own for each server."""
    folder = folder / f"{name}-{time.monotonic_ns()}"
    folder.mkdir()
    return folder


def ask(server: Endpoint, texts: list[str], rows: int) -> None:
    """Answer over HTTP."""
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[text] for text in texts[:rows]]}}).encode()
    status, answer = server.post(body)
    if status != 200 or len(json.loads(answer)["predictions"]) != rows:
        raise RuntimeError(f"the server answered {status}: {answer[:500]!r}")


def predict(model: mlflow.pyfunc.PyFuncModel, texts: list[str], rows: int) -> None:
    """Answer in this process, through MLflow's checks of the schema."""
    model.predict(pd.DataFrame({"image": texts[:rows]}))


def run(forward: Forward, photos: np.ndarray, rows: int) -> None:
    """Run the network alone, on photos that are ready."""
    forward(photos[:rows])


def traced(network: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """The network as one graph for each batch size: the bare forward pass, with nothing of ours around it."""
    return tf.function(lambda images: network(images, training=False), autograph=False)


def run_whole(call: Callable[[tf.Tensor], tf.Tensor], photos: np.ndarray, rows: int) -> None:
    """Run the network on all rows at once; TensorFlow divides each operation among the cores."""
    call(tf.constant(photos[:rows])).numpy()


def decode(texts: list[str], size: int, rows: int) -> None:
    """Only decode and resize, on one core: what must be done besides the forward pass."""
    for text in texts[:rows]:
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_COLOR_RGB)
        cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)


def take_turns(
    over_http: dict[str, Callable[[int], None]], in_process: dict[str, Callable[[int], None]], rounds: int
) -> tuple[Numbers, Numbers, Numbers]:
    """Time every way at every batch size once a round, after one round that does not count.

    Returns:
        Rows a second over HTTP and in process, and milliseconds of processor time a row in process.
    """
    http, local, processor = defaultdict(list), defaultdict(list), defaultdict(list)
    for turn in range(rounds + 1):
        for rows in BATCHES:
            for way, answer in over_http.items():
                seconds, _ = clock(answer, rows)
                http[way, rows].append(1 / seconds)
            for way, answer in in_process.items():
                seconds, used = clock(answer, rows)
                local[way, rows].append(1 / seconds)
                processor[way, rows].append(used * 1e3)
        if turn == 0:
            for numbers in (http, local, processor):
                numbers.clear()
    return http, local, processor


def clock(answer: Callable[[int], None], rows: int) -> tuple[float, float]:
    """Seconds a row, and seconds of this process's processor time a row, over at least eight rows."""
    requests = max(1, 8 // rows)
    began, used = time.perf_counter(), time.process_time()
    for _ in range(requests):
        answer(rows)
    total = requests * rows
    return (time.perf_counter() - began) / total, (time.process_time() - used) / total


def report(http: Numbers, local: Numbers) -> None:
    """Print the rates: medians, and in parentheses the slowest and the fastest round."""
    header("way", [f"batch {rows}" for rows in BATCHES])
    for where, rates in (("over HTTP", http), ("in process", local)):
        for way in dict.fromkeys(way for way, _ in rates):
            seen = [rates[way, rows] for rows in BATCHES]
            cells = [f"{median(rate):.1f} ({min(rate):.1f} to {max(rate):.1f})" for rate in seen]
            print(f"| {where}: {way} | {' | '.join(cells)} |")
    if (LIMIT_BFLOAT16, BATCHES[0]) not in local:
        print(f"| in process: {LIMIT_BFLOAT16} | " + " | ".join(["not available on this CPU"] * len(BATCHES)) + " |")


def compare(http: Numbers, local: Numbers, processor: Numbers) -> None:
    """Print the ratios of rates, and of the processor's time, which other programs on the machine disturb less."""
    both = {
        (LIMIT, rows): [a + b for a, b in zip(processor[LIMIT, rows], processor[DECODE, rows], strict=True)]
        for rows in BATCHES
    }
    header("ratio, median of the rounds", [f"batch {rows}" for rows in BATCHES])
    ratios = [
        ("over HTTP: ours, folded, of the plain pyfunc", http, FOLDED, http, PLAIN),
        ("in process: ours, folded, of the forward pass", local, FOLDED, local, LIMIT),
        ("in process: ours, folded, of one call of the whole batch", local, FOLDED, local, WHOLE),
        ("forward pass: folded, of unfolded", local, LIMIT, local, LIMIT_UNFOLDED),
        ("one call of the whole batch: folded, of unfolded", local, WHOLE, local, WHOLE_UNFOLDED),
        ("forward pass: bfloat16, of unfolded float32", local, LIMIT_BFLOAT16, local, LIMIT_UNFOLDED),
        ("processor time: forward pass, of ours, folded", processor, LIMIT, processor, FOLDED),
        ("processor time: forward pass and bare decoding, of ours, folded", both, LIMIT, processor, FOLDED),
        ("processor time: forward pass, unfolded, of folded", processor, LIMIT_UNFOLDED, processor, LIMIT),
        ("processor time: plain pyfunc, of ours, folded", processor, PLAIN, processor, FOLDED),
    ]
    for name, numbers, way, others, other in ratios:
        if (way, BATCHES[0]) in numbers:
            # Neighbours in time are compared, so that a machine that slows down is no result.
            pairs = [zip(numbers[way, rows], others[other, rows], strict=True) for rows in BATCHES]
            print(f"| {name} | " + " | ".join(f"{median(a / b for a, b in pair):.2f}" for pair in pairs) + " |")


def header(first: str, others: Sequence[str]) -> None:
    """Print the head of a table."""
    print(f"\n| {first} | {' | '.join(others)} |\n|---|" + "---|" * len(others))


if __name__ == "__main__":
    main()
