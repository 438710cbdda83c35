"""Classify photos: this project's classifier beside a plain pyfunc, and its network beside Keras and OpenVINO."""

import base64
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import keras
import mlflow
import numpy as np
import pandas as pd

from benchmarks import networks
from benchmarks.given import Given
from benchmarks.networks import Subject
from benchmarks.peers import MISSING, PeerError, Peers, peers
from benchmarks.photos import photos
from benchmarks.turns import Competitor, Table, Work, rate, take_turns
from carmodel.data.images import prepare
from carmodel.data.threads import cores
from carmodel.mlflow_model import log_network
from carmodel.model.head import with_mirror_image
from carmodel.parameters import PackagePyfunc
from carmodel.serving.forward import Forward
from carmodel.serving.onnx_engine import OnnxEngine, open_session
from carmodel.serving.packaging import log_classifier
from carmodel.tracking.digests import ROOT
from carmodel.tracking.paths import PRETRAINED
from tests.endpoint import Server, serve

TITLE = "Inference"
BATCHES = (1, 8, 32)
SIZE = 224
OURS, PLAIN, FORWARD, OPENVINO, LIMIT = (
    "carmodel",
    "plain pyfunc",
    "carmodel: Forward",
    "OpenVINO",
    "one call of ONNX Runtime",
)

Answer = Callable[[int], object]
"""Answer the first rows."""


def measure(given: Given) -> list[Table]:
    """Measure all ways with each network."""
    files = [Path(path).read_bytes() for path in photos(given, max(BATCHES)).photos["path"]]
    mlflow.set_tracking_uri(f"sqlite:///{given.folder}/mlflow.db")
    experiment = mlflow.create_experiment("bench", artifact_location=(given.folder / "artifacts").as_uri())
    mlflow.set_experiment(experiment_id=experiment)
    facts = json.loads(PRETRAINED.with_suffix(".json").read_text())
    tables = []
    for name, size in {"residual": SIZE, "mobile": SIZE, "shipped": facts["image_size"]}.items():
        images = np.stack([prepare(data, size) for data in files])
        subject = networks.shipped(facts["flip"]) if name == "shipped" else getattr(networks, name)(images)
        folder = given.folder / name
        folder.mkdir()
        with ExitStack() as stack:
            tables += of_network(
                subject, files, images, folder, stack.enter_context(peers(given)), rounds=given.rounds()
            )
        keras.utils.clear_session(free_memory=True)
    return tables


def of_network(
    subject: Subject, files: list[bytes], images: np.ndarray, folder: Path, process: Peers | None, *, rounds: int
) -> list[Table]:
    """Measure a network over HTTP, in process from Base64, and alone on prepared photos."""
    models = log_all(subject, images, folder)
    loaded = {name: mlflow.pyfunc.load_model(model) for name, model in models.items()}
    artifacts = Path(models[OURS]) / "artifacts"
    forward = Forward(OnnxEngine(artifacts / "model.onnx"), images.shape[1])
    bare = open_session(artifacts / "model.onnx", cores())
    name = bare.get_inputs()[0].name
    texts = [base64.b64encode(data).decode() for data in files]
    expected = forward(images)
    remarks = check_plain(loaded, images) + check(subject.peer_name, subject.peer(images), expected)
    openvino, more = openvino_competitor(artifacts / "model.onnx", images, expected, folder, process)

    def competitor(name: str, role: str, answer: Answer) -> Competitor:
        return Competitor(name, role, cores(), {f"batch {rows}": rows_rate(answer, rows) for rows in BATCHES})

    with ExitStack() as stack:

        def start(name: str) -> Server:
            return stack.enter_context(serve(models[name], fresh(folder, name)))

        with ThreadPoolExecutor() as pool:  # at the same time
            servers = dict(zip(models, pool.map(start, models), strict=True))
        http = [competitor(f"{name}, HTTP", "ours", partial(ask, server, texts)) for name, server in servers.items()]
        local = [competitor(f"{name}, pyfunc", "ours", partial(ask_here, loaded[name], texts)) for name in loaded]
        alone = [
            competitor(FORWARD, "ours", lambda rows: forward(images[:rows])),
            competitor(subject.peer_name, "peer", lambda rows: subject.peer(images[:rows])),
            openvino,
            competitor(LIMIT, "limit", lambda rows: bare.run(None, {name: images[:rows]})),
        ]
        measured = {entry.name: entry for entry in take_turns([*http, *local, *alone], rounds)}
    limit = replace(measured[FORWARD], name="forward pass of prepared photos", role="limit")
    photo = f"photos of {np.mean([len(data) for data in files]) / 1e3:.0f} kB to {images.shape[1]} px"

    def table(where: str, kind: str, headline: str) -> Table:
        entries = [measured[f"{OURS}, {kind}"], replace(measured[f"{PLAIN}, {kind}"], role="peer"), limit]
        return Table(f"{subject.name} {where}, {photo}", "rows/s", entries, remarks[:1], headline, "batch 32")

    return [
        table("over HTTP, Base64", "HTTP", f"{subject.name} over HTTP, 32 rows"),
        table("in process, Base64", "pyfunc", ""),
        Table(
            f"{subject.name} alone, prepared photos of {images.shape[1]} px",
            "rows/s",
            [measured[one.name] for one in alone],
            remarks[1:] + more,
            f"{subject.name}, forward pass of 32 rows",
            "batch 32",
        ),
    ]


