"""The network that the parameters of a training ask for."""

import keras

from carmodel.model.backbone import application, freeze
from carmodel.model.pretrained import load_resnet_weights
from carmodel.model.resnet import resnet
from carmodel.parameters import Train


def build(params: Train, classes: int, image_size: int) -> keras.Model:
    """Build the network with its first weights, under the caller's dtype policy and random seed.

    Input: "image", uint8 (B, image_size, image_size, 3), RGB. Output: "predictions", float32 (B, classes), softmax.

    Args:
        params: `backbone`, `depth`, `width`, `weights` and `freeze` are used.
        classes: number of classes.
        image_size: side of the square images in pixels.

    Raises:
        InputError: no such backbone, or weights that are missing or do not fit; says what to give instead.
    """
    if params.backbone == "resnet":
        model = resnet(params.depth, classes, image_size, params.width)
        if params.weights != "none":
            load_resnet_weights(model, params.depth, params.weights)
    else:
        model = application(params.backbone, classes, image_size, params.weights)
    if params.freeze:
        freeze(model)
    return model
