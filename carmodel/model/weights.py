"""Where the ImageNet weights of a network lie when they are at hand already. Imports no Keras: main asks too."""

import re
from collections.abc import Iterable
from pathlib import Path


def find_weights(backbone: str, folders: Iterable[Path]) -> Path | None:
    """Find the ImageNet weights without top of a `keras.applications` network in `folders`, the first that has them.

    Known names, for MobileNetV2: ``mobilenet_v2_imagenet_notop.weights.h5``, and Keras's published
    ``mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5``. Underscores, hyphens, dots and capitals are
    overlooked, for Keras itself writes them in many ways.
    """
    published = r"(weightstfdimorderingtfkernels(10\d+)?|10\d+tf)?notop"
    pattern = re.compile(rf"{backbone.lower()}({published}|imagenetnotop)(weights)?h5")
    for folder in folders:
        for path in sorted(folder.glob("*.h5")):
            if pattern.fullmatch(re.sub(r"[^a-z0-9]", "", path.name.lower())):
                return path
    return None
