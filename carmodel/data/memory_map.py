"""Memory maps of the images in an HDF5 file, which many threads can read at once, and copies of its files."""

import shutil
from pathlib import Path

import h5py
import numpy as np

from carmodel.errors import InputError


class StoreError(InputError):
    """A file that is not a whole, consistent store; the text names the file and what is wrong."""


def map_images(path: Path, images: h5py.Dataset) -> list[np.ndarray]:
    """Map a data set of images, without reading it.

    Args:
        path: the file that holds it.
        images: contiguous uint8 (N, H, W, 3), or a virtual data set whose parts, each a range of rows, are.

    Returns:
        read-only arrays (n, H, W, 3) that are the rows one after another.

    Raises:
        StoreError: chunked or compressed, cut off, or a part is missing.
    """
    return _map_parts(path, images) if images.is_virtual else [_map(path, images)]


def copy_store(source: Path, target_folder: Path) -> None:
    """Copy a store and the part files that its virtual data sets name; the copy does not need the original.

    Args:
        source: the store.
        target_folder: existing folder; parts keep their names relative to it.

    Raises:
        StoreError: the store or a part cannot be read, or a part does not lie within the store's folder.
    """
    try:
        with h5py.File(source, "r") as file:
            virtual = [item for item in file.values() if isinstance(item, h5py.Dataset) and item.is_virtual]
            parts = {part.file_name for dataset in virtual for part in dataset.virtual_sources()} - {"."}
        for name in sorted(parts):
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise StoreError(f"{source}: its part {name} is not within {source.parent}; move it there")
            _copy(source.parent / name, target_folder / name)
        _copy(source, target_folder / source.name)
    except OSError as error:
        raise StoreError(f"{source} cannot be copied: {error}") from None


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.partial")
    shutil.copyfile(source, unfinished)
    unfinished.replace(target)


def _map(path: Path, images: h5py.Dataset) -> np.ndarray:
    if len(images) == 0:
        return np.empty(images.shape, np.uint8)
    offset = images.id.get_offset()
    if offset is None:
        raise StoreError(f"{path}: images must be contiguous and uncompressed; preprocess again")
    try:
        return np.memmap(path, np.uint8, "r", offset, images.shape)
    except ValueError as error:
        raise StoreError(f"{path} is cut off: {error}") from None


def _map_parts(path: Path, images: h5py.Dataset) -> list[np.ndarray]:
    segments: list[np.ndarray] = []
    end = 0
    for part in sorted(images.virtual_sources(), key=lambda part: part.vspace.get_select_bounds()[0][0]):
        first, last = (bound[0] for bound in part.vspace.get_select_bounds())
        if first != end:
            raise StoreError(f"{path}: no part holds the rows {end} … {first - 1}")
        end = last + 1
        # A relative name is meant from the folder of the file that names it; "." is that file itself.
        name = path if part.file_name == "." else path.parent / part.file_name
        try:
            with h5py.File(name, "r") as file:
                rows = _map(name, file[part.dset_name])
        except (OSError, KeyError) as error:
            raise StoreError(f"{path}: its part {name} cannot be read: {error}") from None
        if part.src_space.get_select_type() == h5py.h5s.SEL_HYPERSLABS:
            start, stop = (bound[0] for bound in part.src_space.get_select_bounds())
            rows = rows[start : stop + 1]
        if len(rows) != last + 1 - first:
            raise StoreError(f"{path}: its part {name} has {len(rows)} rows instead of {last + 1 - first}")
        segments.append(rows)
    if end != len(images):
        raise StoreError(f"{path}: no part holds the rows {end} … {len(images) - 1}")
    return segments
