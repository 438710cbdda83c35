"""A store of parts: files of images written anywhere in any order, and a store that links them.

The store is an HDF5 virtual data set over ``NAME.parts/*.h5`` next to it (https://docs.h5py.org/en/stable/vds.html). Names
are relative, so both can be moved together. A part is named by its rows and their checksums: when a cluster repeats a task,
it writes the same bytes under the same name.
"""

import hashlib
import os
import uuid
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from carmodel.data.local_engine import MakeImages, usable_images
from carmodel.data.memory_map import StoreError
from carmodel.data.store import checksums, open_store
from carmodel.data.writer import StoreColumns, StoreSpec, create_images, write_pieces


def parts_folder(store: Path) -> Path:
    """Return the directory for the parts of a store: ``train.parts`` next to ``train.h5``."""
    return store.with_suffix(".parts")


def write_part(batch: pd.DataFrame, make: MakeImages, images: np.ndarray, folder: Path) -> pd.DataFrame:
    """Make the images of a batch and write the usable ones as one part.

    The file is written in one pass, since shared file systems such as DBFS support no other writes.

    Args:
        batch: slice of a table, whose index has the number of each row.
        make: makes the images.
        images: uint8 (n, size, size, 3) to fill, n >= ``len(batch)``. It can be used again for the next part.
        folder: existing directory on storage that all nodes share.

    Returns:
        the outcomes of `make`, and where each image is: `part` (file name, "" without an image), `place` in that part,
        and `crc32` of the image.
    """
    outcomes = make(batch, images[: len(batch)]).assign(part="", place=0, crc32=0)
    kept, usable = usable_images(images, outcomes), outcomes["problem"].eq("").to_numpy()
    if usable.any():
        crc32 = np.array(checksums(kept))
        rows = batch.index.to_numpy(np.int64)[usable]
        name = hashlib.blake2b(rows.tobytes() + crc32.tobytes(), digest_size=16).hexdigest()
        outcomes.loc[usable, "part"] = _save(kept, folder, f"{name}.h5")
        outcomes.loc[usable, "place"] = np.arange(len(kept))
        outcomes.loc[usable, "crc32"] = crc32
    return outcomes


def link_parts(spec: StoreSpec, columns: StoreColumns, made: pd.DataFrame) -> None:
    """Write the store that links parts, check every image in it, and remove other files from the directory of parts.

    Args:
        spec: the store.
        columns: the columns of the N images.
        made: `part`, `place` and `crc32` of each image, from `write_part`. The images of a part are consecutive.

    Raises:
        StoreError: an image does not have its checksum, or a part is missing.
    """
    folder, linked = parts_folder(spec.path), set(made["part"])
    size = spec.image_size
    space = h5py.h5s.create_simple((len(made), size, size, 3))
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)  # the same rows make the same file, whenever it is written
    starts = np.flatnonzero(made["place"] == 0).tolist()
    for start, end in pairwise([*starts, len(made)]):
        name, shape = f"{folder.name}/{made['part'].iloc[start]}", (end - start, size, size, 3)
        space.select_hyperslab((start, 0, 0, 0), shape)
        properties.set_virtual(space, name.encode(), b"images", h5py.h5s.create_simple(shape))
    space.select_all()
    unfinished = spec.path.with_name(f".{spec.path.name}.{os.getpid()}.partial")
    with h5py.File("store", "w", driver="core", backing_store=False) as file:
        h5py.h5d.create(file.id, b"images", h5py.h5t.STD_U8LE, space, properties)
        spec.write(file, columns, made["crc32"].to_numpy())
        data = _bytes_of(file)
    try:
        unfinished.write_bytes(data)
        open_store(unfinished).verify()
        unfinished.replace(spec.path)
    finally:
        unfinished.unlink(missing_ok=True)
    for file in folder.iterdir():
        if file.name not in linked:
            file.unlink(missing_ok=True)  # a repeated task may be renaming its file at this moment


@lru_cache(maxsize=8)
def _header(rows: int, size: int) -> bytes:
    """Return what an HDF5 file with the data set `images`, uint8 (rows, size, size, 3), has before the images.

    Most parts have the same number of rows, so HDF5 makes their header once. Making each file with HDF5 would copy its
    images three times.
    """
    with h5py.File("part", "w", driver="core", backing_store=False) as file:
        offset = create_images(file, rows, size).id.get_offset()
        data = _bytes_of(file)
    if offset is None or len(data) != offset + rows * size * size * 3:
        raise StoreError("HDF5 does not put the images at the end of a file; install the versions of requirements.lock")
    return data[:offset]


def _bytes_of(file: h5py.File) -> bytes:
    file.flush()
    return bytes(file.id.get_file_image())


def _save(images: np.ndarray, folder: Path, name: str) -> str:
    """Write an HDF5 file with the data set `images` under a temporary name, rename it, and return the name."""
    unfinished = folder / f".{uuid.uuid4().hex}.partial"
    try:
        with unfinished.open("wb") as file:
            file.write(_header(len(images), images.shape[1]))
            write_pieces(file, images.reshape(-1).data)
        unfinished.replace(folder / name)
    except OSError as error:
        raise StoreError(f"cannot write part {name} to {folder}: {error}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return name
