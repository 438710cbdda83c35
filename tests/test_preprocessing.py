"""Preprocessing: photos become stores, problems are listed, and validation rows are chosen by content."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Lock
from weakref import WeakSet

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carmodel.data.data_report import FEW, Report, small_parts
from carmodel.data.images import decode, prepare, read_header
from carmodel.data.local_engine import map_batches, rows_per_batch
from carmodel.data.preprocessing import WHOLE, check_stores, read_boxes, write_stores
from carmodel.data.split import hold_out, hold_out_test
from carmodel.data.stanford_cars import read
from carmodel.data.store import StoreError, open_store
from carmodel.data.table import CarTable
from carmodel.errors import InputError
from carmodel.evaluation.suspects import near_identical
from carmodel.parameters import Preprocess


@pytest.fixture
def copied(sample: Path, tmp_path: Path) -> Path:
    """A copy of the drawn sample, to be damaged."""
    return Path(shutil.copytree(sample, tmp_path / "cars"))


def written(table: CarTable, out: Path, *, image_size: int = 32, **settings: object) -> Report:
    out.mkdir(exist_ok=True)
    return write_stores(table, out, Preprocess(image_size=image_size, **settings), note="synthetic")


def with_box(table: CarTable, row: int | pd.Index, **box: int) -> CarTable:
    photos = table.photos.copy()
    photos.loc[row, list(box)] = list(box.values())
    return replace(table, photos=photos)


def test_stores_contain_each_photo_as_the_classifier_sees_it(sample: Path, tmp_path: Path) -> None:
    table = read(sample)
    report = written(table, tmp_path, margin=0.1, validation_fraction=0.25)
    for split in ("train", "test"):
        store = open_store(tmp_path / f"{split}.h5")
        rows = table.photos[table.photos["split"] == split].sort_values("source")
        assert store.source.tolist() == rows["source"].tolist()
        assert store.labels.tolist() == rows["label"].tolist()
        assert store.source_index.tolist() == list(range(len(rows)))
        assert store.class_names == table.class_names
        assert (store.attrs["split"], store.attrs["crop"], store.attrs["note"]) == (split, "box", "synthetic")
        assert np.bincount(store.labels[store.validation], minlength=3).tolist() == [2 * (split == "train")] * 3
        store.verify()
        for i, row in enumerate(rows.itertuples()):
            box = (row.x1, row.y1, row.x2, row.y2)
            assert np.array_equal(store.take([i])[0], prepare(Path(row.path).read_bytes(), 32, box, 0.1))
    assert json.loads(json.dumps(report)) == report
    assert report["splits"] == {"train": {"rows": 24, "training": 18, "validation": 6}, "test": {"rows": 6}}
    assert report["rows_per_class"]["Synthetic Sedan 2020"] == {"training": 6, "validation": 2, "test": 2}
    assert (report["settings"]["image_size"], report["bad_fraction"], report["notes"]) == (32, 0, [])


def test_a_photo_in_two_classes_is_named(sample: Path, tmp_path: Path) -> None:
    table = read(sample)
    again = table.photos.head(1).assign(source="again.jpg", label=(table.photos["label"].iloc[0] + 1) % 3)
    report = written(replace(table, photos=pd.concat([table.photos, again], ignore_index=True)), tmp_path)
    (note,) = (note for note in report["notes"] if "several labels" in note)
    assert all(name in note for name in ("right: 1. ", "again.jpg", table.photos["source"].iloc[0]))


def test_parts_too_small_to_measure_an_accuracy_are_named(sample: Path, tmp_path: Path) -> None:
    report = written(read(sample), tmp_path, validation_fraction=0)
    assert small_parts(report) == ["Only 6 test photos: an accuracy measured on them may be off by 40 points."]
    report["splits"]["test"]["rows"] = FEW
    assert small_parts(report) == []


def test_validation_and_test_photos_are_also_written_whole(sample: Path, tmp_path: Path) -> None:
    written(read(sample), tmp_path, margin=0.1, validation_fraction=0.25)
    for split, name in WHOLE.items():
        cropped, whole = open_store(tmp_path / f"{split}.h5"), open_store(tmp_path / name)
        rows = np.flatnonzero(cropped.validation | (split == "test"))
        assert whole.source_index.tolist() == rows.tolist()
        assert whole.labels.tolist() == cropped.labels[rows].tolist()
        assert whole.attrs["crop"] == "none"
        photo = (sample / f"cars_{split}" / whole.source[0]).read_bytes()
        assert np.array_equal(whole.take([0])[0], prepare(photo, 32))
        whole.verify()


def test_the_boxes_of_the_test_photos_are_kept_beside_their_store(sample: Path, tmp_path: Path) -> None:
    table = read(sample)
    written(table, tmp_path)
    boxes, store = read_boxes(tmp_path), open_store(tmp_path / "test.h5")
    assert boxes is not None and boxes["source"].tolist() == store.source.tolist()
    given = table.photos.query("split == 'test'").set_index("source").loc[store.source, ["x1", "y1", "x2", "y2"]]
    assert boxes[["x1", "y1", "x2", "y2"]].to_numpy().tolist() == given.to_numpy().tolist()
    written(table, tmp_path / "whole", crop="none")
    assert read_boxes(tmp_path / "whole") is None


def test_with_crop_both_each_training_photo_is_there_cropped_and_whole(sample: Path, tmp_path: Path) -> None:
    report = written(read(sample), tmp_path, crop="both", margin=0.1, validation_fraction=0.25)
    train, test = open_store(tmp_path / "train.h5"), open_store(tmp_path / "test.h5")
    assert (len(train), len(test), train.attrs["crop"]) == (48, 6, "box")
    for of_both in (train.source, train.labels, train.validation):
        assert of_both[:24].tolist() == of_both[24:].tolist()
    photo = (sample / "cars_train" / train.source[24]).read_bytes()
    assert np.array_equal(train.take([24])[0], prepare(photo, 32))
    assert len(open_store(tmp_path / WHOLE["train"])) == 6
    assert (report["photos"], report["identical_photos"]["groups"]) == (30, 0)


def test_crop_both_holds_out_the_photos_of_crop_box(sample: Path, tmp_path: Path) -> None:
    held = []
    for crop in ("box", "both"):
        written(read(sample), tmp_path / crop, crop=crop, validation_fraction=0.15)
        store = open_store(tmp_path / crop / "train.h5")
        held.append(set(store.source[store.validation]))
    assert held[0] == held[1]
    assert len(held[0]) == 3, "one of eight photos of each class, which two rows of sixteen would round to none"


def test_a_pair_of_photos_counts_once_with_crop_both(copied: Path, tmp_path: Path) -> None:
    table = read(copied)
    train = table.photos.index[table.photos["split"] == "train"][:2]
    shutil.copy(table.photos["path"][train[0]], table.photos["path"][train[1]])
    header = read_header(Path(table.photos["path"][train[0]]).read_bytes())
    written(with_box(table, train, x1=0, y1=0, x2=header.width, y2=header.height), tmp_path / "out", crop="both")
    pairs = near_identical({"train": open_store(tmp_path / "out" / "train.h5")})
    assert len(pairs) == 1


def test_a_bad_photo_counts_once_with_crop_both(copied: Path, tmp_path: Path) -> None:
    (copied / "cars_train" / "00002.jpg").write_bytes(b"not a photo")
    table = with_box(read(copied), 0, x2=10_000)
    report = written(table, tmp_path, crop="both", max_bad_fraction=0.1)
    assert sorted(item["problem"] for item in report["listed"]) == ["out_of_frame", "unreadable"]
    assert (len(open_store(tmp_path / "train.h5")), len(open_store(tmp_path / "test.h5"))) == (2 * 23, 5)


def test_without_crop_the_whole_photo_is_used_and_boxes_are_still_checked(sample: Path, tmp_path: Path) -> None:
    report = written(with_box(read(sample), 0, x2=10_000), tmp_path, crop="none", max_bad_fraction=0.1)
    assert [item["problem"] for item in report["listed"]] == ["out_of_frame"]
    store = open_store(tmp_path / "train.h5")
    assert np.array_equal(store.take([0])[0], prepare((sample / "cars_train" / store.source[0]).read_bytes(), 32))
    assert store.attrs["crop"] == "none"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.h5", "train.h5"]


def test_photos_without_boxes_are_not_cropped(sample: Path, tmp_path: Path) -> None:
    table = read(sample)
    report = written(with_box(table, table.photos.index, x1=-1, y1=-1, x2=-1, y2=-1), tmp_path, crop="box")
    assert {open_store(tmp_path / name).attrs["crop"] for name in ("train.h5", "test.h5")} == {"none"}
    assert "No photo has a box, so whole photos are used" in report["notes"][-1]
    assert report["settings"]["crop"] == "box"


def test_the_order_of_the_table_changes_no_byte(sample: Path, tmp_path: Path) -> None:
    table = read(sample)
    shuffled = replace(table, photos=table.photos.sample(frac=1, random_state=1))
    written(table, tmp_path / "a")
    written(shuffled, tmp_path / "b")
    for name in ("train.h5", "test.h5"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def damage(folder: Path) -> CarTable:
    """Damage four training photos and one test photo, and add a photo without annotation and two other files."""
    train = folder / "cars_train"
    (train / "00001.jpg").unlink()
    (train / "00002.jpg").write_bytes(b"not a photo")
    (folder / "cars_test" / "00001.jpg").write_bytes((folder / "cars_test" / "00001.jpg").read_bytes()[:-300])
    shutil.copy(train / "00005.jpg", train / "99999.jpg")
    for name in ("Thumbs.db", "notes.txt"):
        (train / name).write_bytes(b"")
    table = read(folder)
    row = table.photos.reset_index().set_index(["split", "source"])["index"]
    return with_box(with_box(table, row["train", "00003.jpg"], x2=10_000), row["train", "00004.jpg"], x1=50, x2=50)


def test_one_pass_finds_all_bad_photos_and_suggests_a_limit_that_works(copied: Path, tmp_path: Path) -> None:
    table, out = damage(copied), tmp_path / "out"
    with pytest.raises(InputError, match=r"6 of 31 photos cannot be used, more than max_bad_fraction=0\.1") as error:
        written(table, out, max_bad_fraction=0.1)
    assert not list(out.iterdir())
    for part in ("1 zero_area", "2 unreadable", "00001.jpg (train): missing, in cars_train_annos.mat"):
        assert part in str(error.value)
    suggested = re.search(r"with max_bad_fraction=([\d.]+)\.", str(error.value))
    report = written(table, out, max_bad_fraction=float(suggested[1]))
    assert {(item["split"], item["source"], item["problem"]) for item in report["listed"]} == {
        ("train", "00001.jpg", "missing"),
        ("train", "00002.jpg", "unreadable"),
        ("train", "00003.jpg", "out_of_frame"),
        ("train", "00004.jpg", "zero_area"),
        ("train", "99999.jpg", "extra"),
        ("test", "00001.jpg", "unreadable"),
    }
    assert report["problems"]["test"] == {"unreadable": 1}
    assert (report["photos"], report["bad_fraction"]) == (31, pytest.approx(6 / 31))
    store = open_store(out / "train.h5")
    assert store.source_index.tolist() == list(range(20))
    assert not {item["source"] for item in report["listed"] if item["split"] == "train"} & set(store.source)
    left_out, ignored = report["notes"]
    assert left_out.startswith("6 of 31 photos are left out: train/00001.jpg (missing); train/99999.jpg (extra); ")
    assert left_out.count("(") == 5
    assert ignored == "2 files that are not photos are ignored."


def test_a_class_that_loses_all_training_photos_is_named(copied: Path, tmp_path: Path) -> None:
    table = read(copied)
    suv = table.photos[(table.photos["label"] == 1) & (table.photos["split"] == "train")]
    for path in suv["path"]:
        Path(path).write_bytes(b"")
    missing = r"No usable training photo of Synthetic SUV 2020 \(1 of 3 classes\)\."
    with pytest.raises(InputError, match=f"{missing} Photos that cannot be used: 8 unreadable"):
        written(table, tmp_path / "out", max_bad_fraction=0.9)
    with pytest.raises(InputError, match=missing):
        written(replace(table, photos=table.photos.drop(suv.index)), tmp_path / "out")


def twins_of(photos: pd.DataFrame, folder: Path, how: str) -> pd.DataFrame:
    """Copies of photos under other names: the same bytes, or compressed again at another size."""
    folder.mkdir()
    twins = photos.assign(source="twin of " + photos["source"])
    for row in photos.itertuples():
        path = folder / row.source
        if how == "identical":
            shutil.copy(row.path, path)
        else:
            cv2.imwrite(
                str(path), cv2.resize(cv2.imread(row.path), None, fx=1.5, fy=1.5), [cv2.IMWRITE_JPEG_QUALITY, 80]
            )
            twins.loc[row.Index, ["x1", "y1", "x2", "y2"]] = [int(1.5 * c) for c in (row.x1, row.y1, row.x2, row.y2)]
        twins.loc[row.Index, "path"] = str(path)
    return twins


@pytest.mark.parametrize("how", ["identical", "near_identical"])
def test_duplicates_share_a_side_of_the_split_and_are_counted(sample: Path, tmp_path: Path, how: str) -> None:
    table = read(sample)
    train = table.photos[table.photos["split"] == "train"]
    twins = twins_of(train, tmp_path / "twins", how)
    leaked = twins.head(2).assign(split="test")
    photos = pd.concat([table.photos, twins, leaked], ignore_index=True)
    # At 32 px, a twin that is decoded at a fraction of its size can differ in more bits than near-duplicates may.
    report = written(replace(table, photos=photos), tmp_path / "out", image_size=64, validation_fraction=0.25)
    store = open_store(tmp_path / "out" / "train.h5")
    side = dict(zip(store.source.tolist(), store.validation.tolist(), strict=True))
    assert all(side[name] == side[f"twin of {name}"] for name in train["source"])
    assert sum(side.values()) == 12
    counts = {"groups": 24, "photos": 50, "groups_with_two_labels": 0, "groups_in_train_and_test": 2}
    assert report[f"{how}_photos"] == counts
    assert "dentical in train and test: 2 groups of photos" in report["notes"][-1]


@given(
    photos=st.lists(st.tuples(st.integers(0, 3), st.binary(min_size=1, max_size=1)), min_size=1, max_size=60),
    fraction=st.floats(0, 0.95),
    seed=st.integers(0, 2**32 - 1),
    order=st.randoms(use_true_random=False),
)
def test_holding_out_respects_groups_and_fractions_in_any_order(
    photos: list[tuple[int, bytes]], fraction: float, seed: int, order: object
) -> None:
    labels, digests = np.array([label for label, _ in photos]), [content for _, content in photos]
    held = hold_out(labels, digests, fraction, seed)
    for label in set(labels):
        of_class = labels == label
        assert held[of_class].sum() <= round(fraction * of_class.sum())
        assert not held[of_class].all()
    assert not {digests[i] for i in np.flatnonzero(held)} & {digests[i] for i in np.flatnonzero(~held)}
    rows = list(range(len(photos)))
    order.shuffle(rows)
    assert np.array_equal(hold_out(labels[rows], [digests[i] for i in rows], fraction, seed), held[rows])


def test_a_store_keeps_the_shape_of_the_photo_or_of_the_box_in_it(sample: Path, tmp_path: Path) -> None:
    table = read(sample)
    written(table, tmp_path, margin=0)
    photos = table.photos[table.photos["split"] == "test"]
    boxes = (photos["x2"] - photos["x1"]) / (photos["y2"] - photos["y1"])
    frames = [frame.shape[1] / frame.shape[0] for frame in (decode(Path(p).read_bytes()) for p in photos["path"])]
    np.testing.assert_allclose(open_store(tmp_path / "test.h5").aspect, boxes)
    np.testing.assert_allclose(open_store(tmp_path / WHOLE["test"]).aspect, frames)


def test_existing_stores_are_checked(sample: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report, checked = written(read(sample), out), check_stores(out)
    assert checked["splits"] == report["splits"]
    assert checked["rows_per_class"] == report["rows_per_class"]
    image = open_store(out / "test.h5").take([3])[0].tobytes()
    (out / "test.h5").write_bytes((out / "test.h5").read_bytes().replace(image, image[::-1]))
    with pytest.raises(StoreError, match=r"test\.h5: row 3 .* checksum"):
        check_stores(out)
    written(read(sample), tmp_path / "two", classes=2)
    assert len(open_store(tmp_path / "two" / "train.h5")) == 16
    shutil.copy(tmp_path / "two" / "test.h5", out / "test.h5")
    with pytest.raises(StoreError, match="differ in classes"):
        check_stores(out)


def test_both_stores_are_written_or_none(sample: Path, tmp_path: Path) -> None:
    (tmp_path / "train.h5" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=r"train\.h5"):
        written(read(sample), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["train.h5"]


def test_an_unreadable_photo_is_listed_if_the_test_is_held_out(copied: Path, tmp_path: Path) -> None:
    (copied / "devkit" / "cars_test_annos_withlabels.mat").unlink()
    table = read(copied)
    Path(table.photos["path"].iloc[-1]).unlink()
    again = replace(table, photos=hold_out_test(table.photos, seed=0))
    report = written(again, tmp_path / "out", max_bad_fraction=0.1)
    assert [item["problem"] for item in report["listed"]] == ["unreadable"]


@pytest.mark.parametrize(("size", "rows"), [(16, 64), (256, 64), (512, 16), (1024, 4), (10_000, 1)])
def test_a_batch_holds_about_12_mebibytes_of_images(size: int, rows: int) -> None:
    assert rows_per_batch(size) == rows


@pytest.mark.parametrize("cores", [1, 5])
def test_at_most_two_batches_per_core_are_in_memory(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Batch:
        def __init__(self, rows: pd.DataFrame) -> None:
            self.rows = rows["row"].tolist()
            self.opencv_threads = cv2.getNumThreads()
            with lock:
                alive.add(self)
                most.append(len(alive))

    alive: WeakSet[Batch] = WeakSet()
    most: list[int] = []
    lock, before = Lock(), cv2.getNumThreads()
    monkeypatch.setattr("carmodel.data.local_engine.cores", lambda: cores)
    seen = []
    for batch in map_batches(Batch, pd.DataFrame({"row": range(100)}), "testing", batch_rows=3):
        seen += batch.rows
        assert batch.opencv_threads == 1
    assert seen == list(range(100))
    assert max(most) <= 2 * cores
    assert cv2.getNumThreads() == before


@pytest.mark.slow
def test_real_photos_become_stores_without_a_problem(photos: Path, tmp_path: Path) -> None:
    report = written(read(photos), tmp_path, classes=20)
    assert report["listed"] == []
    assert report["splits"]["train"]["validation"] > 0
    assert check_stores(tmp_path)["splits"] == report["splits"]
