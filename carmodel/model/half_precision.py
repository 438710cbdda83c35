"""Save Keras models with weights in 16 bits, at half the size, so that any Keras can load them."""

import shutil
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import keras
import numpy as np

WEIGHTS = "model.weights.h5"
"""Name of the weights inside a ``.keras`` file, which is a zip archive."""


def save_in_half_precision(network: keras.Model, file: Path) -> None:
    """Save a network as a ``.keras`` file with kernels in float16.

    Vectors stay float32, since biases, gamma, beta and statistics of batch normalisation are small and need the range.
    Keras converts the kernels back to float32 when it loads the file.

    Args:
        network: the network to save.
        file: the ``.keras`` file, which is written under a temporary name and then renamed.
    """
    with TemporaryDirectory(prefix="carmodel-") as scratch:
        network.save(whole := Path(scratch, "whole.keras"))
        with zipfile.ZipFile(whole) as archive:
            archive.extractall(scratch)
            names = archive.namelist()
        with h5py.File(Path(scratch, WEIGHTS)) as source, h5py.File(Path(scratch, "half.h5"), "w") as target:
            _copy(source, target)
        shutil.move(Path(scratch, "half.h5"), Path(scratch, WEIGHTS))
        unfinished = file.with_name(f".{file.name}")
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.write(Path(scratch, name), name)
    unfinished.replace(file)


def _copy(source: h5py.Group, target: h5py.Group) -> None:
    """Copy groups, attributes and data sets. float32 arrays with two or more axes become float16."""
    target.attrs.update(source.attrs)
    for name, item in source.items():
        if isinstance(item, h5py.Group):
            _copy(item, target.create_group(name))
            continue
        values = item[()]
        if np.ndim(values) > 1 and values.dtype == np.float32:
            values = values.astype(np.float16)
        target.create_dataset(name, data=values).attrs.update(item.attrs)
