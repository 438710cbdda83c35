"""Options and fixtures that the whole suite shares."""

import os
import random
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

# Each worker of pytest-xdist has a core for itself. These are read when the libraries are imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

from carmodel.data import sample as built_in
from tests.preloaded import preloaded
from tests.stores import store_of
from tests.tiny import Endpoint, tiny_endpoint

# Tests interrupt programs, which would inherit that a shell's background jobs ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# albumentations asks a server for a newer version when it is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


# Workers inherit the variable.
SEED = int(os.environ.setdefault("CARMODEL_SEED", str(random.randrange(10**6))))
# Their tests start several busy processes: ranks of a training, or a Spark cluster.
CROWDED = {
    "test_distributed",
    "test_distributed_training",
    "test_end_to_end",
    "test_launch",
    "test_launch_spark",
    "test_notebook",
    "test_spark",
}
# Their tests share an endpoint with those in tests/cloud, which share servers and interpreters.
SERVED = {"test_classifier", "test_load", "test_packaging"}
# They take the longest alone. One that started last would keep one of two workers waiting.
LONG = {"test_fit", "test_page", "test_sweep"}


def pytest_report_header() -> str:
    return f"modules in random order: CARMODEL_SEED={SEED} repeats it"


def group_of(module: Path) -> str:
    """Return the name of the modules that run on the same worker: a group, or the module alone."""
    if module.stem in CROWDED:
        return "crowded"
    return "served" if module.stem in SERVED or module.parent.name == "cloud" else str(module)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Shuffle the modules. The two large groups go first, one to each of two workers, and then the long modules."""
    modules = sorted({item.path for item in items})
    random.Random(SEED).shuffle(modules)
    rank = {"crowded": 0, "served": 1}

    def place(module: Path) -> tuple[int, int]:
        return rank.get(group_of(module), 2 if module.stem in LONG else 3), modules.index(module)

    items.sort(key=lambda item: place(item.path))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `pytest -n 2`, run each group of modules on one worker."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(Path(super()._split_scope(nodeid)))

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.fixture(scope="module", autouse=True)
def process_state() -> Iterator[None]:
    """Give the next module the environment, working directory and MLflow settings that this one found."""
    environment, folder = dict(os.environ), Path.cwd()
    yield
    os.chdir(folder)
    if "mlflow" in sys.modules:
        import mlflow

        mlflow.set_tracking_uri(environment.get("MLFLOW_TRACKING_URI"))
        mlflow.set_registry_uri(environment.get("MLFLOW_REGISTRY_URI"))
        mlflow.tracking.fluent._active_experiment_id = None
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def _from_environment(variable: str, what: str) -> Path:
    if not (value := os.environ.get(variable)):
        pytest.skip(f"no real data here: set {variable} to {what}")
    path = Path(value)
    assert path.exists(), f"{variable}={value}: no such file or folder"
    return path


@pytest.fixture(scope="session")
def photos() -> Path:
    """Folder of real photos in the Stanford Cars layout."""
    return _from_environment("CARMODEL_PHOTOS", "a folder in the Stanford Cars layout")


@pytest.fixture(scope="session")
def mobilenet_weights() -> Path:
    """Keras weights of a MobileNetV2 without top."""
    return _from_environment("CARMODEL_WEIGHTS", "MobileNetV2's notop .weights.h5")


@pytest.fixture(scope="session")
def commands() -> Iterator[str]:
    """Folder of a `python` and an `mlflow` that start at once."""
    with TemporaryDirectory(prefix="carmodel-") as folder, preloaded(Path(folder)) as path:
        yield path


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small drawn data set in the official layout: 3 classes, 10 photos each."""
    return built_in.draw(tmp_path_factory.mktemp("sample"), classes=3, photos=10, seed=0)


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """Twelve smooth pictures of two classes; every fourth is a validation row."""
    path = tmp_path / "train.h5"
    ramp = np.linspace(0, 200, 16)
    images = np.stack(
        [
            np.stack([ramp[:, None] + 0 * ramp, 0 * ramp[:, None] + ramp, np.full((16, 16), 4 * i)], -1)
            for i in range(12)
        ]
    )
    rows = np.arange(12)
    store_of(path, images.astype(np.uint8), rows % 2, ["a", "b"], rows % 4 == 0, note="synthetic")
    return path


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """A small untrained classifier behind a real `mlflow models serve`."""
    with tiny_endpoint(tmp_path_factory.mktemp("endpoint")) as running:
        yield running


@pytest.fixture(scope="module")
def network() -> Any:
    """A small untrained network, as a `keras.Model`."""
    from tests.classified import small_network

    return small_network()


@pytest.fixture(scope="module")
def classifier(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The classifier of `network`, loaded in this process."""
    from tests.classified import small_classifier

    return small_classifier(network, tmp_path_factory.mktemp("classifier"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[pytest.TestReport]:
    """A skip whose reason matches CARMODEL_NO_SKIP, which .ci/run sets, is a failure."""
    report = yield
    must = os.environ.get("CARMODEL_NO_SKIP")
    if must and report.skipped and isinstance(report.longrepr, tuple) and re.search(must, report.longrepr[2]):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} may not be skipped here: {report.longrepr[2]}"
    return report
