"""Photos to stores: rows, boxes, validation, problems counted and listed, and a stop when they are too many."""

import json
import shutil
from pathlib import Path
from threading import Lock
from weakref import WeakSet

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carmodel.data.data_report import Report
from carmodel.data.images import prepare
from carmodel.data.local_engine import map_batches, rows_per_batch
from carmodel.data.preprocessing import check_stores, decode_batch, write_stores
from carmodel.data.split import hold_out, hold_out_test
from carmodel.data.stanford_cars import read
from carmodel.data.store import StoreError, open_store
from carmodel.data.table import CarTable
from carmodel.errors import InputError
from carmodel.parameters import Preprocess


@pytest.fixture
def copied(sample: Path, tmp_path: Path) -> Path:
    """The drawn sample, to be damaged."""
    return Path(shutil.copytree(sample, tmp_path / "cars"))


def written(table: CarTable, out: Path, **settings: object) -> Report:
    out.mkdir(exist_ok=True)
    return write_stores(table, out, Preprocess(image_size=32, **settings))


def with_box(table: CarTable, row: int | pd.Index, **box: int) -> CarTable:
    photos = table.photos.copy()
    for name, value in box.items():
        photos.loc[row, name] = value
    return CarTable(photos, table.class_names, table.problems, table.notes)


def test_stores_hold_each_photo_as_the_classifier_would_see_it(sample: Path, tmp_path: Path) -> None:
    table = read(sample)
    written(table, tmp_path / "out", margin=0.1)
    for split in ("train", "test"):
        store = open_store(tmp_path / "out" / f"{split}.h5")
        rows = table.photos[table.photos["split"] == split].sort_values("source")
        assert store.source.tolist() == rows["source"].tolist()
        assert store.labels.tolist() == rows["label"].tolist()
        assert store.source_index.tolist() == list(range(len(rows)))
        assert store.class_names == table.class_names
        assert store.attrs["split"] == split
        store.verify()
        for i, row in enumerate(rows.itertuples()):
            box = (row.x1, row.y1, row.x2, row.y2)
            assert np.array_equal(store.take([i])[0], prepare(Path(row.path).read_bytes(), 32, box, 0.1))


def test_without_crop_a_box_that_leaves_its_photo_is_still_a_problem(sample: Path, tmp_path: Path) -> None:
    table = with_box(read(sample), 0, x2=10_000)
    report = written(table, tmp_path / "out", crop="none", max_bad_fraction=0.1)
    assert [item["problem"] for item in report["listed"]] == ["out_of_frame"]


def test_without_crop_the_whole_photo_is_used(sample: Path, tmp_path: Path) -> None:
    written(read(sample), tmp_path / "out", crop="none")
    store = open_store(tmp_path / "out" / "train.h5")
    photo = (sample / "cars_train" / store.source[0]).read_bytes()
    assert np.array_equal(store.take([0])[0], prepare(photo, 32))
    assert store.attrs["crop"] == "none"


