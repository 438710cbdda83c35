"""Networks of keras.applications, and saved networks, with this project's head."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from carmodel.errors import InputError
from carmodel.model.backbone import application, load_network, saved_backbone, without_top
from carmodel.model.folding import fold
from carmodel.model.half_precision import save_in_half_precision
from carmodel.model.head import features_of, logits_of
from carmodel.model.network import check_sizes, with_classes
from carmodel.model.resnet import resnet
from carmodel.parameters.applications import APPLICATIONS

PREPROCESSING = {
    "VGG16": keras.applications.vgg16,  # caffe mode: BGR, mean subtracted
    "DenseNet121": keras.applications.densenet,  # torch mode: mean and deviation of each channel
    "MobileNetV2": keras.applications.mobilenet_v2,  # tf mode: -1 to 1
    "MobileNetV3Small": keras.applications.mobilenet_v3,  # none, the network does it itself
}


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    """Two random images, uint8 (2, 64, 64, 3)."""
    return np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)


def predict(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Forward pass in inference mode."""
    return keras.ops.convert_to_numpy(model(x, training=False))


@pytest.mark.parametrize("name", PREPROCESSING)
def test_photos_are_preprocessed_as_the_network_requires_also_after_saving(
    name: str, photos: np.ndarray, tmp_path: Path
) -> None:
    model = application(name, 5)
    expected = PREPROCESSING[name].preprocess_input(photos.astype("float32"))
    inside = keras.Model(model.input, model.get_layer("preprocess").output)
    np.testing.assert_allclose(predict(inside, photos), expected, atol=1e-4)
    inside.save(tmp_path / "inside.keras")
    np.testing.assert_allclose(predict(keras.models.load_model(tmp_path / "inside.keras"), photos), expected, atol=1e-4)


def test_the_settings_know_the_names_of_keras() -> None:
    fixed_size = {"NASNetLarge", "NASNetMobile"}
    networks = {name for name in dir(keras.applications) if name[0].isupper()}
    assert fixed_size < networks and list(APPLICATIONS) == sorted(networks - fixed_size)


def test_keras_builds_nasnet_for_a_fixed_image_size_only() -> None:
    network = keras.applications.NASNetMobile(weights=None, include_top=False, input_shape=(None, None, 3))
    with pytest.raises(Exception, match="Incompatible shapes"):
        network(np.zeros((1, 96, 96, 3), np.float32))


def test_an_image_too_small_for_a_network_is_an_error_that_names_both() -> None:
    with pytest.raises(InputError, match="VGG16 cannot take images of 16 px"):
        check_sizes(application("VGG16", 5), [64, 16])


def test_features_are_what_the_head_sees_and_share_its_weights(photos: np.ndarray) -> None:
    for model in (application("MobileNetV2", 5), resnet(14, 5, width=4)):
        head = model.get_layer("logits")
        pooled = predict(features_of(model), photos)
        assert pooled.shape == (2, head.kernel.shape[0])
        np.testing.assert_allclose(predict(head, pooled), predict(logits_of(model), photos), atol=1e-5)


def test_a_network_of_keras_is_flat_and_takes_images_of_any_size(photos: np.ndarray) -> None:
    model = application("MobileNetV2", 5)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    assert predict(model, photos).shape == predict(model, photos[:, :48, :32]).shape == (2, 5)


@pytest.fixture
def trunk(tmp_path: Path) -> Path:
    """A saved network without its top: RGB 0 to 255 in, a feature map out."""
    keras.utils.set_random_seed(1)
    image = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 127, -1)(image)
    x = keras.layers.Conv2D(8, 3, strides=2, use_bias=False, name="stem_conv")(x)
    x = keras.layers.BatchNormalization(name="stem_bn")(x)
    keras.Model(image, keras.layers.ReLU()(x)).save(tmp_path / "trunk.keras")
    return tmp_path / "trunk.keras"


def test_a_saved_network_becomes_the_layers_below_the_head(trunk: Path, photos: np.ndarray) -> None:
    model = saved_backbone(trunk, 5, dropout=0.2)
    assert {"stem_conv", "stem_bn", "head_dropout", "logits"} <= {layer.name for layer in model.layers}
    expected = predict(load_network(trunk), photos.astype("float32")).mean(axis=(1, 2))
    np.testing.assert_allclose(predict(features_of(model), photos), expected, rtol=1e-5, atol=1e-6)


def test_a_network_that_normalises_its_input_as_it_has_seen_it_keeps_that(tmp_path: Path, photos: np.ndarray) -> None:
    normalise = keras.layers.Normalization()
    normalise.adapt(photos.astype(np.float32))
    x = image = keras.Input((None, None, 3))
    for layer in (normalise, keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization()):
        x = layer(x)
    own = keras.Model(image, x)
    own.save(tmp_path / "own.keras")
    expected = predict(own, photos.astype(np.float32)).mean(axis=(1, 2))
    network = saved_backbone(tmp_path / "own.keras", 5)
    network.save(tmp_path / "network.keras")
    others = with_classes(network, ["a"] * 5, ["b", "c"]), fold(network), load_network(tmp_path / "network.keras")
    for copy in (network, *others):
        np.testing.assert_allclose(predict(features_of(copy), photos), expected, rtol=1e-4, atol=1e-5)


