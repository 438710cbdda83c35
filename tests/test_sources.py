"""What a folder contains: Stanford Cars, archives, class folders, stores, or nothing that is supported."""

import gzip
import io
import lzma
import os
import resource
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from carmodel.data import stanford_cars
from carmodel.data.archives import unpack
from carmodel.data.class_folders import read_class_folders
from carmodel.data.preprocessing import decode_batch
from carmodel.data.sample import draw
from carmodel.data.sources import ReadyStores, open_folder
from carmodel.data.split import file_digest, hold_out_test
from carmodel.data.table import NO_BOX, CarTable, photo_table
from carmodel.errors import InputError


def archived(data: Path, folder: Path) -> Path:
    """The three published archives of a data set."""
    folder.mkdir()
    for archive, inside in (("cars_train", "cars_train"), ("cars_test", "cars_test"), ("car_devkit", "devkit")):
        with tarfile.open(folder / f"{archive}.tgz", "w:gz") as tar:
            tar.add(data / inside, inside)
    return folder


def class_folders(data: Path, folder: Path) -> Path:
    """The training photos of a data set, a folder a class."""
    table = stanford_cars.read(data)
    for row in table.photos[table.photos["split"] == "train"].itertuples():
        place = folder / table.class_names[row.label]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(row.path, place / row.source)
    return folder


def opened(folder: Path, workdir: Path, seed: int = 0) -> CarTable:
    table = open_folder(folder, workdir, seed)
    assert isinstance(table, CarTable)
    return table


def test_the_three_archives_are_unpacked_and_read_as_the_official_layout(sample: Path, tmp_path: Path) -> None:
    official = opened(sample, tmp_path).photos
    assert official.equals(stanford_cars.read(sample).photos)
    archives = archived(sample, tmp_path / "archives")
    unpacked = opened(archives, tmp_path / "work").photos
    assert unpacked.drop(columns="path").equals(official.drop(columns="path"))
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"stanford_cars"}
    (archives / "cars_test.tgz").unlink()
    with pytest.raises(InputError, match=r"add cars_test\.tgz"):
        open_folder(archives, tmp_path / "work", 0)


def test_the_test_labels_are_found_beside_the_archives(sample: Path, tmp_path: Path) -> None:
    archives = archived(sample, tmp_path / "archives")
    with tarfile.open(archives / "car_devkit.tgz", "w:gz") as tar:
        for path in (sample / "devkit").iterdir():
            if "withlabels" not in path.name:
                tar.add(path, f"devkit/{path.name}")
    assert opened(archives, tmp_path / "without").notes
    shutil.copy(sample / "devkit" / "cars_test_annos_withlabels.mat", archives)
    assert not opened(archives, tmp_path / "with").notes


def second_header(tar: bytes) -> int:
    """Where the header of an archive's second member begins."""
    return tar.index(b"ustar", 2 * tarfile.BLOCKSIZE) - 257


def without_end(tar: bytes) -> bytes:
    """A tar archive without the blocks of zeros that end it."""
    content = tar.rstrip(b"\0")
    return content + bytes(-len(content) % tarfile.BLOCKSIZE)