def test_the_stores_are_the_same_bytes_whatever_the_order_of_the_table(sample: Path, tmp_path: Path) -> None:
    table = read(sample)
    shuffled = CarTable(table.photos.sample(frac=1, random_state=1), table.class_names, table.problems)
    written(table, tmp_path / "a")
    written(shuffled, tmp_path / "b")
    for name in ("train.h5", "test.h5"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_part_of_each_class_is_validation_and_none_of_the_test(sample: Path, tmp_path: Path) -> None:
    report = written(read(sample), tmp_path / "out", validation_fraction=0.25)
    train, test = (open_store(tmp_path / "out" / name) for name in ("train.h5", "test.h5"))
    assert np.bincount(train.labels[train.validation]).tolist() == [2, 2, 2]
    assert not test.validation.any()
    assert report["splits"] == {"train": {"rows": 24, "training": 18, "validation": 6}, "test": {"rows": 6}}
    assert report["rows_per_class"]["Synthetic Sedan 2020"] == {"training": 6, "validation": 2, "test": 2}


def test_the_report_is_plain_json(sample: Path, tmp_path: Path) -> None:
    report = written(read(sample), tmp_path / "out")
    assert json.loads(json.dumps(report)) == report
    assert report["settings"]["image_size"] == 32
    assert report["bad_fraction"] == 0


def test_the_first_classes_alone_can_be_written(sample: Path, tmp_path: Path) -> None:
    written(read(sample), tmp_path / "out", classes=2)
    store = open_store(tmp_path / "out" / "train.h5")
    assert len(store.class_names) == 2
    assert len(store) == 16


def damage(folder: Path) -> CarTable:
    """Four faults of four kinds among thirty photos, and one photo too many."""
    train = folder / "cars_train"
    (train / "00001.jpg").unlink()
    (train / "00002.jpg").write_bytes(b"not a photo")
    shutil.copy(train / "00005.jpg", train / "99999.jpg")
    table = read(folder)
    place = table.photos.reset_index().set_index(["split", "source"])["index"]
    table = with_box(table, place["train", "00003.jpg"], x2=10_000)
    return with_box(table, place["train", "00004.jpg"], x1=50, x2=50)


def test_unusable_photos_are_counted_listed_and_left_out(copied: Path, tmp_path: Path) -> None:
    report = written(damage(copied), tmp_path / "out", max_bad_fraction=0.2)
    assert report["problems"] == {
        "train": {"extra": 1, "missing": 1, "out_of_frame": 1, "unreadable": 1, "zero_area": 1}
    }
    assert {(item["source"], item["problem"]) for item in report["listed"]} == {
        ("00001.jpg", "missing"),
        ("00002.jpg", "unreadable"),
        ("00003.jpg", "out_of_frame"),
        ("00004.jpg", "zero_area"),
        ("99999.jpg", "extra"),
    }
    assert report["photos"] == 31
    assert report["bad_fraction"] == pytest.approx(5 / 31)
    store = open_store(tmp_path / "out" / "train.h5")
    assert len(store) == 20
    assert not {"00001.jpg", "00002.jpg", "00003.jpg", "00004.jpg", "99999.jpg"} & set(store.source)


def test_too_many_unusable_photos_stop_the_run_with_counts_names_and_the_parameter(
    copied: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        written(damage(copied), tmp_path / "out", max_bad_fraction=0.1)
    said = str(error.value)
    assert "5 of 31 photos cannot be used" in said
    assert "1 zero_area" in said
    assert "train/00001.jpg: missing" in said
    assert "max_bad_fraction=0.1" in said
    assert "max_bad_fraction of at least 0.162" in said
    assert not list((tmp_path / "out").iterdir())


def test_a_photo_that_breaks_while_decoding_is_left_out_or_stops_the_run(copied: Path, tmp_path: Path) -> None:
    photo = copied / "cars_train" / "00007.jpg"
    photo.write_bytes(photo.read_bytes()[:-300])
    with pytest.raises(InputError, match=r"1 of 30 .* train/00007\.jpg: unreadable, damaged image data"):
        written(read(copied), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    report = written(read(copied), tmp_path / "out", max_bad_fraction=0.05)
    train = open_store(tmp_path / "out" / "train.h5")
    assert len(train) == report["splits"]["train"]["rows"] == 23
    assert train.source_index.tolist() == list(range(23))
    assert "00007.jpg" not in train.source
    train.verify()


def test_a_class_without_training_photos_is_named(copied: Path, tmp_path: Path) -> None:
    table = read(copied)
    kept = table.photos[(table.photos["label"] != 1) | (table.photos["split"] == "test")]
    with pytest.raises(InputError, match="no usable training photo of Synthetic SUV 2020"):
        written(CarTable(kept, table.class_names, table.problems), tmp_path / "out")


def test_identical_photos_are_reported_and_share_a_side_of_the_validation(copied: Path, tmp_path: Path) -> None:
    table = read(copied)
    train = table.photos[table.photos["split"] == "train"]
    twins = pd.DataFrame([row._asdict() | {"source": f"twin of {row.source}"} for row in train.itertuples(index=False)])
    doubled = CarTable(pd.concat([table.photos, twins], ignore_index=True), table.class_names, table.problems)
    report = written(doubled, tmp_path / "out", validation_fraction=0.25)
    store = open_store(tmp_path / "out" / "train.h5")
    side = dict(zip(store.source.tolist(), store.validation.tolist(), strict=True))
    assert all(side[name] == side[f"twin of {name}"] for name in train["source"])
    assert sum(side.values()) == 12
    assert report["identical_photos"] == {
        "groups": 24,
        "photos": 48,
        "groups_with_two_labels": 0,
        "groups_in_train_and_test": 0,
    }


@given(
    photos=st.lists(st.tuples(st.integers(0, 3), st.binary(min_size=1, max_size=1)), min_size=1, max_size=60),
    fraction=st.floats(0, 0.95),
    seed=st.integers(0, 2**32 - 1),
    order=st.randoms(use_true_random=False),
)
def test_holding_out_keeps_its_promises(
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


def test_a_batch_alone_gives_what_the_whole_table_gives(sample: Path) -> None:
    photos = read(sample).photos
    whole, part = np.empty((len(photos), 24, 24, 3), np.uint8), np.empty((4, 24, 24, 3), np.uint8)
    told = decode_batch(photos, whole, "box", 0.0)
    assert told["problem"].eq("").all()
    told_of_part = decode_batch(photos.iloc[7:11], part, "box", 0.0)
    assert np.array_equal(part, whole[7:11])
    assert told_of_part.equals(told.iloc[7:11])


def test_ready_stores_are_checked(sample: Path, tmp_path: Path) -> None:
    report = written(read(sample), tmp_path / "out")
    checked = check_stores(tmp_path / "out")
    assert checked["splits"] == report["splits"]
    assert checked["rows_per_class"] == report["rows_per_class"]
    whole = (tmp_path / "out" / "test.h5").read_bytes()
    image = open_store(tmp_path / "out" / "test.h5").take([3])[0].tobytes()
    (tmp_path / "out" / "test.h5").write_bytes(whole.replace(image, image[::-1]))
    with pytest.raises(StoreError, match=r"test\.h5: row 3 .* checksum"):
        check_stores(tmp_path / "out")
    written(read(sample), tmp_path / "two", classes=2)
    shutil.copy(tmp_path / "two" / "test.h5", tmp_path / "out" / "test.h5")
    with pytest.raises(StoreError, match="differ in classes"):
        check_stores(tmp_path / "out")


def test_photos_in_both_train_and_test_are_noted(copied: Path, tmp_path: Path) -> None:
    assert not [note for note in written(read(copied), tmp_path / "before")["notes"] if "identical" in note]
    for i in (1, 2):
        shutil.copy(copied / "cars_train" / f"0000{i}.jpg", copied / "cars_test" / f"0000{i}.jpg")
    table = read(copied)
    report = written(with_box(table, table.photos.index, x1=0, y1=0, x2=50, y2=50), tmp_path / "out")
    assert report["identical_photos"]["groups_in_train_and_test"] == 2
    assert "Byte-identical in train and test: 2 photos" in report["notes"][-1]


def test_both_stores_or_none_are_left(sample: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "train.h5" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=r"train\.h5"):
        written(read(sample), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train.h5"]


def test_stores_of_photos_without_boxes_say_that_nothing_was_cropped(sample: Path, tmp_path: Path) -> None:
    table = read(sample)
    without = with_box(table, table.photos.index, x1=-1, y1=-1, x2=-1, y2=-1)
    report = written(without, tmp_path / "out", crop="box")
    assert {open_store(tmp_path / "out" / name).attrs["crop"] for name in ("train.h5", "test.h5")} == {"none"}
    assert "No photo has a box: whole photos are used" in report["notes"][-1]
    assert report["settings"]["crop"] == "box"
    assert written(read(sample), tmp_path / "boxes")["notes"] == []
    assert open_store(tmp_path / "boxes" / "train.h5").attrs["crop"] == "box"


def test_a_photo_that_cannot_be_read_is_listed_whichever_side_it_was_held_out_for(copied: Path, tmp_path: Path) -> None:
    (copied / "devkit" / "cars_test_annos_withlabels.mat").unlink()
    table = read(copied)
    Path(table.photos["path"].iloc[-1]).unlink()
    again = CarTable(hold_out_test(table.photos, seed=0), table.class_names, table.problems)
    report = written(again, tmp_path / "out", max_bad_fraction=0.1)
    assert [item["problem"] for item in report["listed"]] == ["unreadable"]


@pytest.mark.parametrize(("size", "rows"), [(16, 64), (224, 64), (256, 64), (512, 16), (1024, 4), (10_000, 1)])
def test_a_batch_holds_about_12_mebibytes_of_images(size: int, rows: int) -> None:
    assert rows_per_batch(size) == rows


@pytest.mark.parametrize("cores", [1, 2, 5])
def test_at_most_two_batches_a_core_are_in_memory(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Batch:
        def __init__(self, rows: pd.DataFrame) -> None:
            self.rows = rows["row"].tolist()
            with lock:
                alive.add(self)
                most.append(len(alive))

    alive: WeakSet[Batch] = WeakSet()
    most: list[int] = []
    lock = Lock()
    monkeypatch.setattr("carmodel.data.local_engine.cores", lambda: cores)
    seen = []
    for batch in map_batches(Batch, pd.DataFrame({"row": range(100)}), "testing", batch_rows=3):
        seen += batch.rows
    assert seen == list(range(100))
    assert max(most) <= 2 * cores


def test_a_note_is_kept_in_both_stores(sample: Path, tmp_path: Path) -> None:
    write_stores(read(sample), tmp_path, Preprocess(image_size=16), note="synthetic")
    assert {open_store(tmp_path / name).attrs["note"] for name in ("train.h5", "test.h5")} == {"synthetic"}


@pytest.mark.slow
def test_real_photos_become_stores_without_a_loss(photos: Path, tmp_path: Path) -> None:
    report = written(read(photos), tmp_path / "out", classes=20)
    assert report["listed"] == []
    assert report["splits"]["train"]["validation"] > 0
    assert check_stores(tmp_path / "out")["splits"] == report["splits"]
