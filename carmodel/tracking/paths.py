"""Where the pretrained weights are, and which URIs are local paths."""

import os
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from carmodel.tracking.digests import ROOT

PRETRAINED_FOLDER = ROOT / "pretrained"
"""The weights in the repository. They are not part of the wheel."""

PRETRAINED = PRETRAINED_FOLDER / "stanford_cars.keras"
"""The fine-tuned network."""


def local_path(uri: str) -> Path | None:
    """Return the absolute path that a plain path or a ``file:`` URI names on this machine, or None for any other URI."""
    if uri.startswith("file:"):
        return Path(url2pathname(urlsplit(uri).path)).resolve()
    # Path.expanduser raises an error for an unknown ~user. This keeps it, as a path that does not exist.
    return None if ":/" in uri else Path(os.path.expanduser(uri)).resolve()  # noqa: PTH111


def initial_file(init: str) -> Path | None:
    """Return the Keras file that `init` of train names, or None if it names a logged or registered model.

    The classes of the network are in a JSON file beside the Keras file.
    """
    if init == "pretrained":
        return PRETRAINED
    return local_path(init) if init.endswith(".keras") else None
