"""Write a store as one HDF5 file, under a temporary name until it is complete. `carmodel.data.store` describes the schema."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import h5py
import numpy as np

from carmodel.data.memory_map import StoreError
from carmodel.data.store import ATTRIBUTES, OPTIONAL_DATA, ROW_DATA, SCHEMA_VERSION, Attribute, checksums

# Linux caches larger writes in larger pages, for which a virtual machine may have to request memory. That took up to five
# times the system time.
PIECE = 1 << 20


@dataclass(frozen=True)
class StoreColumns:
    """The columns of a store's N rows, in addition to the images. `aspect` may be left out."""

    labels: np.ndarray
    source: Sequence[str] | np.ndarray
    source_index: np.ndarray
    validation: np.ndarray
    aspect: np.ndarray | None = None


class StoreSpec:
    """The path, image size, attributes and class names of a store to write.

    Args:
        path: final name of the file.
        image_size: side of the square images, in pixels.
        class_names: label i is class_names[i].
        attrs: the schema's other attributes: split, crop, margin, seed, created_by and, optionally, note.

    Raises:
        StoreError: an attribute is missing or is not in the schema.
    """

    def __init__(self, path: Path, image_size: int, class_names: Sequence[str], **attrs: Attribute) -> None:
        self.path = path
        self.image_size = image_size
        self._class_names = list(class_names)
        self._attrs = {"schema_version": SCHEMA_VERSION, "image_size": image_size, **attrs}
        if odd := (set(ATTRIBUTES) ^ set(self._attrs)) - {"note"}:
            raise StoreError(f"{path}: a store has the attributes {', '.join(ATTRIBUTES)}; check {sorted(odd)}")

    def write(self, file: h5py.File, columns: StoreColumns | None, crc32: Sequence[int] | np.ndarray) -> None:
        """Write everything except the images.

        Raises:
            StoreError: the columns and `crc32` have different lengths.
        """
        if columns is None or any(len(column) != len(crc32) for column in vars(columns).values() if column is not None):
            raise StoreError(f"{self.path}: every column must have {len(crc32)} rows, one per image")
        values = {**vars(columns), "crc32": crc32}
        for name, dtype in (ROW_DATA | OPTIONAL_DATA).items():
            if values[name] is not None:
                file[name] = np.asarray(values[name], dtype)
        text = h5py.string_dtype()
        file.create_dataset("source", data=np.array(columns.source, object), dtype=text)
        file.create_dataset("class_names", data=np.array(self._class_names, object), dtype=text)
        file.attrs.update(self._attrs)


class Writer:
    """Write a store within a ``with`` block: images batch by batch, then the columns.

    The file has a temporary name. It gets its final name when the block ends, and is removed if the block raises an
    exception. If fewer than `rows` images are appended, the file is made smaller.

    Args:
        spec: the store.
        rows: largest number of images.
    """

    def __init__(self, spec: StoreSpec, rows: int) -> None:
        self._spec = spec
        self._partial = spec.path.with_name(f".{spec.path.name}.{os.getpid()}.partial")
        self._shorter = self._partial.with_suffix(".shorter")
        self._crc32: list[int] = []
        self._columns: StoreColumns | None = None
        self._file = h5py.File(self._partial, "w")
        self._images = create_images(self._file, rows, spec.image_size)
        self._file.flush()
        # Plain writes at the images' offset let other threads work meanwhile. Writes by h5py hold Python's global lock.
        self._raw = self._partial.open("r+b")
        self._raw.seek(self._images.id.get_offset() or 0)

    def __enter__(self) -> Self:
        return self

    def append(self, images: np.ndarray, crc32: Sequence[int] | None = None) -> None:
        """Append uint8 (n, H, W, 3), with their `checksums` if they are known.

        Raises:
            StoreError: there are more than `rows` images, or their size is different.
        """
        crc32 = checksums(images) if crc32 is None else crc32
        if images.shape[1:] != self._images.shape[1:] or len(self._crc32) + len(images) > len(self._images):
            raise StoreError(f"{self._spec.path}: {images.shape} appended to {self._images.shape}")
        write_pieces(self._raw, np.ascontiguousarray(images, np.uint8).reshape(-1).data)
        self._crc32 += crc32

    def describe(self, columns: StoreColumns) -> None:
        """Set the columns of all rows, in the order of the images."""
        self._columns = columns

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._raw.close()
            self._file.close()
            self._partial.unlink(missing_ok=True)
            self._shorter.unlink(missing_ok=True)

    def _finish(self) -> None:
        self._raw.close()
        if len(self._crc32) < len(self._images):
            self._trim()
        self._spec.write(self._file, self._columns, self._crc32)
        self._file.close()
        self._partial.replace(self._spec.path)

    def _trim(self) -> None:
        # A contiguous data set cannot shrink, so the images are copied to a smaller file.
        with h5py.File(self._shorter, "w") as file:
            images = create_images(file, len(self._crc32), self._spec.image_size)
            for start in range(0, len(images), 256):
                end = min(start + 256, len(images))
                images[start:end] = self._images[start:end]
        self._file.close()
        self._shorter.replace(self._partial)
        self._file = h5py.File(self._partial, "r+")


def write_pieces(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write bytes in pieces of at most `PIECE`."""
    view = memoryview(data)
    for start in range(0, len(view), PIECE):
        file.write(view[start : start + PIECE])


def create_images(file: h5py.File, rows: int, size: int) -> h5py.Dataset:
    """Create the data set `images`, contiguous and uncompressed: uint8 (rows, size, size, 3)."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    # Allocate space at once and without fill values, since every row is written.
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    # Without times, the same rows make the same file, byte for byte. The cache compares files.
    properties.set_obj_track_times(False)
    space = h5py.h5s.create_simple((rows, size, size, 3))
    return h5py.Dataset(h5py.h5d.create(file.id, b"images", h5py.h5t.STD_U8LE, space, properties))
