"""The residual network."""

from collections import Counter

import keras
import numpy as np
import pytest

from carmodel.model.resnet import BLOCKS, MEAN, STD, conv_block, identity_block, resnet, stem
from carmodel.model.scale import Scale


@pytest.fixture
def photos() -> np.ndarray:
    """Two random images, uint8 (2, 64, 64, 3)."""
    return np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)


def predict(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Forward pass in inference mode."""
    return keras.ops.convert_to_numpy(model(x, training=False))


def test_the_parts_have_the_shapes_that_their_docstrings_give() -> None:
    assert stem(keras.Input((64, 96, 3)), 8).shape == (None, 16, 24, 8)
    assert conv_block(keras.Input((16, 24, 8)), 8, 2, "a").shape == (None, 8, 12, 32)
    assert conv_block(keras.Input((15, 15, 8)), 8, 2, "a").shape == (None, 8, 8, 32)
    assert identity_block(keras.Input((7, 5, 32)), 8, "a").shape == (None, 7, 5, 32)


def test_the_depth_counts_the_layers_with_kernels() -> None:
    assert all(1 + 3 * sum(blocks) + 1 == depth for depth, blocks in BLOCKS.items())
    count = Counter(type(layer) for layer in resnet(26, 10, width=4).layers)
    shortcuts = len(BLOCKS[26])
    assert count[keras.layers.Conv2D] - shortcuts + count[keras.layers.Dense] == 26
    assert count[Scale] == count[keras.layers.BatchNormalization] == count[keras.layers.Conv2D]
    assert count[keras.layers.Add] == sum(BLOCKS[26])


def test_an_unknown_depth_is_an_error_that_names_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="14, 26, 50, 101, 152"):
        resnet(18, 10)


def test_depth_50_has_the_parameters_of_keras_without_conv_biases() -> None:
    theirs = keras.applications.ResNet50(weights=None, classes=196)
    biases = sum(layer.bias.shape[0] for layer in theirs.layers if isinstance(layer, keras.layers.Conv2D))
    assert resnet(50, 196).count_params() == theirs.count_params() - biases


def test_layers_are_named_by_stage_block_and_place() -> None:
    names = {layer.name for layer in resnet(26, 10, width=4).layers}
    assert {"image", "normalization", "stem_conv1", "pool", "logits", "predictions"} <= names
    assert {f"stage5_block2_{kind}{i}" for kind in ("conv", "bn", "scale") for i in (1, 2, 3)} <= names
    assert "stage5_block1_conv0" in names
    assert "stage5_block2_conv0" not in names


def test_convolutions_have_no_bias_and_normalisations_no_affine_part() -> None:
    for layer in resnet(14, 10, width=4).layers:
        if isinstance(layer, keras.layers.Conv2D):
            assert not layer.use_bias
        if isinstance(layer, keras.layers.BatchNormalization):
            assert not layer.center and not layer.scale
            assert layer.epsilon == pytest.approx(1.001e-5)


def test_the_input_is_normalised_by_the_mean_pixel_of_imagenet(photos: np.ndarray) -> None:
    model = resnet(14, 10, width=4)
    normalised = predict(keras.Model(model.input, model.get_layer("normalization").output), photos)
    np.testing.assert_allclose(normalised, (photos - np.array(MEAN)) / STD, atol=1e-5)


def test_every_residual_block_starts_as_its_rectified_shortcut(photos: np.ndarray) -> None:
    model = resnet(26, 10, width=4)
    for add in (layer for layer in model.layers if isinstance(layer, keras.layers.Add)):
        shortcut, branch = add.input
        block = keras.Model(model.input, [shortcut, branch, model.get_layer(add.name.replace("_add", "_out")).output])
        before, zero, after = (keras.ops.convert_to_numpy(y) for y in block(photos, training=False))
        assert not zero.any()
        assert before.any()
        np.testing.assert_array_equal(after, np.maximum(before, 0))


def test_a_step_of_training_moves_the_weights_that_zero_gammas_let_through(photos: np.ndarray) -> None:
    model = resnet(14, 10, width=4)
    before = {w.path: w.numpy().copy() for w in model.trainable_weights}
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", jit_compile=False)
    model.train_on_batch(photos, np.array([1, 2]))
    moved = {w.path for w in model.trainable_weights if (w.numpy() != before[w.path]).any()}
    assert {path for path in before if path.endswith(("scale3/gamma", "scale0/gamma", "logits/kernel"))} <= moved
    assert "stem_conv1/kernel" in moved


def test_a_saved_network_gives_the_same_answers_when_loaded(photos: np.ndarray, tmp_path) -> None:
    model = resnet(14, 10, width=4)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", custom_objects={"Scale": Scale})
    np.testing.assert_array_equal(predict(again, photos), predict(model, photos))
