"""Map the images of an HDF5 store into memory, so that many threads can read them. Copy a store with its part files."""

import errno
import resource
import shutil
from pathlib import Path

import h5py
import numpy as np

from carmodel.errors import InputError


class StoreError(InputError):
    """A file is not a complete, consistent store. The message names the file and the reason."""


def map_images(path: Path, images: h5py.Dataset) -> list[np.ndarray]:
    """Map a data set of images without reading it.

    Args:
        path: the file that contains it.
        images: contiguous uint8 (N, H, W, 3), or a virtual data set whose parts are contiguous ranges of rows.

    Returns:
        read-only arrays (n, H, W, 3), which together contain the rows in order.

    Raises:
        StoreError: the images are chunked, compressed or truncated, or a part is missing.
    """
    return _map_parts(path, images) if images.is_virtual else [_map(path, images)]


def copy_store(source: Path, target_folder: Path) -> None:
    """Copy a store and the part files that it links. The copy does not need the original.

    Args:
        source: the store.
        target_folder: existing directory. Parts keep their names relative to it.

    Raises:
        StoreError: the store or a part cannot be read, or a part is not inside the store's directory.
    """
    try:
        with h5py.File(source, "r") as file:
            virtual = [item for item in file.values() if isinstance(item, h5py.Dataset) and item.is_virtual]
            parts = {part.file_name for dataset in virtual for part in dataset.virtual_sources()} - {"."}
        for name in sorted(parts):
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise StoreError(f"{source}: its part {name} is not inside {source.parent}; move it there")
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
        raise StoreError(f"{path} is truncated: {error}; copy it again, or preprocess again") from None


def _map_parts(path: Path, images: h5py.Dataset) -> list[np.ndarray]:
    # Each map keeps its file open. The soft limit is often 1,024 files, and a program may raise it up to the hard one.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    segments: list[np.ndarray] = []
    end = 0
    for part in sorted(images.virtual_sources(), key=lambda part: part.vspace.get_select_bounds()[0][0]):
        first, last = (bound[0] for bound in part.vspace.get_select_bounds())
        if first != end:
            raise StoreError(f"{path}: no part has the rows {end} to {first - 1}")
        end = last + 1
        # A name is relative to the directory of the file that contains it. "." is that file itself.
        name = path if part.file_name == "." else path.parent / part.file_name
        try:
            with h5py.File(name, "r") as file:
                rows = _map(name, file[part.dset_name])
        except (OSError, KeyError) as error:
            more = "; allow more open files with ulimit -n" if getattr(error, "errno", None) == errno.EMFILE else ""
            raise StoreError(f"{path}: its part {name} cannot be read: {error}{more}") from None
        if part.src_space.get_select_type() == h5py.h5s.SEL_HYPERSLABS:
            start, stop = (bound[0] for bound in part.src_space.get_select_bounds())
            rows = rows[start : stop + 1]
        if len(rows) != last + 1 - first:
            raise StoreError(f"{path}: its part {name} has {len(rows)} rows instead of {last + 1 - first}")
        segments.append(rows)
    if end != len(images):
        raise StoreError(f"{path}: no part has the rows {end} to {len(images) - 1}")
    return segments