def test_an_efficientnet_from_a_file_is_the_one_that_keras_downloads(tmp_path: Path) -> None:
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    published = without_top("EfficientNetB0")
    published.get_layer(normalization_of(published)).set_weights([mean, deviation**2, np.array(0)])
    published.save_weights(file := tmp_path / "efficientnetb0_notop.weights.h5")
    loaded = without_top("EfficientNetB0", str(file))
    name = normalization_of(loaded)
    seen = keras.Model(loaded.input, loaded.get_layer(name).output)
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype(np.float32)
    # Keras has a further layer for this if it downloads the weights.
    expected = (pixels / 255 - mean) / deviation / np.sqrt(deviation)
    np.testing.assert_allclose(predict(seen, pixels), expected, rtol=1e-4, atol=1e-5)


def normalization_of(network: keras.Model) -> str:
    (name,) = [layer.name for layer in network.layers if isinstance(layer, keras.layers.Normalization)]
    return name


def test_a_dropout_within_a_saved_network_is_not_that_of_the_head(tmp_path: Path, photos: np.ndarray) -> None:
    image = keras.Input((None, None, 3))
    x = keras.layers.Dropout(0.5, name="dropout")(keras.layers.Conv2D(8, 3, name="stem_conv")(image))
    keras.Model(image, keras.layers.Conv2D(4, 3, name="conv")(x)).save(tmp_path / "trunk.keras")
    for rate in (0.0, 0.2):
        model = saved_backbone(tmp_path / "trunk.keras", 5, dropout=rate)
        assert predict(features_of(model), photos).shape == (2, 4)


def test_a_file_that_is_no_backbone_is_named(trunk: Path, tmp_path: Path) -> None:
    fixed, broken = tmp_path / "fixed.keras", tmp_path / "broken.keras"
    keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()]).save(fixed)
    broken.write_bytes(trunk.read_bytes()[:-100])
    for file, complaint in (
        (fixed, "must take images"),
        (broken, "is not a Keras model"),
        (Path("no.keras"), "no such"),
    ):
        with pytest.raises(InputError, match=complaint) as error:
            saved_backbone(file, 5)
        assert str(file) in str(error.value)


def test_half_precision_halves_the_file_and_keeps_vectors_exact(tmp_path: Path) -> None:
    model = resnet(14, 5, width=16)
    model.save(tmp_path / "whole.keras")
    save_in_half_precision(model, half := tmp_path / "half.keras")
    assert half.stat().st_size < 0.6 * (tmp_path / "whole.keras").stat().st_size
    for kept, weight in zip(load_network(half).weights, model.weights, strict=True):
        assert kept.dtype == "float32"
        rounded = weight.numpy() if len(weight.shape) < 2 else weight.numpy().astype("float16")
        np.testing.assert_array_equal(kept.numpy(), rounded)


def test_a_weights_file_fills_the_backbone(mobilenet_weights: Path, photos: np.ndarray) -> None:
    answer = predict(features_of(application("MobileNetV2", 5, str(mobilenet_weights))), photos)
    reference = without_top("MobileNetV2")
    reference.load_weights(mobilenet_weights)
    inputs = PREPROCESSING["MobileNetV2"].preprocess_input(photos.astype("float32"))
    expected = predict(reference, inputs)
    # Rounding in float32 depends on the processor. It is a fraction of the largest feature, not of each feature.
    tolerance = 1e-4 * expected.max()
    np.testing.assert_allclose(answer, expected, rtol=0, atol=tolerance)

    layer = reference.get_layer("block_16_expand")
    layer.set_weights([1.001 * weight for weight in layer.get_weights()])
    assert np.abs(answer - predict(reference, inputs)).max() > 10 * tolerance, "slightly wrong weights must fail"


def test_a_file_that_is_missing_or_of_another_network_is_named(tmp_path: Path) -> None:
    other, damaged = tmp_path / "other.weights.h5", tmp_path / "damaged.weights.h5"
    without_top("MobileNet").save_weights(other)
    damaged.write_bytes(b"not HDF5")
    wrong = "is not a weights file of mobilenetv2"
    for file, complaint in ((tmp_path / "none.h5", "no file"), (other, wrong), (damaged, wrong)):
        with pytest.raises(InputError, match=complaint) as error:
            application("MobileNetV2", 5, str(file))
        assert file.name in str(error.value)


@pytest.mark.slow
def test_without_internet_imagenet_weights_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    code = "from carmodel.model.backbone import application; application('MobileNetV2', 5, 'imagenet')"
    offline = os.environ | {"KERAS_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=offline, capture_output=True, text=True, check=False, timeout=300)
    assert "InputError: weights: Keras could not download the imagenet weights of MobileNetV2" in run.stderr
    assert "give its path as weights" in run.stderr
