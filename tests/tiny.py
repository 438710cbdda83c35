"""A small untrained classifier of the drawn sample's classes, and the endpoint that answers with it."""

import secrets
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from carmodel.data.images import Box, prepare
from carmodel.data.sample import class_names
from carmodel.serving.scoring_server import running_server

SIZE = 32
MARGIN = 0.1
NAMES = class_names(8)


@dataclass(frozen=True)
class Endpoint:
    """A running server: its address, its process, the model's folder and the network inside."""

    address: str
    process: subprocess.Popen[bytes]
    model: Path
    network: Any

    def expected(self, photo: bytes, box: Box | None = None) -> np.ndarray:
        """Probabilities (C,) by way of preprocess and the bare network."""
        return self.network.predict_on_batch(prepare(photo, SIZE, box, MARGIN)[None])[0]


def tiny_network() -> Any:
    import keras

    from carmodel.model.resnet import resnet

    keras.utils.set_random_seed(3)
    return resnet(14, len(NAMES), width=8)


def log_tiny(network: Any, **settings: Any) -> str:
    """Log the classifier in the active run, with these parameters of package_pyfunc; its URI."""
    import mlflow

    from carmodel.parameters import PackagePyfunc
    from carmodel.serving.packaging import log_classifier
    from carmodel.tracking.digests import ROOT

    model = mlflow.tensorflow.log_model(
        network,
        name="model",
        metadata={"class_names": NAMES, "image_size": SIZE, "crop": "box", "margin": MARGIN},
        code_paths=[str(ROOT / "carmodel")],
        pip_requirements=["keras"],
    )
    photos = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
    info, _ = log_classifier(PackagePyfunc(model_uri=model.model_uri, **settings), photos)
    return info.model_uri


@contextmanager
def tiny_endpoint(folder: Path) -> Iterator[Endpoint]:
    """The classifier behind a real `mlflow models serve`, with all its files in `folder`."""
    import mlflow

    from tests.tracked import tracked_in

    network = tiny_network()
    with tracked_in(folder), mlflow.start_run():
        model = mlflow.artifacts.download_artifacts(log_tiny(network), dst_path=str(folder / "model"))
    with (folder / "log").open("wb") as log, running_server(model, free_port(), log) as (address, process):
        yield Endpoint(address, process, Path(model), network)


def free_port() -> int:
    """Return a port that no server has, below those that the system gives to clients, which may take one at any time."""
    while True:
        port = secrets.choice(range(20_000, 32_000))
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
