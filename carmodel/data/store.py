"""Read a store: an HDF5 file of prepared images with their labels.

h5py serves one thread at a time, and its fancy indexing is slow. Therefore `images` is contiguous and uncompressed, and
`Store` maps it into memory at its offset in the file. h5py reads the small data sets once. A store of parts (an HDF5
virtual data set over part files) is mapped part by part. Schema version 1:

    images        uint8  (N, H, W, 3)  RGB
    labels        int64  (N,)          0-based class
    crc32         uint32 (N,)          checksum of each image's bytes
    source        str    (N,)          file name in the data set
    source_index  int64  (N,)          the row that an augmented copy was made from, otherwise its own row
    validation    bool   (N,)          whether a training row is used for validation
    class_names   str    (C,)

and, optionally,

    aspect        float32 (N,)         width / height of what an image shows, before it became square

The attributes are schema_version, split, image_size, crop, margin, seed, created_by and, optionally, note.
"""

import hashlib
import json
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import h5py
import numpy as np

from carmodel.data.memory_map import StoreError, map_images

SCHEMA_VERSION = 1
ROW_DATA = {"labels": np.int64, "crc32": np.uint32, "source_index": np.int64, "validation": np.bool_}
OPTIONAL_DATA = {"aspect": np.float32}
ATTRIBUTES = ("schema_version", "split", "image_size", "crop", "margin", "seed", "created_by")

Attribute = str | int | float


class Store:
    """The rows of one or more store files.

    Attributes:
        labels: int64 (N,), 0-based.
        crc32: uint32 (N,), checksum of each image's bytes.
        source: str (N,), file name in the data set.
        source_index: int64 (N,), the row in the first file that an augmented copy was made from, otherwise its own row.
        validation: bool (N,).
        aspect: float32 (N,), width / height of what an image shows, before it became square; 1 if the file has none.
        class_names: C names; label i is class_names[i].
        image_shape: (H, W, 3).
        image_size: side of the square images, in pixels.
        attrs: the attributes of the first file. "note" is "" if the file has none.
        paths: the files, in the order of their rows.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        files = [_read(path) for path in paths]
        first = files[0]
        for other in files[1:]:
            if other.class_names != first.class_names:
                raise StoreError(f"{other.path} and {first.path} have different class names")
            if other.image_shape != first.image_shape:
                raise StoreError(f"{other.path} and {first.path} have images of different size")
        self.paths = tuple(file.path for file in files)
        self.class_names = first.class_names
        self.image_shape = first.image_shape
        self.image_size = first.image_shape[0]
        self.attrs = first.attrs
        self.labels = np.concatenate([file.rows["labels"] for file in files])
        self.crc32 = np.concatenate([file.rows["crc32"] for file in files])
        self.source_index = np.concatenate([file.rows["source_index"] for file in files])
        self.validation = np.concatenate([file.rows["validation"] for file in files])
        self.aspect = np.concatenate([file.rows["aspect"] for file in files])
        self.source = np.concatenate([file.source for file in files])
        self._segments = [segment for file in files for segment in file.segments]
        self._starts = np.cumsum([0] + [len(segment) for segment in self._segments])

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Copy rows in the given order. Many threads may call it at once.

        Args:
            rows: int (n,), in any order, repeats allowed.
            out: uint8 (n, H, W, 3) to fill, or None for a new array.

        Returns:
            uint8 (n, H, W, 3), which is `out` if it is given.

        Raises:
            IndexError: a row is below 0 or not below len(self).
        """
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows must be from 0 to {len(self) - 1}, got {rows.min()} to {rows.max()}")
        if out is None:
            out = np.empty((len(rows), *self.image_shape), np.uint8)
        if len(self._segments) == 1:
            # mode="raise" would copy through a buffer. The bounds are checked above.
            return np.take(self._segments[0], rows, axis=0, out=out, mode="clip")
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        for i in np.unique(owner):
            here = owner == i
            out[here] = self._segments[i][rows[here] - self._starts[i]]
        return out

    def verify(self) -> None:
        """Check the crc32 of every image.

        Raises:
            StoreError: an image does not have the stored checksum. Names the first such row.
        """
        pieces = [segment[start : start + 64] for segment in self._segments for start in range(0, len(segment), 64)]
        with ThreadPoolExecutor() as pool:  # zlib releases Python's global lock
            found = list(chain.from_iterable(pool.map(checksums, pieces)))
        different = np.flatnonzero(np.array(found, np.uint32) != self.crc32)
        if len(different):
            row = int(different[0])
            segment = self._segments[int(np.searchsorted(self._starts, row, "right")) - 1]
            file = getattr(segment, "filename", self.paths[0])
            raise StoreError(
                f"{file}: row {row} ({self.source[row]}) is damaged: its checksum differs; preprocess again"
            )