def log_all(subject: Subject, images: np.ndarray, folder: Path) -> dict[str, str]:
    """Log the classifier of this project and the plain one, and return their directories."""
    plain_network = with_mirror_image(subject.network) if subject.flip else subject.network
    plain_network.save(plain_file := folder / "plain.keras")
    names = [f"Class {i}" for i in range(subject.network.output_shape[-1])]
    facts = {"class_names": names, "image_size": images.shape[1], "crop": "none", "margin": 0.0}
    with mlflow.start_run():
        trained = log_network(subject.network, images[:1], facts, {}).model_uri
    with mlflow.start_run():
        ours = log_classifier(PackagePyfunc(model_uri=trained, flip=subject.flip), images[:8])[0].model_uri
    with mlflow.start_run():
        plain = mlflow.pyfunc.log_model(
            name="plain",
            python_model=str(Path(__file__).with_name("plain_pyfunc.py")),
            artifacts={"model": str(plain_file)},
            model_config={"image_size": images.shape[1]},
            code_paths=[str(ROOT / "carmodel")],
            pip_requirements=["mlflow"],
        ).model_uri
    return {name: mlflow.artifacts.download_artifacts(uri) for name, uri in {OURS: ours, PLAIN: plain}.items()}


def openvino_competitor(
    onnx: Path, images: np.ndarray, expected: np.ndarray, folder: Path, process: Peers | None
) -> tuple[Competitor, list[str]]:
    """Load the served network into OpenVINO, check its answers, and return it with a sentence."""
    if not process:
        return Competitor(OPENVINO, "peer", cores(), {}, MISSING), []
    arguments = {"onnx": str(onnx), "threads": cores(), "images": str(folder / "images.npy")}
    np.save(arguments["images"], images)
    out = str(folder / "openvino.npy")
    try:
        process.call("answers", out=out, **arguments)
        name = f"{OPENVINO} {process.call('versions', packages=['openvino'])[0]}"
    except PeerError as error:
        return Competitor(OPENVINO, "peer", cores(), {}, str(error)), []
    infer = partial(process.call, "infer", **arguments)
    works = {f"batch {rows}": partial(engine_rate, infer, rows) for rows in BATCHES}
    return Competitor(name, "peer", cores(), works), check(OPENVINO, np.load(out), expected)


def engine_rate(infer: Callable[..., float], rows: int) -> float:
    """Return rows per second of an engine in the peers' process, which reads the clock itself."""
    times = requests(rows)
    return rows * times / infer(rows=rows, times=times)


def requests(rows: int) -> int:
    """Return how many requests make at least four rows."""
    return max(1, 4 // rows)


def rows_rate(answer: Answer, rows: int) -> Work:
    """Return a function that answers at least four rows, after one that is not timed, and returns rows per second."""
    timed = rate(rows * requests(rows), lambda: [answer(rows) for _ in range(requests(rows))])

    def work() -> float:
        answer(1)  # wakes the threads, and moves those of the competitor before out of the way
        return timed()

    return work


def fresh(folder: Path, name: str) -> Path:
    """Create a directory for a server."""
    (folder / f"server-{name}").mkdir()
    return folder / f"server-{name}"


def ask(server: Server, texts: list[str], rows: int) -> None:
    """Request answers for the first rows over HTTP."""
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[text] for text in texts[:rows]]}}).encode()
    status, answer = server.post(body)
    if status != 200 or len(json.loads(answer)["predictions"]) != rows:
        raise RuntimeError(f"the server answered {status}: {answer[:500]!r}")


def ask_here(model: mlflow.pyfunc.PyFuncModel, texts: list[str], rows: int) -> pd.DataFrame:
    """Answer the first rows in this process."""
    return model.predict(pd.DataFrame({"image": texts[:rows]}))


def check_plain(loaded: dict[str, mlflow.pyfunc.PyFuncModel], images: np.ndarray) -> list[str]:
    """Compare both classifiers on photos that need no resizing, and return a sentence."""
    files = [cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes() for image in images]
    texts = [base64.b64encode(data).decode() for data in files]
    ours, plain = (ask_here(loaded[name], texts, len(texts)) for name in (OURS, PLAIN))
    theirs = [plain[f"p({label})"].iloc[row] for row, label in enumerate(ours["class_id"])]
    change = np.abs(np.array(theirs) - ours["probability"].to_numpy(float)).max()
    agree = (plain["class_id"].to_numpy() == ours["class_id"].to_numpy(int)).mean()
    return [f"{PLAIN}, on photos that need no resizing: {difference(change, agree)}"]


def check(name: str, answers: np.ndarray, expected: np.ndarray) -> list[str]:
    """Compare the probabilities of a way with those of this project, and return a sentence."""
    agree = (answers.argmax(-1) == expected.argmax(-1)).mean()
    return [f"{name}: {difference(np.abs(answers - expected).max(), agree)}"]


def difference(change: float, agree: float) -> str:
    """Return a sentence on how much answers differ."""
    return f"a probability differs by at most {change:.0e}, and {agree:.0%} of the classes agree."
