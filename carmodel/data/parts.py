"""A store of parts: files of images written anywhere in any order, and the store that links them.

The store is an HDF5 virtual data set over ``NAME.parts/*.h5`` beside it, by relative names, so that both move together
(https://docs.h5py.org/en/stable/vds.html). A part is named by its content: whoever writes it again, as a cluster does with
work that it takes for lost, writes the same bytes under the same name.
"""

import hashlib
import os
import uuid
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from carmodel.data.local_engine import MakeImages, usable_images
from carmodel.data.memory_map import StoreError
from carmodel.data.store import open_store
from carmodel.data.writer import StoreColumns, StoreSpec, checksums, create_images, write_pieces


def parts_folder(store: Path) -> Path:
    """Where the parts of a store lie: ``train.parts`` beside ``train.h5``."""
    return store.with_suffix(".parts")


def write_part(batch: pd.DataFrame, make: MakeImages, size: int, folder: Path) -> pd.DataFrame:
    """MakeImages the images of a batch and write those that are fine as one part.

    The file is made in memory and written from its beginning to its end, since shared folders such as DBFS take no
    other writes.

    Args:
        batch: slice of a table.
        make: its images.
        size: side of the images, in pixels.
        folder: exists, on storage that all nodes share.

    Returns:
        what `make` told of each row, and where its image is: `part` (file name, "" without an image), `place` in that
        part, and `crc32` of the image.
    """
    images = np.empty((len(batch), size, size, 3), np.uint8)
    told = make(batch, images)
    kept, fine = usable_images(images, told), told["problem"].eq("").to_numpy()
    told = told.assign(part="", place=0, crc32=0)
    if fine.any():
        told.loc[fine, "part"] = _keep(_file_of(kept), folder)
        told.loc[fine, "place"] = np.arange(len(kept))
        told.loc[fine, "crc32"] = checksums(kept)
    return told


def link_parts(header: StoreSpec, rows: StoreColumns, made: pd.DataFrame) -> None:
    """Write the store that links parts, check every image in it, and remove files in its folder that it does not name.

    Args:
        header: of the store.
        rows: what is known of the N images.
        made: `part`, `place` and `crc32` of each, as `write_part` gave them; a part's images stand one after another.

    Raises:
        StoreError: names the row whose image is not what was made, or the part that is missing.
    """
    folder, linked = parts_folder(header.path), set(made["part"])
    size = header.image_size
    layout = h5py.VirtualLayout((len(made), size, size, 3), np.uint8)
    starts = np.flatnonzero(made["place"] == 0).tolist()
    for start, end in pairwise([*starts, len(made)]):
        name = f"{folder.name}/{made['part'].iloc[start]}"
        layout[start:end] = h5py.VirtualSource(name, "images", (end - start, size, size, 3))
    unfinished = header.path.with_name(f".{header.path.name}.{os.getpid()}.partial")
    with h5py.File("store", "w", driver="core", backing_store=False) as file:
        file.create_virtual_dataset("images", layout)
        header.write(file, rows, made["crc32"].to_numpy())
        data = _bytes_of(file)
    try:
        unfinished.write_bytes(data)
        open_store(unfinished).verify()
        unfinished.replace(header.path)
    finally:
        unfinished.unlink(missing_ok=True)
    for file in folder.iterdir():
        if file.name not in linked:
            file.unlink(missing_ok=True)  # a task that ran twice may be renaming its own just now


def _file_of(images: np.ndarray) -> bytes:
    """An HDF5 file with the data set `images`, as bytes."""
    with h5py.File("part", "w", driver="core", backing_store=False) as file:
        create_images(file, len(images), images.shape[1])[:] = images
        return _bytes_of(file)


def _bytes_of(file: h5py.File) -> bytes:
    file.flush()
    return bytes(file.id.get_file_image())


def _keep(data: bytes, folder: Path) -> str:
    """Write a file beside and rename it to the digest of its content; returns the name."""
    name = f"{hashlib.blake2b(data, digest_size=16).hexdigest()}.h5"
    unfinished = folder / f".{uuid.uuid4().hex}.partial"
    try:
        with unfinished.open("wb") as file:
            write_pieces(file, data)
        unfinished.replace(folder / name)
    except OSError as error:
        raise StoreError(f"part {name} can't be written to {folder}: {error}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return name
