"""Paths of this machine among the URIs that a parameter takes."""

import os
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname


def local_path(uri: str) -> Path | None:
    """Return the absolute path that a plain path or a ``file:`` URI names on this machine, or None for any other URI."""
    if uri.startswith("file:"):
        return Path(url2pathname(urlsplit(uri).path)).resolve()
    # Unlike Path.expanduser, this keeps an unknown ~user: a path that does not exist.
    return None if ":/" in uri else Path(os.path.expanduser(uri)).resolve()  # noqa: PTH111
