"""Fixtures that the whole suite shares: a drawn sample, and real photos where the environment names them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from carmodel.data import sample as built_in
from tests.tiny import Endpoint, tiny_endpoint


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
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small drawn data set in the official layout: 3 classes, 10 photos each."""
    return built_in.draw(tmp_path_factory.mktemp("sample"), classes=3, photos=10, seed=0)


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """A small untrained classifier behind a real `mlflow models serve`."""
    with tiny_endpoint(tmp_path_factory.mktemp("endpoint")) as running:
        yield running


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> None:
    """Where CARMODEL_NO_SKIP is set, as .ci/run does beside real photos, a skip is a failure."""
    if os.environ.get("CARMODEL_NO_SKIP") and call.excinfo and call.excinfo.errisinstance(pytest.skip.Exception):
        pytest.fail(f"{item.nodeid} was skipped although nothing may be: {call.excinfo.value}")
