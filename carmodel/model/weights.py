"""Find a file with ImageNet weights on this machine.

`carmodel.model.pretrained` loads initial weights into the residual network, and `carmodel.model.backbone` into the networks
of Keras Applications. This module does not import Keras, which would slow down the start of main.
"""

import re
from collections.abc import Iterable
from pathlib import Path


def find_weights(backbone: str, folders: Iterable[Path]) -> Path | None:
    """Return the first file with the ImageNet weights of a `keras.applications` network without top, or None.

    For MobileNetV2, it finds ``mobilenet_v2_imagenet_notop.weights.h5`` and the file that Keras publishes,
    ``mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5``. Underscores, hyphens, dots and capitals do not
    matter, since the names that Keras publishes use them in different ways.

    Args:
        backbone: name of the network.
        folders: directories to search, in order.
    """
    published = r"(weightstfdimorderingtfkernels(10\d+)?|10\d+tf)?notop"
    pattern = re.compile(rf"{backbone.lower()}({published}|imagenetnotop)(weights)?h5")
    for folder in folders:
        for path in sorted(folder.glob("*.h5")):
            if pattern.fullmatch(re.sub(r"[^a-z0-9]", "", path.name.lower())):
                return path
    return None
