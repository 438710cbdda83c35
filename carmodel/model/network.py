"""Build the network of a training, with its initial weights."""

from collections.abc import Iterable, Sequence

import keras
import numpy as np

from carmodel.errors import InputError
from carmodel.model.backbone import application, apply_flat, put_head, saved_backbone
from carmodel.model.head import LOGITS, features_of, head_weights
from carmodel.model.pretrained import load_resnet_weights
from carmodel.model.resnet import resnet
from carmodel.parameters import Train


def build(
    params: Train, class_names: Sequence[str], init: tuple[keras.Model, Sequence[str]] | None = None
) -> keras.Model:
    """Build a network with its initial weights. The dtype policy and the random seed are those of the process.

    Input: "image", uint8 (B, H, W, 3), RGB, any height and width. Output: "predictions", float32 (B, classes), softmax.

    Args:
        params: `backbone`, `depth`, `width`, `weights`, `stride_in_3x3`, `drop_path`, `dropout` and `unfreeze` are used.
        class_names: names of the classes.
        init: a trained network and its class names. The result has its layers and weights, with the columns of the head
            matched by class name. `backbone` and the parameters of its architecture are not used.

    Raises:
        InputError: the weights are missing or do not fit, or `unfreeze` names no layer.
    """
    classes = len(class_names)
    if init is not None:
        model = with_classes(*init, class_names, params.dropout)
    elif params.backbone == "resnet":
        model = resnet(
            params.depth,
            classes,
            params.width,
            stride_in_3x3=params.stride_in_3x3,
            drop_path=params.drop_path,
            dropout=params.dropout,
        )
        if params.weights != "none":
            load_resnet_weights(model, params.depth, params.weights)
    elif params.backbone.endswith(".keras"):
        model = saved_backbone(params.backbone, classes, params.dropout)
    else:
        model = application(params.backbone, classes, params.weights, params.dropout)
    unfreeze(model, params.unfreeze)
    return model


def with_classes(
    source: keras.Model, source_names: Sequence[str], class_names: Sequence[str], dropout: float = 0.0
) -> keras.Model:
    """Return a copy of a trained network for other classes.

    The columns of the head are matched by class name. A class that `source` does not have gets the mean of all columns,
    so that it starts as the average class.

    Args:
        source: a network with this project's head.
        source_names: its class names.
        class_names: the class names of the result.
        dropout: dropout rate of the new head.
    """
    image = keras.Input((None, None, 3), dtype="uint8", name="image")
    network = put_head(image, apply_flat(features_of(source), image), len(class_names), dropout, source.name)
    kernel, bias = head_weights(source)
    column = {name: i for i, name in enumerate(source_names)}
    known = [column.get(name, len(source_names)) for name in class_names]
    kernel = np.concatenate([kernel, kernel.mean(axis=1, keepdims=True)], axis=1)
    bias = np.append(bias, bias.mean())
    network.get_layer(LOGITS).set_weights([kernel[:, known], bias[known]])
    return network


def unfreeze(network: keras.Model, part: str) -> None:
    """Freeze the layers before `part`, and train all others, also those that are frozen in a saved network.

    A frozen batch normalisation also uses its stored statistics in training.

    Args:
        network: the network to change.
        part: "all" to freeze nothing, "head" to freeze everything below the head, or the name of the first layer to train.

    Raises:
        InputError: the network has no such layer, or no layer would be trained. Names some layers that it has.
    """
    for layer in network.layers:
        layer.trainable = True
    if part == "all":
        return
    names = [layer.name for layer in network.layers]
    first = LOGITS if part == "head" else part
    if first not in names:
        stages = list(dict.fromkeys(name.rpartition("_")[0] or name for name in names))
        raise InputError(
            f"unfreeze={part}: the network has no such layer. Give all, head, or a layer such as one of "
            f"{', '.join(name for name in names if name.rpartition('_')[0] in stages[1:12])[:300]} …"
        )
    for layer in network.layers[: names.index(first)]:
        layer.trainable = False
    if not network.trainable_variables:
        raise InputError(f"unfreeze={part}: no layer from this one on has weights; give all, head, or an earlier layer")


def check_sizes(network: keras.Model, sizes: Iterable[int]) -> None:
    """Check that a network can take square images of these sizes, in pixels.

    Raises:
        InputError: a size is too small for the network.
    """
    for size in sizes:
        try:
            network.compute_output_spec(keras.KerasTensor((1, size, size, 3), "uint8"))
        except (ValueError, TypeError) as error:
            raise InputError(f"{network.name} cannot take images of {size} px: {error}") from None
