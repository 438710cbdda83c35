"""Weights of keras.applications' ResNets, and our own, in the residual network."""

from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from carmodel.errors import InputError
from carmodel.model.backbone import without_top
from carmodel.model.head import features_of
from carmodel.model.pretrained import copy_weights, load_resnet_weights
from carmodel.model.resnet import resnet
from carmodel.model.weights import find_weights

SIZE = 64


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    """Four random photos, uint8 (4, 64, 64, 3): smooth colours, each of another brightness, under noise."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (4, 8, 8, 3)).repeat(8, axis=1).repeat(8, axis=2) * np.linspace(0.3, 1, 4).reshape(
        4, 1, 1, 1
    )
    return np.clip(coarse + rng.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)


def keras_resnet(depth: int, **arguments) -> keras.Model:
    """Make a randomly initialised network of keras.applications."""
    keras.utils.set_random_seed(0)
    return getattr(keras.applications, f"ResNet{depth}")(weights=None, input_shape=(SIZE, SIZE, 3), **arguments)


def theirs(model: keras.Model, photos: np.ndarray) -> np.ndarray:
    """Answer as Keras's documentation says: preprocessed, then the network."""
    x = keras.applications.resnet50.preprocess_input(photos.astype("float32"))
    return keras.ops.convert_to_numpy(model(x, training=False))


def ours(model: keras.Model, photos: np.ndarray) -> np.ndarray:
    """Answer from the photos themselves."""
    return keras.ops.convert_to_numpy(model(photos, training=False))


def perturb(model: keras.Model, photos: np.ndarray, seed: int = 1) -> None:
    """Change every weight at random, with statistics near those of the photos so that no activation runs away."""
    rng = np.random.default_rng(seed)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel * rng.uniform(0.8, 1.2, kernel.shape), rng.normal(0, 0.5, bias.shape)])
    for norm in norms:
        gamma, beta, mean, variance = norm.get_weights()
        norm.set_weights([rng.uniform(0.5, 1.5, gamma.shape), rng.normal(0, 0.3, beta.shape), mean, variance])
        norm.momentum = 0.0
    model(keras.applications.resnet50.preprocess_input(photos.astype("float32")), training=True)
    for norm in norms:
        gamma, beta, mean, variance = norm.get_weights()
        mean = mean + 0.2 * np.sqrt(variance) * rng.normal(size=mean.shape)
        norm.set_weights([gamma, beta, mean, variance * rng.uniform(0.7, 1.5, variance.shape) + 1e-3])


def test_all_but_the_head_of_a_keras_network_is_copied_and_gives_the_same_answers(photos: np.ndarray) -> None:
    source, target = keras_resnet(101, classes=10), resnet(101, 5)
    perturb(source, photos)
    head = target.get_layer("logits").get_weights()
    copy_weights(source, target)
    for before, after in zip(head, target.get_layer("logits").get_weights(), strict=True):
        np.testing.assert_array_equal(after, before)
    pooled = theirs(keras.Model(source.input, source.get_layer("avg_pool").output), photos)
    np.testing.assert_allclose(ours(features_of(target), photos), pooled, atol=5e-4 * pooled.max())


def test_another_depth_or_width_is_refused_and_nothing_is_copied() -> None:
    source = without_top("ResNet50")
    for target in (resnet(26, 5), resnet(50, 5, width=8)):
        before = target.get_weights()
        with pytest.raises(ValueError, match="resnet50 and resnet.* have different"):
            copy_weights(source, target)
        for old, new in zip(before, target.get_weights(), strict=True):
            np.testing.assert_array_equal(new, old)


def test_a_network_with_other_strides_is_refused() -> None:
    target = resnet(50, 4, stride_in_3x3=True)
    with pytest.raises(InputError, match="stride_in_3x3=false"):
        copy_weights(keras.applications.ResNet50(weights=None, classes=4), target)


def test_a_saved_network_of_this_project_with_other_strides_is_refused(tmp_path: Path) -> None:
    source, target = resnet(14, 4, 4), resnet(14, 4, 4, stride_in_3x3=True)
    source.save(tmp_path / "w.keras")
    source.save_weights(tmp_path / "w.weights.h5")
    with pytest.raises(InputError, match="use stride_in_3x3=false"):
        load_resnet_weights(target, 14, str(tmp_path / "w.keras"))
    load_resnet_weights(target, 14, str(tmp_path / "w.weights.h5"))  # it does not contain the strides


