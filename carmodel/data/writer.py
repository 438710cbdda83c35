"""Writing a store, beside its final name: one file of images and what is known of each (schema: `carmodel.data.store`)."""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

import h5py
import numpy as np

from carmodel.data.memory_map import StoreError
from carmodel.data.store import ATTRIBUTES, ROW_DATA, SCHEMA_VERSION, Attribute

# Linux keeps what comes in larger pieces in larger pages, of memory that a virtual machine may not have been given yet:
# five times the system time was seen.
PIECE = 1 << 20


class StoreColumns(NamedTuple):
    """What a store keeps of its N rows beside their images; see the module's schema."""

    labels: np.ndarray
    source: Sequence[str] | np.ndarray
    source_index: np.ndarray
    validation: np.ndarray


class StoreSpec:
    """A store that is to be written: its path and size, its attributes and class names.

    Args:
        path: final name of the file.
        image_size: side of the square images, in pixels.
        class_names: label i is class_names[i].
        attrs: the schema's other attributes: split, crop, margin, seed, created_by, and note where there is one.

    Raises:
        StoreError: an attribute of the schema is missing, or one is none of it.
    """

    def __init__(self, path: Path, image_size: int, class_names: Sequence[str], **attrs: Attribute) -> None:
        self.path = path
        self.image_size = image_size
        self._class_names = list(class_names)
        self._attrs = {"schema_version": SCHEMA_VERSION, "image_size": image_size, **attrs}
        if odd := (set(ATTRIBUTES) ^ set(self._attrs)) - {"note"}:
            raise StoreError(f"{path}: a store has the attributes {', '.join(ATTRIBUTES)}; check {sorted(odd)}")

    def write(self, file: h5py.File, rows: StoreColumns | None, crc32: Sequence[int] | np.ndarray) -> None:
        """Write everything but the images.

        Raises:
            StoreError: not as many rows as checksums.
        """
        if rows is None or any(len(column) != len(crc32) for column in rows):
            raise StoreError(f"{self.path}: {len(crc32)} images, but not as many rows were described")
        columns = {**rows._asdict(), "crc32": crc32}
        for name, dtype in ROW_DATA.items():
            file[name] = np.asarray(columns[name], dtype)
        text = h5py.string_dtype()
        file.create_dataset("source", data=np.array(rows.source, object), dtype=text)
        file.create_dataset("class_names", data=np.array(self._class_names, object), dtype=text)
        file.attrs.update(self._attrs)


class Writer:
    """Write a store, within a ``with`` block: images batch by batch, then what is known of all rows.

    The rows go to a file beside the target, which gets the final name when the block ends well and is removed when it
    does not. Fewer images than announced are fine: the file is cut to those that came.

    Args:
        header: of the store.
        rows: most images that will be appended.
    """

    def __init__(self, header: StoreSpec, rows: int) -> None:
        self._header = header
        self._partial = header.path.with_name(f".{header.path.name}.{os.getpid()}.partial")
        self._shorter = self._partial.with_suffix(".shorter")
        self._crc32: list[int] = []
        self._rows: StoreColumns | None = None
        self._file = h5py.File(self._partial, "w")
        self._images = create_images(self._file, rows, header.image_size)
        self._file.flush()
        # Plain writes at the images' place in the file let other threads work meanwhile; h5py's hold Python's lock.
        self._raw = self._partial.open("r+b")
        self._raw.seek(self._images.id.get_offset() or 0)

    def __enter__(self) -> Self:
        return self

    def append(self, images: np.ndarray, crc32: Sequence[int] | None = None) -> None:
        """Append uint8 (n, H, W, 3), with their `checksums` where they are known.

        Raises:
            StoreError: more images than were announced, or of another size.
        """
        crc32 = checksums(images) if crc32 is None else crc32
        if images.shape[1:] != self._images.shape[1:] or len(self._crc32) + len(images) > len(self._images):
            raise StoreError(f"{self._header.path}: {images.shape} appended to {self._images.shape}")
        write_pieces(self._raw, np.ascontiguousarray(images, np.uint8).reshape(-1).data)
        self._crc32 += crc32

    def describe(self, rows: StoreColumns) -> None:
        """Say what all rows are, in the order in which their images came."""
        self._rows = rows

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
        self._header.write(self._file, self._rows, self._crc32)
        self._file.close()
        self._partial.replace(self._header.path)

    def _trim(self) -> None:
        # A contiguous data set cannot shrink: the rows that came are copied once, slice by slice, to a file of their
        # size.
        with h5py.File(self._shorter, "w") as file:
            images = create_images(file, len(self._crc32), self._header.image_size)
            for start in range(0, len(images), 256):
                end = min(start + 256, len(images))
                images[start:end] = self._images[start:end]
        self._file.close()
        self._shorter.replace(self._partial)
        self._file = h5py.File(self._partial, "r+")


def write_pieces(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write one dimension of bytes, `PIECE` of them at a time."""
    view = memoryview(data)
    for start in range(0, len(view), PIECE):
        file.write(view[start : start + PIECE])


def checksums(images: np.ndarray) -> list[int]:
    """CRC-32 of each image of uint8 (n, H, W, 3)."""
    return [zlib.crc32(image) for image in images]


def create_images(file: h5py.File, rows: int, size: int) -> h5py.Dataset:
    """MakeImages the data set `images`, contiguous and uncompressed: uint8 (rows, size, size, 3)."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    # Space at once and without fill values: the rows are written anyway.
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    # The same rows make the same file, byte for byte, whenever it is written: the cache compares files.
    plan.set_obj_track_times(False)
    space = h5py.h5s.create_simple((rows, size, size, 3))
    return h5py.Dataset(h5py.h5d.create(file.id, b"images", h5py.h5t.STD_U8LE, space, plan))
