"""The forward pass: any number of photos, no tracing after the start, from many threads, with both engines."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carmodel.errors import InputError
from carmodel.serving import forward as forward_module
from carmodel.serving.forward import Forward, load_engine
from carmodel.serving.onnx_engine import OnnxEngine
from carmodel.serving.onnx_export import to_onnx
from carmodel.serving.tensorflow_engine import GPU_SIZES, TensorFlowEngine


class Tally(keras.layers.Layer):
    """Counts how often it is traced."""

    traced = 0

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        self.traced += 1
        return x


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((4, 4, 3), dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(Tally(name="tally")(image)))
    return keras.Model(image, keras.layers.Dense(5, activation="softmax")(x))


@pytest.fixture(scope="module", params=["onnx", "tensorflow"])
def forward(network: keras.Model, request: pytest.FixtureRequest) -> Forward:
    engine = OnnxEngine(to_onnx(network, 4)) if request.param == "onnx" else TensorFlowEngine(network, 4)
    return Forward(engine, 4)


def photos(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 4, 4, 3), np.uint8)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(0, 100))
def test_any_number_of_photos_gets_the_network_s_answers(network: keras.Model, forward: Forward, rows: int) -> None:
    answers = forward(photos(rows))
    assert answers.shape == (rows, 5)
    if rows:
        np.testing.assert_allclose(answers, network(photos(rows)).numpy(), atol=1e-6)


def test_no_number_of_photos_traces_the_network_again(network: keras.Model, forward: Forward) -> None:
    before = network.get_layer("tally").traced
    for rows in (1, 2, 3, 31, 32, 33, 100):
        forward(photos(rows))
    assert network.get_layer("tally").traced == before


def test_threads_get_their_own_answers(network: keras.Model, forward: Forward) -> None:
    requests = [photos(1 + seed % 7, seed) for seed in range(60)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(forward, requests))
    for request, answer in zip(requests, answers, strict=True):
        np.testing.assert_allclose(answer, network(request).numpy(), atol=1e-6)


def test_images_that_are_alone_and_beside_others_get_the_same_answers(network: keras.Model) -> None:
    engine = OnnxEngine(to_onnx(network, 4))
    alone = engine.run(photos(1))
    engine._running = 1
    np.testing.assert_allclose(engine.run(photos(1)), alone, atol=1e-6)
    assert engine._running == 1


def test_the_constants_of_a_normalization_are_in_the_onnx_model() -> None:
    image = keras.Input((4, 4, 3), dtype="uint8")
    x = keras.layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 5.0, 6.0])(image)
    network = keras.Model(image, keras.layers.GlobalAveragePooling2D()(x))
    engine = OnnxEngine(to_onnx(network, 4))
    np.testing.assert_allclose(engine.run(photos(2)), network(photos(2)).numpy(), atol=1e-5)


@pytest.fixture(scope="module")
def artifacts(network: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("artifacts")
    image = keras.Input((4, 4, 3), dtype="uint8")
    plain = keras.Model(image, keras.layers.Dense(5, activation="softmax")(keras.layers.Flatten()(image)))
    plain.save(folder / "model.keras")
    (folder / "model.onnx").write_bytes(to_onnx(plain, 4))
    return {"model": str(folder / "model.keras"), "onnx": str(folder / "model.onnx")}


def test_onnx_runtime_runs_a_classifier_that_has_an_onnx_file(artifacts: dict[str, str]) -> None:
    assert isinstance(load_engine(artifacts, 4, "float32"), OnnxEngine)


def test_tensorflow_runs_a_classifier_of_an_earlier_version(artifacts: dict[str, str]) -> None:
    engine = load_engine({"model": artifacts["model"]}, 4, "float32")
    assert isinstance(engine, TensorFlowEngine)
    np.testing.assert_allclose(engine.run(photos(2)), OnnxEngine(Path(artifacts["onnx"])).run(photos(2)), atol=1e-6)


@pytest.mark.parametrize("found", [1, 0])
def test_tensorflow_runs_a_classifier_only_on_a_gpu_that_it_sees(
    artifacts: dict[str, str], found: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward_module, "NVIDIA_DEVICE", tmp_path)
    monkeypatch.setattr("carmodel.training.precision.gpus", lambda: found)
    monkeypatch.setattr("carmodel.serving.tensorflow_engine.gpus", lambda: found)
    engine = load_engine(artifacts, 4, "float32")
    assert engine.sizes == (GPU_SIZES if found else (1,))


@pytest.mark.parametrize("damaged", ["onnx", "model"])
def test_a_damaged_classifier_is_named_with_the_command_that_makes_a_new_one(
    artifacts: dict[str, str], damaged: str, tmp_path: Path
) -> None:
    (file := tmp_path / Path(artifacts[damaged]).name).write_bytes(Path(artifacts[damaged]).read_bytes()[:100])
    with pytest.raises(InputError, match=f"{file} cannot be loaded: .*mlflow run . -e package_pyfunc"):
        load_engine({damaged: str(file), "model": str(file)}, 4, "float32")


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    artifacts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "carmodel.serving.onnx_engine")
    with pytest.raises(InputError, match=r"needs the package onnxruntime.*pip install -r .*requirements.txt"):
        load_engine(artifacts, 4, "float32")
