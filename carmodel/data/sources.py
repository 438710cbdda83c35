"""What a folder of data is: Stanford Cars, its three archives, class folders, or stores that are ready."""

from dataclasses import dataclass
from pathlib import Path

from carmodel.data import stanford_cars
from carmodel.data.archives import ARCHIVES, unpack
from carmodel.data.class_folders import has_class_folders, read_class_folders
from carmodel.data.table import CarTable
from carmodel.errors import InputError

LAYOUTS = """understood are:
  - cars_train/, cars_test/ and devkit/, as the Stanford Cars archives unpack
  - the archives themselves: cars_train.tgz, cars_test.tgz, car_devkit.tgz
  - a folder a class, CLASS NAME/photo.jpg, with two photos or more in each; or the same within train/ and test/
  - train.h5 and test.h5, as preprocess writes them"""


@dataclass(frozen=True)
class ReadyStores:
    """A folder that already holds train.h5 and test.h5."""

    folder: Path


def open_folder(folder: Path, workdir: Path, seed: int) -> CarTable | ReadyStores:
    """Find out what a folder holds and read it.

    Args:
        folder: the data.
        workdir: where archives are unpacked.
        seed: of the photos held out for the test, where the data set has no labelled test of its own.

    Raises:
        InputError: the folder holds nothing that is understood, or something malformed; the text says what and where.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; {LAYOUTS}")
    if (folder / "train.h5").is_file() and (folder / "test.h5").is_file():
        return ReadyStores(folder)
    if stanford_cars.find_devkit(folder):
        return stanford_cars.read(folder, seed)
    if any((folder / name).is_file() for name in ARCHIVES):
        return stanford_cars.read(unpack(folder, workdir / "stanford_cars"), seed)
    if (folder / "cars_train").is_dir():
        return stanford_cars.read(folder, seed)  # without its devkit: the error says what to unpack
    if has_class_folders(folder):
        return read_class_folders(folder, seed)
    found = ", ".join(sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())[:12]) or "nothing"
    raise InputError(f"{folder} holds {found}; {LAYOUTS}")
