"""The built-in sample: drawn, in the official layout, the same bytes for the same seed."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.svm import LinearSVC

from carmodel.data.images import read_header
from carmodel.data.sample import class_names, draw
from carmodel.data.stanford_cars import read
from carmodel.errors import InputError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_sample_has_the_official_layout(sample: Path) -> None:
    files = set(contents(sample))
    assert {
        f"devkit/cars_{name}.mat" for name in ("meta", "train_annos", "test_annos", "test_annos_withlabels")
    } <= files
    assert sum(name.startswith("cars_train/") for name in files) == 24
    assert sum(name.startswith("cars_test/") for name in files) == 6
    assert "Synthetic" in (sample / "README.txt").read_text()


def test_the_reader_of_real_data_reads_it_without_a_problem(sample: Path) -> None:
    table = read(sample)
    assert table.class_names == class_names(3)
    assert all(name.startswith("Synthetic ") for name in table.class_names)
    assert table.problems.empty
    assert table.notes == []
    counts = table.photos.groupby(["split", "label"]).size()
    assert counts["train"].tolist() == [8, 8, 8]
    assert counts["test"].tolist() == [2, 2, 2]


def test_boxes_lie_inside_frames_of_many_sizes_and_do_not_fill_them(sample: Path) -> None:
    table = read(sample).photos
    headers = [read_header(Path(path).read_bytes()) for path in table["path"]]
    widths, heights = (np.array([getattr(header, side) for header in headers]) for side in ("width", "height"))
    assert widths.min() >= 160 and widths.max() <= 240 and len(set(widths)) > 5
    assert (table[["x1", "y1"]] >= 0).all(axis=None)
    assert (table["x2"] <= widths).all() and (table["y2"] <= heights).all()
    share = (table["x2"] - table["x1"]) * (table["y2"] - table["y1"]) / (widths * heights)
    assert share.min() > 0.1 and share.max() < 0.8


def test_file_names_say_nothing_of_the_class(sample: Path) -> None:
    photos = read(sample).photos
    in_order = photos[photos["split"] == "train"].sort_values("source")["label"].tolist()
    assert in_order != sorted(in_order)


def test_the_same_seed_draws_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (draw(tmp_path / name, 2, 5, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert contents(first) == contents(again)
    photos = {name for name in contents(first) if name.endswith(".jpg")}
    assert all(contents(first)[name] != contents(other)[name] for name in photos)


def test_a_photo_does_not_depend_on_how_many_are_drawn(tmp_path: Path) -> None:
    few, many = draw(tmp_path / "few", 2, 5), draw(tmp_path / "many", 3, 5)
    drawn = {data for name, data in contents(many).items() if name.endswith(".jpg")}
    assert {data for name, data in contents(few).items() if name.endswith(".jpg")} < drawn


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        draw(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("classes", "photos"), [(1, 10), (9, 10), (2, 1)])
def test_impossible_sizes_are_refused(tmp_path: Path, classes: int, photos: int) -> None:
    with pytest.raises(InputError, match="classes must be 2 to 8"):
        draw(tmp_path / "sample", classes, photos)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_shape_alone_tells_the_classes_apart(tmp_path: Path) -> None:
    table = read(draw(tmp_path / "sample", 8, 30)).photos

    def edges(path: str, *box: int) -> np.ndarray:
        x1, y1, x2, y2 = box
        grey = cv2.imread(path, cv2.IMREAD_GRAYSCALE)[y1:y2, x1:x2]
        grey = cv2.resize(grey, (96, 64), interpolation=cv2.INTER_AREA).astype(np.float32)
        steps = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
        return cv2.resize(steps / steps.mean(), (24, 16), interpolation=cv2.INTER_AREA)

    columns = [table[name] for name in ("path", "x1", "y1", "x2", "y2")]
    features = np.stack([edges(*row) for row in zip(*columns, strict=True)])
    labels, train = table["label"].to_numpy(), (table["split"] == "train").to_numpy()
    both_ways = np.concatenate([features[train], features[train][:, :, ::-1]]).reshape(2 * train.sum(), -1)
    classifier = LinearSVC(C=0.01).fit(both_ways, np.tile(labels[train], 2))
    accuracy = classifier.score(features[~train].reshape((~train).sum(), -1), labels[~train])
    assert accuracy > 0.6, "chance is 0.125"
