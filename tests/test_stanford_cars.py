"""The devkit's reader: boxes and classes counted from 0, files matched by name, problems listed, layouts understood."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from carmodel.data.images import read_header
from carmodel.data.sample import draw
from carmodel.data.stanford_cars import read
from carmodel.data.table import PHOTO_COLUMNS, CarTable
from carmodel.errors import InputError


@pytest.fixture
def copied(sample: Path, tmp_path: Path) -> Path:
    """The drawn sample, to be damaged."""
    return Path(shutil.copytree(sample, tmp_path / "cars"))


def rewrite(mat: Path, **columns: object) -> None:
    """Overwrite fields of the first annotations of a devkit file."""
    annotations = loadmat(mat)["annotations"]
    for field, values in columns.items():
        for i, value in enumerate(values):
            annotations[field][0, i] = value
    savemat(mat, {"annotations": annotations})


def problems(table: CarTable) -> list[tuple[str, str, str]]:
    return list(table.problems[["split", "source", "problem"]].itertuples(index=False, name=None))


def test_boxes_and_classes_count_from_zero_and_exclude_the_last_pixel(sample: Path) -> None:
    table = read(sample).photos
    assert list(table.columns) == PHOTO_COLUMNS
    assert all(table[name].dtype == np.int64 for name in ("label", "x1", "y1", "x2", "y2"))
    assert all(Path(path).is_absolute() and Path(path).is_file() for path in table["path"])
    rows = table[table["split"] == "train"].set_index("source")[["label", "x1", "y1", "x2", "y2"]]
    for name, *corners, label in loadmat(sample / "devkit" / "cars_train_annos.mat", squeeze_me=True)["annotations"][
        ["fname", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class"]
    ].tolist():
        x1, y1, x2, y2 = corners
        assert rows.loc[str(name)].tolist() == [label - 1, x1 - 1, y1 - 1, x2, y2]


def test_labels_follow_the_file_name_whatever_the_order_of_annotations(copied: Path) -> None:
    before = read(copied).photos
    mat = copied / "devkit" / "cars_train_annos.mat"
    savemat(mat, {"annotations": loadmat(mat)["annotations"][:, ::-1]})
    assert read(copied).photos.equals(before)


def test_a_photo_that_is_gone_is_missing_and_no_other_label_moves(copied: Path) -> None:
    before = read(copied).photos
    (copied / "cars_train" / "00003.jpg").unlink()
    table = read(copied)
    assert problems(table) == [("train", "00003.jpg", "missing")]
    gone = (before["split"] == "train") & (before["source"] == "00003.jpg")
    assert table.problems["label"].tolist() == before["label"][gone].tolist()
    assert table.photos.equals(before[~gone].reset_index(drop=True))


def test_a_photo_without_annotation_is_extra_and_other_files_are_no_photos(copied: Path) -> None:
    shutil.copy(copied / "cars_test" / "00001.jpg", copied / "cars_test" / "99999.jpg")
    (copied / "cars_test" / "Thumbs.db").write_bytes(b"")
    (copied / "cars_test" / ".hidden.jpg").write_bytes(b"")
    assert problems(read(copied)) == [("test", "99999.jpg", "extra")]


def test_a_class_that_does_not_exist_and_a_second_annotation_are_problems(copied: Path) -> None:
    rewrite(
        copied / "devkit" / "cars_train_annos.mat", **{"class": [99], "fname": ["00001.jpg", "00002.jpg", "00002.jpg"]}
    )
    assert problems(read(copied)) == [
        ("train", "00001.jpg", "unlabelled"),
        ("train", "00002.jpg", "annotated_twice"),
        ("train", "00003.jpg", "extra"),
    ]


def test_a_box_or_class_that_is_no_number_is_a_problem_of_that_photo_alone(copied: Path) -> None:
    before = read(copied).photos
    mat = copied / "devkit" / "cars_train_annos.mat"
    rewrite(mat, bbox_x1=[np.nan], bbox_y2=[1000, np.zeros((0, 0))], bbox_x2=[1000, 1000, np.inf])
    rewrite(mat, **{"class": [1, 1, 1, np.nan]})
    table = read(copied)
    assert problems(table) == [
        ("train", "00001.jpg", "no_box"),
        ("train", "00002.jpg", "no_box"),
        ("train", "00003.jpg", "no_box"),
        ("train", "00004.jpg", "unlabelled"),
    ]
    others = ~((before["split"] == "train") & (before["source"] <= "00004.jpg"))
    assert table.photos.equals(before[others].reset_index(drop=True))


def test_a_name_in_the_devkit_cannot_point_outside_the_photo_folder(copied: Path) -> None:
    outside = copied / "secret.jpg"
    shutil.copy(copied / "cars_train" / "00001.jpg", outside)
    rewrite(copied / "devkit" / "cars_train_annos.mat", fname=["../secret.jpg"])
    table = read(copied)
    assert ("train", "../secret.jpg", "missing") in problems(table)
    assert str(outside) not in set(table.photos["path"])


def test_the_layout_of_the_mirrors_reads_the_same(copied: Path) -> None:
    before = read(copied).photos.drop(columns="path")
    for name in ("cars_train", "cars_test"):
        (copied / name).rename(copied / "inner")
        (copied / name).mkdir()
        (copied / "inner").rename(copied / name / name)
    (copied / "devkit" / "cars_test_annos_withlabels.mat").rename(copied / "cars_test_annos_withlabels (1).mat")
    (copied / "car_devkit").mkdir()
    (copied / "devkit").rename(copied / "car_devkit" / "devkit")
    assert read(copied).photos.drop(columns="path").equals(before)


def test_without_test_labels_a_fifth_of_each_class_is_held_out_and_the_notes_say_so(tmp_path: Path) -> None:
    folder = draw(tmp_path / "cars", classes=2, photos=13)
    (folder / "devkit" / "cars_test_annos_withlabels.mat").unlink()
    table = read(folder, seed=1)
    assert table.photos.groupby(["split", "label"]).size()["test"].tolist() == [2, 2]
    assert len(table.photos) == 22
    assert all(Path(path).parent.name == "cars_train" for path in table.photos["path"])
    assert "4 of 22 training photos" in table.notes[0]
    assert "not accuracy on the official test" in table.notes[0]
    assert read(folder, seed=1).photos.equals(table.photos)
    assert not read(folder, seed=2).photos.equals(table.photos)


@pytest.mark.parametrize("name", ["cars_meta.mat", "cars_train_annos.mat", "cars_test_annos_withlabels.mat"])
@pytest.mark.parametrize("content", [b"", b"not a mat file at all", bytes(200)])
def test_a_malformed_mat_file_is_named(copied: Path, name: str, content: bytes) -> None:
    (copied / "devkit" / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        read(copied)


@pytest.mark.parametrize(
    ("variable", "said"),
    [("annotations", "is not a Stanford Cars annotation file"), ("other", "has no variable 'annotations'")],
)
def test_a_mat_file_with_other_contents_is_named(copied: Path, variable: str, said: str) -> None:
    savemat(copied / "devkit" / "cars_train_annos.mat", {variable: np.array([1, 2, 3])})
    with pytest.raises(InputError, match=rf"cars_train_annos\.mat {said}"):
        read(copied)


def test_a_missing_part_of_the_data_set_is_named(copied: Path) -> None:
    shutil.rmtree(copied / "cars_test")
    with pytest.raises(InputError, match=r"no cars_test/; unpack cars_test\.tgz"):
        read(copied)
    (copied / "devkit" / "cars_meta.mat").unlink()
    with pytest.raises(InputError, match=r"no devkit/cars_meta\.mat"):
        read(copied)


def test_the_first_classes_alone_keep_their_photos_and_problems(copied: Path) -> None:
    for path in (copied / "cars_train").iterdir():
        path.unlink()
    table = read(copied).first_classes(2)
    assert table.class_names == read(copied).class_names[:2]
    assert table.photos["label"].max() == 1
    assert table.problems["label"].tolist().count(0) == 8
    assert len(table.problems) == 16
    assert "first 2 of 3 classes" in table.notes[-1]


def test_real_photos_read_without_a_problem(photos: Path) -> None:
    table = read(photos)
    assert table.problems.empty
    assert len(table.class_names) == 196
    assert table.class_names[0] == "AM General Hummer SUV 2000"
    assert set(table.photos["label"]) == set(range(196))
    for row in table.photos.sample(20, random_state=0).itertuples():
        header = read_header(Path(row.path).read_bytes())
        assert 0 <= row.x1 < row.x2 <= header.width
        assert 0 <= row.y1 < row.y2 <= header.height
