"""The network that the parameters of a training ask for."""

from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest

from carmodel.errors import InputError
from carmodel.model.head import features_of, head_weights, with_mirror_image
from carmodel.model.network import build, with_classes
from carmodel.parameters import Train

SMALL = {"depth": 14, "width": 4}
NAMES = ["a", "b", "c", "d", "e"]


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


@pytest.mark.parametrize("size", [32, 33, 64])
@pytest.mark.parametrize("params", [Train(**SMALL), Train(backbone="MobileNetV2")], ids=["resnet", "application"])
def test_uint8_photos_of_any_size_go_in_and_float32_probabilities_come_out(params: Train, size: int) -> None:
    model = build(params, NAMES)
    assert (model.inputs[0].name, model.inputs[0].dtype, model.layers[-1].name) == ("image", "uint8", "predictions")
    y = keras.ops.convert_to_numpy(model(np.random.default_rng(1).integers(0, 256, (2, size, size, 3), np.uint8)))
    assert y.shape == (2, 5) and y.dtype == np.float32
    np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.usefixtures("mixed_bfloat16")
@pytest.mark.parametrize("params", [Train(**SMALL), Train(backbone="MobileNetV2")], ids=["resnet", "application"])
def test_under_mixed_precision_the_body_is_bfloat16_and_the_ends_are_not(params: Train, photos: np.ndarray) -> None:
    model = build(params, NAMES)
    assert features_of(model).outputs[0].dtype == "bfloat16"
    assert model.layers[1].compute_dtype == "float32"
    assert {w.dtype for w in model.trainable_weights} == {"float32"}
    y = keras.ops.convert_to_numpy(model(photos))
    assert y.dtype == np.float32 and np.isfinite(y).all()


@pytest.mark.usefixtures("mixed_bfloat16")
def test_saved_networks_take_the_precision_of_the_process(photos: np.ndarray, tmp_path: Path) -> None:
    keras.config.set_dtype_policy("float32")
    source = build(Train(**SMALL), NAMES)
    features_of(source).save(file := tmp_path / "trunk.keras")
    keras.config.set_dtype_policy("mixed_bfloat16")
    for network in (build(Train(**SMALL), NAMES, init=(source, NAMES)), build(Train(backbone=str(file)), NAMES)):
        assert features_of(network).outputs[0].dtype == "bfloat16"
        assert network.layers[1].compute_dtype == "float32", "16 bits would round pixels"
    keras.config.set_dtype_policy("float32")
    again = build(Train(**SMALL), NAMES, init=(network, NAMES))
    assert {layer.compute_dtype for layer in again.layers[1:]} == {"float32"}
    np.testing.assert_allclose(features_of(again)(photos), features_of(source)(photos), rtol=1e-5, atol=1e-5)


def test_unfreeze_trains_the_head_or_all_from_a_layer_on() -> None:
    head = build(Train(**SMALL, unfreeze="head"), NAMES)
    assert [w.path for w in head.trainable_weights] == ["logits/kernel", "logits/bias"]
    last = build(Train(**SMALL, unfreeze="stage5_block1_conv1"), NAMES)
    assert {w.path.split("_")[0] for w in last.trainable_weights} == {"stage5", "logits/kernel", "logits/bias"}
    with pytest.raises(InputError, match=r"unfreeze=stage9: the network has no such layer.*stage2_block1"):
        build(Train(**SMALL, unfreeze="stage9"), NAMES)
    with pytest.raises(InputError, match="unfreeze=predictions: no layer from this one on has weights"):
        build(Train(**SMALL, unfreeze="predictions"), NAMES)


def test_layers_that_were_frozen_when_a_network_was_saved_can_be_trained(tmp_path: Path) -> None:
    everything = [w.path for w in build(Train(**SMALL), NAMES).trainable_weights]
    frozen = build(Train(**SMALL, unfreeze="head"), NAMES)
    assert [w.path for w in build(Train(**SMALL), NAMES, init=(frozen, NAMES)).trainable_weights] == everything
    features_of(frozen).save(file := tmp_path / "frozen.keras")
    assert [w.path for w in build(Train(backbone=str(file)), NAMES).trainable_weights] == everything


def test_a_trained_networks_head_is_matched_by_class_name(photos: np.ndarray) -> None:
    source = build(Train(**SMALL), NAMES)
    head = source.get_layer("logits")
    head.set_weights([head.kernel.numpy(), np.arange(5.0)])
    names = ["e", "new", "b"]
    network = with_classes(source, NAMES, names, dropout=0.5)
    kernel, bias = head_weights(network)
    assert bias.tolist() == [4.0, 2.0, 1.0]
    np.testing.assert_array_equal(kernel[:, [0, 2]], head.kernel.numpy()[:, [4, 1]])
    np.testing.assert_array_equal(features_of(network)(photos), features_of(source)(photos))
    again = build(Train(**SMALL), names, init=(source, NAMES))
    np.testing.assert_array_equal(head_weights(again)[1], bias)


def test_a_network_with_its_mirror_image_averages_both_answers(photos: np.ndarray, tmp_path: Path) -> None:
    network = build(Train(**SMALL), NAMES)
    both = with_mirror_image(network)
    expected = (network(photos) + network(photos[:, :, ::-1])) / 2
    np.testing.assert_allclose(both(photos), expected, atol=1e-6)
    both.save(tmp_path / "both.keras")
    np.testing.assert_allclose(keras.saving.load_model(tmp_path / "both.keras")(photos), expected, atol=1e-6)


def test_dropped_branches_and_strides_in_the_3x3_convolution(photos: np.ndarray) -> None:
    network = build(Train(**SMALL, drop_path=0.9, dropout=0.5, stride_in_3x3=True), NAMES)
    assert network.get_layer("stage3_block1_conv2").strides == (2, 2)
    assert network.get_layer("stage5_block1_drop").rate == pytest.approx(0.9)
    keras.utils.set_random_seed(0)
    for layer in network.layers:
        if layer.name.endswith("_scale3"):
            layer.gamma.assign(keras.ops.ones_like(layer.gamma))
    assert np.abs(network(photos, training=True) - network(photos, training=True)).max() > 0
    np.testing.assert_array_equal(network(photos), network(photos))


def test_weights_fill_either_family(mobilenet_weights: Path, tmp_path: Path) -> None:
    first = build(Train(**SMALL), NAMES)
    first.save(tmp_path / "first.keras")
    second = build(Train(**SMALL, weights=str(tmp_path / "first.keras")), NAMES)
    np.testing.assert_array_equal(second.get_layer("stem_conv1").kernel.numpy(), first.get_layer("stem_conv1").kernel)
    model = build(Train(backbone="MobileNetV2", weights=str(mobilenet_weights)), NAMES)
    assert model.get_layer("bn_Conv1").moving_variance.numpy().std() > 0
