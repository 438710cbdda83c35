"""Read shuffled batches of photos: this project's store beside Keras's directory, h5py, TFRecord and an array in RAM."""

import carmodel.quiet_tensorflow  # noqa: F401

# isort: split
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import cv2
import h5py
import keras
import numpy as np
import tensorflow as tf

from benchmarks.given import Given
from benchmarks.memory import Memory, in_new_process
from benchmarks.photos import IMAGE_SIZE, on_all_cores, store_of
from benchmarks.turns import Competitor, Entry, Role, Table, Work, rate, take_turns
from carmodel.data.store import Store, open_store
from carmodel.data.threads import cores
from carmodel.training.batches import Batches
from carmodel.training.dataset import as_dataset, untuned

TITLE = "Loader"
PHOTOS, QUICK_PHOTOS = 1536, 256
"""Multiples of `BATCH`, because training drops an incomplete batch."""
BATCH = 128
TIMES = 8
"""The memory of an epoch is measured on the photos, and on this many times as many."""
JPEG_QUALITY = 95
EPOCHS = 10
"""Epochs per turn of the ways that read an epoch in a tenth of a second."""

Batch = tuple[np.ndarray, np.ndarray]
"""Images (B, H, W, 3) and labels."""


def measure(given: Given) -> list[Table]:
    """Measure the rate of each loader, and its memory at two sizes of the data set."""
    number = given.size(PHOTOS, QUICK_PHOTOS)
    store = store_of(given, number, given.folder / "store")
    sources = prepare(store, given.folder / "once", 1)
    images = store.take(np.arange(len(store)))
    epochs = {name: epoch_of(name, sources) for name in LOADERS}
    remarks = check(epochs, images)

    def work(epoch: Callable[[], Iterable[Batch]], times: int) -> dict[str, Work]:
        return {"": rate(times * len(store), lambda: [consume(epoch) for _ in range(times)])}

    competitors = [
        Competitor(name, loader.role, loader.threads, work(epochs[name], loader.epochs), loader.note)
        for name, loader in LOADERS.items()
    ]
    gather = Competitor("NumPy gather in RAM", "limit", 1, work(partial(gathered, images), EPOCHS))
    speed = Table(
        f"Shuffled batches of {BATCH}, {IMAGE_SIZE} px, {len(store):,} photos",
        "images/s",
        take_turns([*competitors, gather], given.rounds()),
        [*remarks, "All files are in the page cache. Every loader makes labels, too."],
        headline=f"Loader: batches of {BATCH} at {IMAGE_SIZE} px",
    )
    more = store_of(given, TIMES * number, given.folder / "more-store")
    return [speed, memory(sources, prepare(more, given.folder / "more", TIMES), len(store))]


def memory(once: Path, more: Path, number: int) -> Table:
    """Measure the additional memory of one epoch, in new processes, on both sizes of the data set."""
    sizes = {f"{number:,} photos": once, f"{TIMES * number:,} photos": more}
    entries = []
    for name, loader in LOADERS.items():
        values = {size: [in_new_process(peak, name, folder)] for size, folder in sizes.items()}
        entries.append(Entry(name, loader.role, loader.threads, values))
    remark = "The peak during one epoch in a new process, less what it used before. Mapped files do not count. Measured once."
    return Table("Memory of an epoch", "MB", entries, [remark])


def peak(name: str, sources: Path) -> float:
    """Return the additional memory of one epoch, in MB."""
    tf.zeros(1)  # starts TensorFlow
    with Memory() as used:
        consume(epoch_of(name, sources))
    return used.peak - used.before


