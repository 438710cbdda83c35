"""The network that the parameters of a training ask for."""

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest

import carmodel.model
from carmodel.model.backbone import features
from carmodel.model.network import build
from carmodel.parameters import Train

SMALL = {"depth": 14, "width": 4}


@pytest.fixture
def photos() -> np.ndarray:
    """Two random images, uint8 (2, 32, 32, 3)."""
    return np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def mixed_bfloat16() -> Iterator[None]:
    """Set the dtype policy for one test."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("params", [Train(**SMALL), Train(backbone="MobileNetV2")], ids=["resnet", "application"])
def test_uint8_photos_go_in_and_float32_probabilities_come_out(params: Train, photos: np.ndarray) -> None:
    model = build(params, 5, 32)
    assert (model.inputs[0].name, model.inputs[0].dtype, model.layers[-1].name) == ("image", "uint8", "predictions")
    y = keras.ops.convert_to_numpy(model(photos))
    assert y.shape == (2, 5) and y.dtype == np.float32
    np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.usefixtures("mixed_bfloat16")
@pytest.mark.parametrize("params", [Train(**SMALL), Train(backbone="MobileNetV2")], ids=["resnet", "application"])
def test_under_mixed_precision_the_body_is_bfloat16_and_the_ends_are_not(params: Train, photos: np.ndarray) -> None:
    model = build(params, 5, 32)
    assert features(model).outputs[0].dtype == "bfloat16"
    assert model.layers[1].compute_dtype == "float32"
    assert {w.dtype for w in model.trainable_weights} == {"float32"}
    y = keras.ops.convert_to_numpy(model(photos))
    assert y.dtype == np.float32 and np.isfinite(y).all()


@pytest.mark.parametrize("params", [Train(**SMALL), Train(backbone="MobileNetV2")], ids=["resnet", "application"])
def test_freeze_leaves_only_the_head_to_training(params: Train) -> None:
    model = build(params.model_copy(update={"freeze": True}), 5, 32)
    assert [w.path for w in model.trainable_weights] == ["predictions/kernel", "predictions/bias"]


def test_weights_fill_either_family(mobilenet_weights: Path, tmp_path: Path) -> None:
    first = build(Train(**SMALL), 5, 32)
    first.save(tmp_path / "first.keras")
    second = build(Train(**SMALL, weights=str(tmp_path / "first.keras")), 5, 32)
    np.testing.assert_array_equal(second.get_layer("stem_conv1").kernel.numpy(), first.get_layer("stem_conv1").kernel)
    model = build(Train(backbone="MobileNetV2", weights=str(mobilenet_weights)), 5, 32)
    assert model.layers[2].get_layer("bn_Conv1").moving_variance.numpy().std() > 0


def test_the_same_seed_gives_the_same_weights() -> None:
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        models.append(build(Train(**SMALL), 5, 32).get_weights())
    for first, second in zip(*models, strict=True):
        np.testing.assert_array_equal(first, second)


def test_the_package_imports_keras_and_no_backend_of_it() -> None:
    for path in Path(carmodel.model.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in {"tensorflow", "jax", "torch", "mlflow", "horovod", "pyspark"}, path
                assert not name.startswith("keras.src"), path


@pytest.mark.slow
def test_the_network_runs_under_jax() -> None:
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed; the package needs it only for KERAS_BACKEND=jax")
    code = (
        "import keras, numpy as np\n"
        "from carmodel.model.network import build\n"
        "from carmodel.parameters import Train\n"
        "assert keras.backend.backend() == 'jax'\n"
        "model = build(Train(depth=14, width=4), 5, 32)\n"
        "y = model.predict_on_batch(np.zeros((2, 32, 32, 3), 'uint8'))\n"
        "assert y.shape == (2, 5) and np.allclose(y.sum(1), 1)\n"
    )
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"KERAS_BACKEND": "jax"}, check=True, timeout=300)
