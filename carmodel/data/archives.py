"""Unpack the three published archives of Stanford Cars, completely and safely or not at all."""

import errno
import lzma
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath

from carmodel.errors import InputError

ARCHIVES = ("cars_train.tgz", "cars_test.tgz", "car_devkit.tgz")


def unpack(folder: Path, target: Path) -> Path:
    """Unpack the three published archives. Nothing is written outside `target`.

    Raises:
        InputError: an archive is missing or damaged, or a member is a link, a device or a path outside the target.
    """
    if missing := [name for name in ARCHIVES if not (folder / name).is_file()]:
        raise InputError(f"{folder} has only some of the archives; add {', '.join(missing)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as unfinished:
        here = Path(unfinished) / target.name
        here.mkdir()
        for name in ARCHIVES:
            _extract(folder / name, here)
        for labels in folder.glob("cars_test_annos_withlabels*.mat"):
            shutil.copy(labels, here)
        if target.exists():
            shutil.rmtree(target)
        here.replace(target)
    return target


def _extract(archive: Path, target: Path) -> None:
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                _check_member(archive, member)
                tar.extract(member, target, filter="data")
            _read_to_end(tar)
    except InputError:
        raise
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise InputError(f"{archive} cannot be unpacked into {target}: {error.strerror}; make room there") from None
        raise InputError(f"{archive} cannot be unpacked: {error}; download it again") from None


def _check_member(archive: Path, member: tarfile.TarInfo) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
        raise InputError(
            f"{archive}: member {member.name!r} is a link, a device or a path outside the folder. "
            "The archive is not used; download it from its publisher"
        )


def _read_to_end(tar: tarfile.TarFile) -> None:
    # tarfile takes a damaged header for the end of the archive, and stops before the stream's own checksum. An archive
    # ends with two blocks of zeros. tarfile has read the first.
    stream = tar.fileobj
    if stream is None or stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it ends too early")
    while stream.read(1 << 20):
        pass