def prepare(store: Store, folder: Path, times: int) -> Path:
    """Write the same images for all loaders: a store, JPEG files, an HDF5 file, a TFRecord file.

    The first images of the store are written `times` times to the other files.
    """
    (folder / "photos" / "car").mkdir(parents=True)
    (folder / "photos" / "truck").mkdir()  # Keras wants two classes
    images = store.take(np.arange(len(store) // times))

    def write_jpeg(row: int) -> None:
        names = [folder / "photos" / "car" / f"{row + copy * len(images):06d}.jpg" for copy in range(times)]
        pixels = cv2.cvtColor(images[row], cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(names[0]), pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        for name in names[1:]:
            name.hardlink_to(names[0])

    on_all_cores(write_jpeg, range(len(images)))
    with h5py.File(folder / "images.h5", "w") as file:
        data = file.create_dataset("images", (len(images) * times, *images.shape[1:]), np.uint8)
        for copy in range(times):
            data[copy * len(images) : (copy + 1) * len(images)] = images
        file["labels"] = np.zeros(len(data), np.int64)
    with tf.io.TFRecordWriter(str(folder / "images.tfrecord")) as file:
        for image in (image for _ in range(times) for image in images):
            feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[image.tobytes()]))
            file.write(tf.train.Example(features=tf.train.Features(feature={"image": feature})).SerializeToString())
    (folder / "store.txt").write_text("\n".join(map(str, store.paths)))
    return folder


@cache
def opened(names: Path) -> Store:
    """Open a store once, as training does."""
    return open_store(*names.read_text().splitlines())


def ours(sources: Path, shuffle: bool = True) -> Iterable[Batch]:
    """Read the store as training does."""
    store = opened(sources / "store.txt")
    batches = Batches(store, np.arange(len(store)), BATCH, seed=0 if shuffle else None)
    return (batches[step] for step in range(len(batches)))


@cache
def ours_as_tensors(sources: Path, shuffle: bool = True) -> Iterable[Batch]:
    """Read the same batches with tf.data, which copies them into tensors. The data set is made once, as in training."""
    store = opened(sources / "store.txt")
    return as_dataset(Batches(store, np.arange(len(store)), BATCH, seed=0 if shuffle else None))


@cache
def keras_directory(sources: Path, shuffle: bool = True) -> Iterable[Batch]:
    """Read JPEG files with Keras, as its guides do. The data set is made once, and read in each epoch."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    data = keras.utils.image_dataset_from_directory(
        sources / "photos", image_size=size, batch_size=BATCH, shuffle=shuffle, seed=0, verbose=False
    )
    return untuned(data.prefetch(2))


def h5py_sorted(sources: Path, shuffle: bool = True) -> Iterable[Batch]:
    """Read an HDF5 file with the sorted rows of each batch, since h5py accepts increasing rows only."""
    with h5py.File(sources / "images.h5") as file:
        images, labels = file["images"], file["labels"][:]
        order = np.random.default_rng(0).permutation(len(images)) if shuffle else np.arange(len(images))
        for start in range(0, len(order), BATCH):
            rows = np.sort(order[start : start + BATCH])
            yield images[rows], labels[rows]


@cache
def tfrecord(sources: Path, shuffle: bool = True) -> Iterable[Batch]:
    """Read a TFRecord file of raw pixels with tf.data, and shuffle within a buffer of 1,024 images."""
    features = {"image": tf.io.FixedLenFeature([], tf.string)}

    def parse(examples: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        raw = tf.io.parse_example(examples, features)["image"]
        images = tf.reshape(tf.io.decode_raw(raw, tf.uint8), (-1, IMAGE_SIZE, IMAGE_SIZE, 3))
        return images, tf.zeros(tf.shape(raw), tf.int64)

    records = tf.data.TFRecordDataset(str(sources / "images.tfrecord"))
    records = records.shuffle(1024, seed=0) if shuffle else records
    return untuned(records.batch(BATCH).map(parse, num_parallel_calls=cores()).prefetch(2))


def gathered(images: np.ndarray) -> Iterable[Batch]:
    """Copy the rows of each batch from an array in RAM."""
    order = np.random.default_rng(0).permutation(len(images))
    for start in range(0, len(order), BATCH):
        yield np.take(images, order[start : start + BATCH], axis=0), order


@dataclass(frozen=True)
class Loader:
    """A way to read shuffled batches.

    Attributes:
        read: returns an iterable over the batches of an epoch, from a directory of `prepare`.
        role: "ours" or "peer".
        threads: number of threads.
        epochs: epochs per turn.
        exact: whether it stores pixels, and not JPEG files.
        note: what is different about it.
    """

    read: Callable[..., Iterable[Batch]]
    role: Role
    threads: int
    epochs: int = 1
    exact: bool = True
    note: str = ""


LOADERS = {
    "carmodel: Batches of a store": Loader(ours, "ours", 1, EPOCHS),
    "carmodel: the same as tensors, as in fit": Loader(ours_as_tensors, "ours", 1, EPOCHS),
    "Keras's image_dataset_from_directory": Loader(
        keras_directory,
        "peer",
        cores(),
        exact=False,
        note="It decodes JPEG files that have the final size, and returns float32.",
    ),
    "h5py, sorted rows of each batch": Loader(h5py_sorted, "peer", 1),
    "tf.data, TFRecord of raw pixels": Loader(
        tfrecord,
        "peer",
        cores(),
        note="It shuffles within a buffer of 1,024 images, and so not the whole data set.",
    ),
}


def epoch_of(name: str, sources: Path) -> Callable[..., Iterable[Batch]]:
    """Return a function that makes an iterator over the batches of an epoch."""
    return partial(LOADERS[name].read, sources)


def consume(epoch: Callable[[], Iterable[Batch]]) -> int:
    """Read all batches of an epoch, and return the number of images."""
    return sum(len(images) for images, _ in epoch())


def check(epochs: dict[str, Callable[..., Iterable[Batch]]], images: np.ndarray) -> list[str]:
    """Compare what each loader reads in order with the images, and return a sentence for each.

    Raises:
        RuntimeError: a loader that stores pixels returns other ones.
    """
    remarks = []
    for name, epoch in epochs.items():
        seen = np.concatenate([np.asarray(batch) for batch, _ in epoch(shuffle=False)])
        difference = np.abs(seen.astype(np.float32) - images)
        if difference.max() == 0:
            remarks.append(f"{name}: the same pixels.")
        elif not LOADERS[name].exact:
            remarks.append(f"{name}: JPEG changes a value by {difference.mean():.1f} of 255 on average.")
        else:
            raise RuntimeError(f"{name} returns other pixels than the store has")
    return remarks
