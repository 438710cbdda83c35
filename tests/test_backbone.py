"""Networks of keras.applications under our head."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from carmodel.errors import InputError
from carmodel.model.backbone import application, features, freeze, without_top
from carmodel.model.resnet import resnet
from carmodel.model.scale import Scale
from carmodel.parameters import APPLICATIONS

PREPROCESSING = {
    "VGG16": keras.applications.vgg16,  # caffe mode: BGR, mean subtracted
    "ResNet50": keras.applications.resnet50,  # caffe mode
    "DenseNet121": keras.applications.densenet,  # torch mode: mean and deviation of each channel
    "MobileNetV2": keras.applications.mobilenet_v2,  # tf mode: -1 to 1
    "MobileNetV3Small": keras.applications.mobilenet_v3,  # none, the network does it itself
    "EfficientNetB0": keras.applications.efficientnet,  # none
}


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    """Two random images, uint8 (2, 64, 64, 3)."""
    return np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)


def predict(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Forward pass in inference mode."""
    return keras.ops.convert_to_numpy(model(x, training=False))


@pytest.mark.parametrize("name", PREPROCESSING)
def test_photos_are_preprocessed_as_the_network_wants_them_also_after_saving(
    name: str, photos: np.ndarray, tmp_path: Path
) -> None:
    model = application(name, 5, 64)
    wanted = PREPROCESSING[name].preprocess_input(photos.astype("float32"))
    inside = keras.Model(model.input, model.get_layer("preprocess").output)
    np.testing.assert_allclose(predict(inside, photos), wanted, atol=1e-4)

    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", custom_objects={"Scale": Scale})
    inside = keras.Model(again.input, again.get_layer("preprocess").output)
    np.testing.assert_allclose(predict(inside, photos), wanted, atol=1e-4)
    wanted = predict(features(model), photos)
    np.testing.assert_allclose(predict(features(again), photos), wanted, atol=1e-5 * np.abs(wanted).max())


def test_the_settings_know_the_names_of_keras() -> None:
    assert list(APPLICATIONS) == sorted(name for name in dir(keras.applications) if name[0].isupper())


def test_an_image_too_small_for_a_network_is_an_error_that_names_both() -> None:
    with pytest.raises(InputError, match="Xception with image_size=16"):
        application("Xception", 5, 16)


def test_features_are_what_the_head_sees_and_share_its_weights(photos: np.ndarray) -> None:
    for model in (application("MobileNetV2", 5, 64), resnet(14, 5, 64, width=4)):
        head = model.get_layer("predictions")
        pooled = predict(features(model), photos)
        assert pooled.shape == (2, head.kernel.shape[0])
        np.testing.assert_allclose(keras.ops.convert_to_numpy(head(pooled)), predict(model, photos), atol=1e-5)


@pytest.mark.parametrize("family", ["application", "resnet"])
def test_freezing_leaves_the_head_and_only_the_head_to_training(family: str, photos: np.ndarray) -> None:
    model = application("MobileNetV2", 5, 64) if family == "application" else resnet(14, 5, 64, width=4)
    freeze(model)
    assert [w.path for w in model.trainable_weights] == ["predictions/kernel", "predictions/bias"]

    before, pooled = model.get_weights(), predict(features(model), photos)
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", jit_compile=False)
    model.train_on_batch(photos, np.array([1, 2]))
    changed = [w.path for w, old in zip(model.weights, before, strict=True) if (w.numpy() != old).any()]
    assert changed and set(changed) <= {"predictions/kernel", "predictions/bias"}
    np.testing.assert_array_equal(predict(features(model), photos), pooled)


def test_a_weights_file_fills_the_backbone(mobilenet_weights: Path, photos: np.ndarray) -> None:
    answer = predict(features(application("MobileNetV2", 5, 64, str(mobilenet_weights))), photos)
    reference = without_top("MobileNetV2", 64)
    reference.load_weights(mobilenet_weights)
    inputs = PREPROCESSING["MobileNetV2"].preprocess_input(photos.astype("float32"))
    wanted = predict(reference, inputs)
    # Rounding in float32 depends on the processor. It is a fraction of the largest feature, not of each feature.
    tolerance = 1e-4 * wanted.max()
    np.testing.assert_allclose(answer, wanted, rtol=0, atol=tolerance)

    layer = reference.get_layer("block_16_expand")
    layer.set_weights([1.001 * weight for weight in layer.get_weights()])
    assert np.abs(answer - predict(reference, inputs)).max() > 10 * tolerance, "slightly wrong weights must fail"


def test_a_file_that_is_missing_or_of_another_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file .*none\.h5"):
        application("MobileNetV2", 5, 64, str(tmp_path / "none.h5"))
    other = tmp_path / "other.weights.h5"
    without_top("MobileNet", 64).save_weights(other)
    with pytest.raises(ValueError, match=r"other\.weights\.h5.* is not a weights file of mobilenetv2"):
        application("MobileNetV2", 5, 64, str(other))
    other.write_bytes(b"not HDF5")
    with pytest.raises(ValueError, match=r"other\.weights\.h5.* is not a weights file of mobilenetv2"):
        application("MobileNetV2", 5, 64, str(other))


@pytest.mark.slow
def test_without_a_network_imagenet_weights_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    code = "from carmodel.model.backbone import application; application('MobileNetV2', 5, 64, 'imagenet')"
    nowhere = {"KERAS_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | nowhere,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert "InputError: weights: Keras could not download the imagenet weights of MobileNetV2" in run.stderr
    assert "give its path as weights" in run.stderr