def checksums(images: np.ndarray) -> list[int]:
    """Return the CRC-32 of each image of uint8 (n, H, W, 3)."""
    return [zlib.crc32(image) for image in images]


def open_store(*paths: Path | str) -> Store:
    """Open one or more store files as one store: ``open_store("train.h5", "augmented.h5")``.

    Raises:
        StoreError: a file is missing, damaged or not a store, or the files differ in classes or image size.
    """
    if not paths:
        raise StoreError("no store was named; name at least one file")
    return Store([Path(path) for path in paths])


def content_digest(store: Store) -> str:
    """Return the BLAKE2b digest (16 bytes, hex) of the sources, labels and class names, in order.

    It does not depend on image size, crop or seed, so the same test photos have the same digest at every setting.
    """
    content = json.dumps([store.source.tolist(), store.labels.tolist(), store.class_names])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


class _File:
    """One checked store file: images as memory maps, everything else in memory."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        if missing := [name for name in ("images", *ROW_DATA, "source", "class_names") if name not in file]:
            raise StoreError(f"{path} is not a store: it has no {', '.join(missing)}")
        self.attrs: dict[str, Attribute] = {"note": "", **{name: _plain(value) for name, value in file.attrs.items()}}
        if (version := self.attrs.get("schema_version")) != SCHEMA_VERSION:
            raise StoreError(
                f"{path} has schema version {version}, but this code reads version {SCHEMA_VERSION}; preprocess again"
            )
        if missing := [name for name in ATTRIBUTES if name not in self.attrs]:
            raise StoreError(f"{path} is not a store: it has no attribute {', '.join(missing)}")
        images = file["images"]
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise StoreError(f"{path}: images must be uint8 (N, H, W, 3), not {images.dtype} {images.shape}")
        self.image_shape: tuple[int, ...] = images.shape[1:]
        self.class_names = [str(name) for name in file["class_names"].asstr()[:]]
        self.source = np.asarray(file["source"].asstr()[:], dtype=str)
        self.rows = {name: file[name][:].astype(dtype) for name, dtype in ROW_DATA.items()}
        self.rows |= {
            name: file[name][:].astype(dtype) if name in file else np.ones(len(images), dtype)
            for name, dtype in OPTIONAL_DATA.items()
        }
        lengths = {name: len(column) for name, column in self.rows.items()} | {"source": len(self.source)}
        if odd := [name for name, length in lengths.items() if length != len(images)]:
            raise StoreError(f"{path}: {', '.join(odd)} must have one entry for each of {len(images)} images")
        labels = self.rows["labels"]
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            raise StoreError(f"{path}: labels must be from 0 to {len(self.class_names) - 1}")
        self.segments = map_images(path, images)


def _read(path: Path) -> _File:
    try:
        with h5py.File(path, "r") as file:
            return _File(path, file)
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist") from None
    except StoreError:
        raise
    except (OSError, KeyError, RuntimeError, AttributeError, TypeError, ValueError) as error:  # h5py raises all of them
        raise StoreError(f"{path} is not a complete HDF5 file: {error}; preprocess again") from None


def _plain(value: np.generic | Attribute) -> Attribute:
    return value.item() if isinstance(value, np.generic) else value


def evenly_spaced(rows: int, most: int) -> np.ndarray:
    """Return up to `most` row numbers, int64, at equal distances, so that a store sorted by class gives rows of every class."""
    return np.unique(np.linspace(0, rows - 1, min(most, rows)).astype(np.int64))
