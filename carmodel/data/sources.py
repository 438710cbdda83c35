"""Detect what a data folder contains, and read it: Stanford Cars, its three archives, class folders, or existing stores."""

from dataclasses import dataclass
from pathlib import Path

from carmodel.data import stanford_cars
from carmodel.data.archives import ARCHIVES, unpack
from carmodel.data.class_folders import has_class_folders, read_class_folders
from carmodel.data.table import CarTable
from carmodel.errors import InputError

LAYOUTS = """supported layouts are:
  - cars_train/, cars_test/ and devkit/, as the Stanford Cars archives unpack
  - the archives themselves: cars_train.tgz, cars_test.tgz, car_devkit.tgz
  - one folder per class, CLASS NAME/photo.jpg, with at least two photos in each, or the same within train/ and test/
  - train.h5 and test.h5, as preprocess writes them"""


@dataclass(frozen=True)
class ReadyStores:
    """A folder that already contains train.h5 and test.h5."""

    folder: Path


def open_folder(folder: Path, workdir: Path, seed: int) -> CarTable | ReadyStores:
    """Detect the layout of a folder and read it.

    Args:
        folder: the data.
        workdir: directory to unpack archives into.
        seed: seed of the choice of test photos, for a data set without a labelled test set.

    Raises:
        InputError: the folder has no supported layout, or a file in it is malformed. The message names it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a directory; {LAYOUTS}")
    if (folder / "train.h5").is_file() and (folder / "test.h5").is_file():
        return ReadyStores(folder)
    if stanford_cars.find_devkit(folder):
        return stanford_cars.read(folder, seed)
    if any((folder / name).is_file() for name in ARCHIVES):
        return stanford_cars.read(unpack(folder, workdir / "stanford_cars"), seed)
    if (folder / "cars_train").is_dir():
        return stanford_cars.read(folder, seed)  # the devkit is missing, and the error says what to unpack
    if has_class_folders(folder):
        return read_class_folders(folder, seed)
    found = ", ".join(sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())[:12]) or "nothing"
    raise InputError(f"{folder} contains {found}; {LAYOUTS}")