ON_THE_WAY = {
    "a byte of the stream": lambda gz: gz[: len(gz) // 2] + bytes([gz[len(gz) // 2] ^ 1]) + gz[len(gz) // 2 + 1 :],
    "the checksum": lambda gz: gz[:-8] + bytes(4) + gz[-4:],
    "cut off in the checksum": lambda gz: gz[:-6],
    "cut in half": lambda gz: gz[: len(gz) // 2],
}
BEFORE_PACKING = {
    "cut off between two members": lambda tar: gzip.compress(tar[: second_header(tar)]),
    "without its end": lambda tar: gzip.compress(without_end(tar)),
    "a header": lambda tar: gzip.compress(tar[: second_header(tar)] + b"?" * 8 + tar[second_header(tar) + 8 :]),
    "cut off, uncompressed": lambda tar: tar[: len(tar) // 2],
    "cut off, xz": lambda tar: lzma.compress(tar)[:-40],
}


@pytest.mark.parametrize("how", [*ON_THE_WAY, *BEFORE_PACKING])
def test_no_damage_to_an_archive_passes_unnoticed(sample: Path, tmp_path: Path, how: str) -> None:
    archives = archived(sample, tmp_path / "archives")
    path = archives / "cars_train.tgz"
    archive = path.read_bytes()
    path.write_bytes(ON_THE_WAY[how](archive) if how in ON_THE_WAY else BEFORE_PACKING[how](gzip.decompress(archive)))
    with pytest.raises(InputError, match=r"cars_train\.tgz cannot be unpacked"):
        unpack(archives, tmp_path / "work" / "cars")
    assert not list((tmp_path / "work").iterdir())


def test_a_full_disk_is_not_called_a_damaged_archive(sample: Path, tmp_path: Path) -> None:
    archives = archived(sample, tmp_path / "archives")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(
            InputError, match=r"cars_train\.tgz cannot be unpacked into .*: File too large; make room there"
        ):
            unpack(archives, tmp_path / "work" / "cars")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    for folder in (b"Citro\xebn", b"Volvo"):
        (made := tmp_path / os.fsdecode(folder)).mkdir()
        for number in b"12":
            (made / f"{number}.jpg").write_bytes(bytes([number]))
    with pytest.raises(InputError, match=r"'Citro\\udcebn/49\.jpg': the name of .* is not UTF-8; rename it"):
        read_class_folders(tmp_path, 0)


def test_a_member_whose_name_cannot_be_a_file_name_is_damage(sample: Path, tmp_path: Path) -> None:
    archives = archived(sample, tmp_path / "archives")
    with tarfile.open(archives / "cars_train.tgz", "w:gz") as tar:
        member = tarfile.TarInfo("x")
        member.pax_headers = {"path": "cars_train/\0.jpg"}
        tar.addfile(member)
    with pytest.raises(InputError, match=r"cars_train\.tgz cannot be unpacked: embedded null byte"):
        unpack(archives, tmp_path / "work" / "cars")


@pytest.mark.parametrize("pack", [lzma.compress, bytes], ids=["xz", "uncompressed"])
def test_an_archive_packed_otherwise_under_the_same_name_is_fine(
    sample: Path, tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    archives = archived(sample, tmp_path / "archives")
    path = archives / "cars_train.tgz"
    path.write_bytes(pack(gzip.decompress(path.read_bytes())))
    assert unpack(archives, tmp_path / "cars").joinpath("cars_train").is_dir()


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../escaped.txt"),
        tarfile.TarInfo("cars_train/../../escaped.txt"),
        tarfile.TarInfo("/tmp/escaped.txt"),
        link("cars_train/link", "../../..", tarfile.SYMTYPE),
        link("cars_train/link", "/etc/passwd", tarfile.SYMTYPE),
        link("cars_train/link", "../escaped.txt", tarfile.LNKTYPE),
        link("cars_train/pipe", "", tarfile.FIFOTYPE),
        link("cars_train/device", "", tarfile.CHRTYPE),
    ],
    ids=lambda member: f"{member.name} {member.linkname}".strip(),
)
def test_no_member_may_leave_the_target(sample: Path, tmp_path: Path, member: tarfile.TarInfo) -> None:
    archives = archived(sample, tmp_path / "archives")
    content = b"escaped" if member.isfile() else b""
    member.size = len(content)
    with tarfile.open(archives / "cars_train.tgz", "w:gz") as tar:
        tar.addfile(member, io.BytesIO(content))
    with pytest.raises(InputError) as error:
        unpack(archives, tmp_path / "work" / "cars")
    assert "cars_train.tgz" in str(error.value)
    assert repr(member.name) in str(error.value)
    assert not list((tmp_path / "work").iterdir())
    assert not list(tmp_path.rglob("escaped.txt"))


def test_existing_stores_are_recognised(tmp_path: Path) -> None:
    for name in ("train.h5", "test.h5"):
        (tmp_path / name).write_bytes(b"")
    assert open_folder(tmp_path, tmp_path / "work", 0) == ReadyStores(tmp_path)


def test_class_folders_hold_out_a_fifth_of_each_class(tmp_path: Path) -> None:
    folder = class_folders(draw(tmp_path / "drawn", 2, 13), tmp_path / "mine")
    table = opened(folder, tmp_path / "work")
    assert table.class_names == sorted(path.name for path in folder.iterdir())
    assert table.photos.groupby(["split", "label"]).size()["test"].tolist() == [2, 2]
    assert (table.photos[["x1", "y1", "x2", "y2"]] == -1).all(axis=None)
    assert all(table.class_names[row.label] == row.source.split("/")[0] for row in table.photos.itertuples())
    assert "4 of 22 photos" in table.notes[0]


def test_photos_are_held_out_by_content_and_identical_ones_together(tmp_path: Path) -> None:
    def held_out() -> set[bytes]:
        photos = opened(folder, tmp_path / "work").photos
        by_split = photos.assign(digest=[file_digest(path) for path in photos["path"]]).groupby("split")["digest"]
        test, train = set(by_split.get_group("test")), set(by_split.get_group("train"))
        assert not test & train
        return test

    folder = class_folders(draw(tmp_path / "drawn", 2, 13), tmp_path / "mine")
    before = held_out()
    for i, path in enumerate(sorted(folder.glob("*/*.jpg"), reverse=True)):
        path.rename(path.with_name(f"renamed{i}.jpg"))
    assert held_out() == before
    for path in list(folder.glob("*/*.jpg")):
        shutil.copy(path, path.with_name(f"twin of {path.name}"))
    assert held_out()


def test_class_folders_within_train_and_test_keep_their_split(tmp_path: Path) -> None:
    drawn = draw(tmp_path / "drawn", 2, 5)
    class_folders(drawn, tmp_path / "mine" / "train")
    class_folders(drawn, tmp_path / "mine" / "test")
    table = opened(tmp_path / "mine", tmp_path / "work")
    assert table.photos.groupby("split").size().to_dict() == {"test": 8, "train": 8}
    (tmp_path / "mine" / "test" / "Synthetic SUV 2020").rename(tmp_path / "mine" / "test" / "Odd Car")
    with pytest.raises(InputError, match="classes that train/ lacks: Odd Car"):
        open_folder(tmp_path / "mine", tmp_path / "work", 0)


def test_a_folder_of_something_else_is_refused_with_its_contents_and_the_layouts(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    layouts = r"contains empty/, notes\.txt; supported layouts are:(.|\n)*cars_train(.|\n)*train\.h5"
    with pytest.raises(InputError, match=layouts):
        open_folder(tmp_path, tmp_path / "work", 0)
    with pytest.raises(InputError, match="is not a directory"):
        open_folder(tmp_path / "notes.txt", tmp_path / "work", 0)


def test_every_file_of_a_class_folder_that_is_not_taken_is_a_problem(tmp_path: Path) -> None:
    folder = class_folders(draw(tmp_path / "drawn", 2, 13), tmp_path / "mine")
    suv = folder / "Synthetic SUV 2020"
    photo = next(suv.glob("*.jpg"))
    (suv / "more" / "still more").mkdir(parents=True)
    for name in ("a.gif", "b.tiff", "notes.txt", "more/c.jpg", "more/still more/d.jpg", "../beside.jpg", ".hidden.gif"):
        shutil.copy(photo, suv / name)
    (suv / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (suv / "elsewhere").symlink_to(folder / "Synthetic Sedan 2020")
    table = opened(folder, tmp_path / "work")
    found = {(row.source.removeprefix("Synthetic SUV 2020/"), row.problem) for row in table.problems.itertuples()}
    assert found == {
        ("a.gif", "extra"),
        ("b.tiff", "extra"),
        ("more/c.jpg", "extra"),
        ("more/still more/d.jpg", "extra"),
        ("beside.jpg", "extra"),
        ("elsewhere", "extra"),
        ("gone.jpg", "missing"),
    }
    assert table.ignored_files == 1
    assert len(table.photos) == 22
    assert set(table.problems["label"]) == {-1, table.class_names.index(suv.name)}


def without_photo(folder: Path) -> None:
    for photo in (folder / "Synthetic SUV 2020").iterdir():
        photo.unlink()
    (folder / "Synthetic SUV 2020" / "car.gif").write_bytes(b"")


def with_one_photo(folder: Path) -> None:
    first, *others = (folder / "Synthetic SUV 2020").iterdir()
    for other in others:
        shutil.copy(first, other)


def with_one_class(folder: Path) -> None:
    shutil.rmtree(folder / "Synthetic SUV 2020")


@pytest.mark.parametrize(
    ("side", "change", "said"),
    [
        ("", without_photo, r"Synthetic SUV 2020 has no photo \(\.bmp, \.jpeg, \.jpg"),
        ("train", without_photo, "Synthetic SUV 2020 has no photo"),
        ("test", without_photo, "Synthetic SUV 2020 has no photo"),
        ("", with_one_photo, "too few in Synthetic SUV 2020"),
        ("", with_one_class, "one class folder, Synthetic Sedan 2020; at least two classes are needed"),
    ],
)
def test_a_class_with_too_few_photos_is_refused_by_name(
    tmp_path: Path, side: str, change: Callable[[Path], None], said: str
) -> None:
    drawn = draw(tmp_path / "drawn", 2, 5)
    for split in {"train", "test"} if side else {""}:
        class_folders(drawn, tmp_path / "mine" / split)
    change(tmp_path / "mine" / side)
    with pytest.raises(InputError, match=said):
        open_folder(tmp_path / "mine", tmp_path / "work", 0)


def test_classes_may_be_called_train_and_test(tmp_path: Path) -> None:
    folder = class_folders(draw(tmp_path / "drawn", 2, 5), tmp_path / "mine")
    for path, name in zip(sorted(folder.iterdir()), ("train", "test"), strict=True):
        path.rename(folder / name)
    table = opened(folder, tmp_path / "work")
    assert table.class_names == ["test", "train"]
    assert table.photos.groupby(["split", "label"]).size().to_list() == [1, 1, 3, 3]


def test_a_photo_that_cannot_be_read_is_left_to_the_decoder(tmp_path: Path) -> None:
    rows = [("train", str(tmp_path / f"{i}.jpg"), f"{i}.jpg", i % 2, *NO_BOX) for i in range(10)]
    held = hold_out_test(photo_table(rows), seed=0)
    assert held.groupby(["split", "label"]).size().to_list() == [1, 1, 4, 4]
    outcomes = decode_batch(held.assign(whole=False), np.empty((len(held), 16, 16, 3), np.uint8), 0.0)
    assert set(outcomes["problem"]) == {"unreadable"}
