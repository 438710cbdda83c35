"""The residual network of He et al. (2015): identity blocks and convolution blocks, with Scale after BatchNormalization."""

import keras
import numpy as np
from keras import KerasTensor, layers

from carmodel.model.head import head
from carmodel.model.scale import Scale

BLOCKS = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Number of bottleneck blocks in the four stages, by depth. Each has three convolutions; stem and head add two layers."""

EXPANSION = 4
"""Output channels of a bottleneck block, as a multiple of its inner channels."""

MEAN = (123.68, 116.779, 103.939)
"""ImageNet's mean colour, RGB, as in the caffe mode of `keras.applications`."""

STD = 57.6
"""Standard deviation of all channels, about that of ImageNet. One number, so that Keras's weights convert exactly."""

EPSILON = 1.001e-5
"""Epsilon of batch normalisation, as in `keras.applications.resnet`, so that its weights give the same outputs."""

MOMENTUM = 0.9
"""Momentum of batch normalisation. With Keras's default of 0.99, averages of short trainings are far behind."""


def resnet(
    depth: int,
    classes: int,
    width: int = 64,
    *,
    stride_in_3x3: bool = False,
    drop_path: float = 0.0,
    dropout: float = 0.0,
) -> keras.Model:
    """Build the residual network, version 1 (https://arxiv.org/abs/1512.03385), of bottleneck blocks at every depth.

    Input: "image", uint8 (B, H, W, 3), RGB, any height and width. Output: "predictions", float32 (B, classes), softmax.
    The stem divides the sides of the image by 4, and each stage after the first divides them by 2, rounding up. The
    feature map has an output stride of 32 (7 x 7 positions at 224 px, 3 x 3 at 96 px) and ``32 * width`` channels.

    A stage has its stride in its first 1x1 convolution, as in `keras.applications.resnet`, whose weights fit (see
    `carmodel.model.pretrained`). Alternatively it is in its first 3x3 convolution (version 1.5), which skips no position.

    The last gamma of each residual branch starts at 0, so that every block starts as its shortcut (Goyal et al. 2017,
    https://arxiv.org/abs/1706.02677, section 5.1).

    Args:
        depth: number of layers with weights, one of `BLOCKS`.
        classes: number of classes.
        width: inner channels of the first stage. Each later stage has twice as many.
        stride_in_3x3: whether the first 3x3 convolution of a stage has the stride.
        drop_path: probability of dropping the last residual branch in training. It grows linearly from 0 for the first
            branch (stochastic depth, Huang et al. 2016, https://arxiv.org/abs/1603.09382).
        dropout: dropout rate of the pooled features.

    Raises:
        ValueError: `depth` is not one of `BLOCKS`.
    """
    if depth not in BLOCKS:
        raise ValueError(f"depth={depth} is not one of {', '.join(map(str, BLOCKS))}")
    image = keras.Input((None, None, 3), dtype="uint8", name="image")
    # Always in float32, since 16 bits would round the mean.
    x = layers.Normalization(mean=MEAN, variance=(STD**2,) * 3, dtype="float32", name="normalization")(image)
    x = stem(x, width)
    drops = iter(np.linspace(0.0, drop_path, sum(BLOCKS[depth])).tolist())
    for stage, blocks in enumerate(BLOCKS[depth], start=2):
        filters = width * 2 ** (stage - 2)
        strides = 1 if stage == 2 else 2
        x = conv_block(x, filters, strides, f"stage{stage}_block1", next(drops), stride_in_3x3=stride_in_3x3)
        for block in range(2, blocks + 1):
            x = identity_block(x, filters, f"stage{stage}_block{block}", next(drops))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, head(x, classes, dropout), name=f"resnet{depth}")


def stem(x: KerasTensor, width: int) -> KerasTensor:
    """Turn (B, H, W, 3) into (B, H/4, W/4, width): a 7x7 convolution and a 3x3 max-pooling, each with stride 2."""
    x = layers.ZeroPadding2D(3, name="stem_pad")(x)
    x = _conv_norm(x, width, 7, strides=2, padding="valid", name="stem", suffix="1")
    x = layers.ReLU(name="stem_relu")(x)
    # Zero is the smallest value after ReLU, so this is the same as padding with minus infinity.
    x = layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
    return layers.MaxPooling2D(3, strides=2, name="stem_pool")(x)


def conv_block(
    x: KerasTensor, filters: int, strides: int, name: str, drop: float = 0.0, *, stride_in_3x3: bool = False
) -> KerasTensor:
    """Add a convolution block, with a 1x1 convolution in its shortcut: (B, H, W, C) to (B, H/s, W/s, 4 * filters)."""
    shortcut = _conv_norm(x, EXPANSION * filters, 1, strides=strides, name=name, suffix="0")
    strides_of = (1, strides) if stride_in_3x3 else (strides, 1)
    return _merge(shortcut, _branch(x, filters, strides_of, name), name, drop)


def identity_block(x: KerasTensor, filters: int, name: str, drop: float = 0.0) -> KerasTensor:
    """Add an identity block, with its input as shortcut: (B, H, W, 4 * filters) to the same shape."""
    return _merge(x, _branch(x, filters, (1, 1), name), name, drop)


def _branch(x: KerasTensor, filters: int, strides: tuple[int, int], name: str) -> KerasTensor:
    """Add the residual branch: 1x1 to `filters` channels, 3x3, and 1x1 to four times as many."""
    x = _conv_norm(x, filters, 1, strides=strides[0], name=name, suffix="1")
    x = layers.ReLU(name=f"{name}_relu1")(x)
    x = _conv_norm(x, filters, 3, strides=strides[1], name=name, suffix="2")
    x = layers.ReLU(name=f"{name}_relu2")(x)
    return _conv_norm(x, EXPANSION * filters, 1, gamma="zeros", name=name, suffix="3")


def _merge(shortcut: KerasTensor, branch: KerasTensor, name: str, drop: float) -> KerasTensor:
    """Add shortcut and branch, and apply ReLU. In training, the branch of an image is dropped with probability `drop`."""
    if drop > 0:
        branch = layers.Dropout(drop, noise_shape=(None, 1, 1, 1), name=f"{name}_drop")(branch)
    return layers.ReLU(name=f"{name}_out")(layers.Add(name=f"{name}_add")([shortcut, branch]))


def _conv_norm(
    x: KerasTensor,
    filters: int,
    kernel_size: int,
    *,
    name: str,
    suffix: str,
    strides: int = 1,
    padding: str = "same",
    gamma: str = "ones",
) -> KerasTensor:
    """Add a convolution without bias, batch normalisation without gamma and beta, and Scale.

    For the suffix "1", the layers are NAME_conv1, NAME_bn1 and NAME_scale1.
    """
    x = layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding=padding,
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv{suffix}",
    )(x)
    x = layers.BatchNormalization(
        momentum=MOMENTUM, epsilon=EPSILON, center=False, scale=False, name=f"{name}_bn{suffix}"
    )(x)
    return Scale(gamma_initializer=gamma, name=f"{name}_scale{suffix}")(x)