@pytest.mark.parametrize(("form", "top"), [("legacy", True), ("weights", False), ("keras", True)])
def test_files_of_keras_applications_load_with_or_without_top(
    form: str, top: bool, photos: np.ndarray, tmp_path: Path
) -> None:
    source = keras_resnet(50, include_top=top, **({"classes": 20} if top else {"pooling": "avg"}))
    file = save(source, tmp_path, form)
    target = resnet(50, 20)
    load_resnet_weights(target, 50, str(file))
    below = keras.Model(source.input, source.get_layer("avg_pool").output) if top else source
    expected = theirs(below, photos)
    np.testing.assert_allclose(ours(features_of(target), photos), expected, atol=1e-3 * expected.max())


def save(model: keras.Model, folder: Path, form: str) -> Path:
    """Save in a form that Keras reads; "legacy" is that of its published files, written here by hand."""
    path = folder / {"legacy": "w.h5", "weights": "w.weights.h5", "keras": "w.keras"}[form]
    if form == "legacy":
        write_legacy(model, path)
    elif form == "weights":
        model.save_weights(path)
    else:
        model.save(path)
    return path


def write_legacy(model: keras.Model, path: Path) -> None:
    """Write Keras 2's HDF5 layout: a group a layer, names in attributes."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, weight in zip(names, layer.get_weights(), strict=True):
                group[name] = weight


@pytest.mark.parametrize(("form", "classes"), [("weights", 6), ("keras", 4)])
def test_files_of_this_projects_network_load_without_the_head(
    form: str, classes: int, photos: np.ndarray, tmp_path: Path
) -> None:
    source = resnet(14, 6, width=8)
    source.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy", jit_compile=False)
    source.train_on_batch(photos[:, :32, :32], np.arange(4))
    target = resnet(14, classes, width=8)
    load_resnet_weights(target, 14, str(save(source, tmp_path, form)))
    for layer in target.layers:
        if layer.name in ("logits", "predictions"):
            continue
        for new, old in zip(layer.get_weights(), source.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(new, old)


def test_a_file_of_another_depth_width_or_network_is_named(tmp_path: Path) -> None:
    target = resnet(26, 6, width=8)
    for number, source in enumerate((resnet(14, 6, width=8), resnet(26, 6, width=4), keras_mobilenet())):
        for form in ("weights", "keras"):
            folder = tmp_path / f"{number}"
            folder.mkdir(exist_ok=True)
            with pytest.raises(ValueError, match=r"weights: .*w\.(keras|weights\.h5)"):
                load_resnet_weights(target, 26, str(save(source, folder, form)))


def keras_mobilenet() -> keras.Model:
    """Make a small network of another family."""
    return keras.applications.MobileNet(weights=None, include_top=False, input_shape=(32, 32, 3), alpha=0.25)


def test_missing_or_damaged_weights_and_a_depth_without_any_are_errors(tmp_path: Path) -> None:
    target = resnet(26, 6, width=8)
    with pytest.raises(ValueError, match=r"no file .*absent\.h5.*give none, imagenet, or the path"):
        load_resnet_weights(target, 26, str(tmp_path / "absent.h5"))
    for name in ("bad.h5", "bad.weights.h5", "bad.keras"):
        (tmp_path / name).write_bytes(b"not a weights file")
        with pytest.raises(ValueError, match=name):
            load_resnet_weights(target, 26, str(tmp_path / name))
    with pytest.raises(ValueError, match="'imagenet' needs one of the depths 50, 101, 152"):
        load_resnet_weights(target, 26, "imagenet")


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ("MobileNetV2", "mobilenet_v2_imagenet_notop.weights.h5"),
        ("MobileNetV2", "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"),
        ("MobileNet", "mobilenet_1_0_224_tf_no_top.h5"),
        ("ResNet50", "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"),
        ("ResNet50V2", "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5"),
        ("ResNet50", "resnet50_imagenet_notop.weights.h5"),
        ("EfficientNetB0", "efficientnetb0_notop.h5"),
        ("EfficientNetV2B0", "efficientnetv2-b0_notop.h5"),
        ("ConvNeXtTiny", "convnext_tiny_notop.h5"),
    ],
)
def test_weights_without_top_are_found_by_their_usual_names(backbone: str, name: str, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    others = (
        "mobilenet_v3_imagenet_notop.weights.h5",
        "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.5_224_no_top.h5",
        "resnet50_weights_tf_dim_ordering_tf_kernels.h5",
        name,
    )
    for other in others:
        (folder / other).touch()
    assert find_weights(backbone, [tmp_path / "absent", tmp_path, folder]) == folder / name


def test_weights_of_other_networks_are_not_found(tmp_path: Path) -> None:
    (tmp_path / "mobilenet_v2_imagenet_notop.weights.h5").touch()
    (tmp_path / "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5").touch()
    assert find_weights("MobileNet", [tmp_path]) is None
    assert find_weights("ResNet50", [tmp_path]) is None
