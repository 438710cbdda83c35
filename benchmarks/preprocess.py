"""Turn photos into images of one size: this project's local engine beside the usual loop, and tf.data with HDF5."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import h5py
import numpy as np
import pandas as pd
import tensorflow as tf

from benchmarks.given import Given
from benchmarks.photos import CORNERS, IMAGE_SIZE, on_all_cores, photos, scaled
from benchmarks.turns import Competitor, Table, rate, take_turns
from carmodel.data.images import resize
from carmodel.data.local_engine import Engine, local_engine
from carmodel.data.preprocessing import write_stores
from carmodel.data.store import open_store
from carmodel.data.table import CarTable
from carmodel.data.threads import cores
from carmodel.parameters import Preprocess
from carmodel.training.dataset import untuned

TITLE = "Preprocess"
SIDES = {320: (4000, 100), 700: (1200, 50)}
"""The longer side of the photos in pixels: the number of photos, and with --quick."""
CHECKED = 50
"""Number of photos whose pixels are compared."""


def measure(given: Given) -> list[Table]:
    """Measure all ways at both sizes of the photos."""
    return [at_side(given, side, given.size(*numbers)) for side, numbers in SIDES.items()]


def at_side(given: Given, side: int, number: int) -> Table:
    """Measure all ways on photos whose longer side has `side` pixels."""
    table = scaled(photos(given, number), side, given.folder / f"{side}")
    out = given.folder / f"out-{side}"
    works = {LOOP: partial(loop, table.photos, out), TF_DATA: partial(tf_data, table.photos, out)}
    competitors = [
        Competitor(OURS, "ours", cores(), {"": partial(stores_rate, table, out, local_engine)}, EXTRA),
        Competitor(LOOP, "peer", 1, {"": partial(fresh_rate, out, number, works[LOOP])}, "It writes JPEG files."),
        Competitor(TF_DATA, "peer", cores(), {"": partial(fresh_rate, out, number, works[TF_DATA])}),
        Competitor(LIMIT, "limit", cores(), {"": rate(number, partial(bare, table.photos))}, "It keeps nothing."),
    ]
    remarks = check(table, out)  # also warms up all ways
    entries = take_turns(competitors, given.rounds(), warm_up=0)
    title = f"{number:,} photos of {side} px to {IMAGE_SIZE} px"
    return Table(title, "images/s", entries, remarks, headline=f"Preprocess: photos of {side} px")


OURS = "carmodel: preprocess, local engine"
LOOP = "loop: cv2 read, crop, resize, write"
TF_DATA = "tf.data decode and resize, to HDF5"
LIMIT = "decode and resize alone"
EXTRA = (
    "It writes HDF5 stores with checksums, digests and perceptual hashes. It decodes JPEGs of more than twice the final width "
    "and height at half their size, which the other ways do not."
)


def fresh(folder: Path) -> Path:
    """Return an empty directory, after deleting what is in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def fresh_rate(out: Path, number: int, write: Callable[[], object]) -> float:
    """Write to an empty directory, and return photos per second, without the time of emptying it."""
    fresh(out)
    return rate(number, write)()


def stores_rate(table: CarTable, out: Path, engine: Engine) -> float:
    """Write the stores, without a validation part, and return photos per second."""
    settings = Preprocess(image_size=IMAGE_SIZE, validation_fraction=0.0)
    return fresh_rate(out, len(table.photos), partial(write_stores, table, out, settings, engine=engine))


def loop(table: pd.DataFrame, out: Path) -> None:
    """Write a JPEG file of each photo, as scripts of published car classifiers do."""
    for row, (path, x1, y1, x2, y2) in enumerate(rows_of(table)):
        photo = cv2.imread(path)
        if x1 >= 0:
            photo = photo[y1:y2, x1:x2]
        cv2.imwrite(str(out / f"{row}.jpg"), cv2.resize(photo, (IMAGE_SIZE, IMAGE_SIZE)))


def tf_data(table: pd.DataFrame, out: Path) -> None:
    """Write an HDF5 data set of all photos with TensorFlow's decoder and its area resize."""
    paths, boxes = table["path"].tolist(), table[CORNERS].to_numpy(np.int32)

    def prepared(path: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
        photo = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        photo = tf.cond(box[0] >= 0, lambda: photo[box[1] : box[3], box[0] : box[2]], lambda: photo)
        resized = tf.image.resize(photo, (IMAGE_SIZE, IMAGE_SIZE), tf.image.ResizeMethod.AREA)
        return tf.cast(tf.round(resized), tf.uint8)

    data = tf.data.Dataset.from_tensor_slices((paths, boxes)).map(prepared, num_parallel_calls=cores())
    with h5py.File(out / "images.h5", "w") as file:
        images = file.create_dataset("images", (len(paths), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        end = 0
        for batch in untuned(data.batch(64).prefetch(2)).as_numpy_iterator():
            images[end : end + len(batch)] = batch
            end += len(batch)


def bare(table: pd.DataFrame) -> None:
    """Decode, crop and resize each photo with a thread per core, into a buffer of each thread."""

    def work(part: pd.DataFrame) -> None:
        buffer = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        for path, x1, y1, x2, y2 in rows_of(part):
            bare_image(path, (x1, y1, x2, y2), buffer)

    on_all_cores(work, [table.iloc[core :: cores()] for core in range(cores())])


def bare_image(path: str, box: tuple[int, int, int, int], out: np.ndarray) -> np.ndarray:
    """Decode, crop and resize a photo, with OpenCV's decoder and this project's resize."""
    photo = cv2.imdecode(np.frombuffer(Path(path).read_bytes(), np.uint8), cv2.IMREAD_COLOR_RGB)
    x1, y1, x2, y2 = box
    return resize(photo[y1:y2, x1:x2] if x1 >= 0 else photo, IMAGE_SIZE, IMAGE_SIZE, out=out)


def rows_of(table: pd.DataFrame) -> list[tuple[str, int, int, int, int]]:
    """Return path and box of each photo."""
    return list(zip(*(table[name].tolist() for name in ("path", *CORNERS)), strict=True))


def check(table: CarTable, out: Path) -> list[str]:
    """Compare the first images of all ways with those of this project, and return a sentence for each."""
    first = table.photos.head(min(CHECKED, len(table.photos) - 1))  # the last one is in test.h5
    write_stores(table, fresh(out), Preprocess(image_size=IMAGE_SIZE))
    ours = open_store(out / "train.h5").take(np.arange(len(first)))
    limit = np.stack([bare_image(path, box, np.empty_like(ours[0])) for path, *box in rows_of(first)])
    loop(first, fresh(out))
    written = [cv2.cvtColor(cv2.imread(str(out / f"{row}.jpg")), cv2.COLOR_BGR2RGB) for row in range(len(first))]
    tf_data(first, fresh(out))
    with h5py.File(out / "images.h5") as file:
        theirs = {LOOP: np.stack(written), TF_DATA: file["images"][:], LIMIT: limit}
    remarks = []
    for name, images in theirs.items():
        if np.array_equal(images, ours):
            remarks.append(f"{name}: the same pixels.")
            continue
        difference = np.abs(images.astype(int) - ours)
        remarks.append(
            f"{name}: a value differs by {difference.mean():.1f} of 255 on average, and at most {difference.max()}."
        )
    return remarks
