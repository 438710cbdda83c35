"""Augment batches: this project's augmentation on the device beside Keras's layers, and albumentations on the CPU."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from benchmarks.given import Given
from benchmarks.peers import MISSING, PeerError, Peers, peers
from benchmarks.photos import IMAGE_SIZE, store_of
from benchmarks.turns import Competitor, Table, rate, take_turns
from carmodel.data.threads import cores
from carmodel.parameters import Train
from carmodel.training.device_augmentation import UNCHANGED, DeviceAugmentation, draw

TITLE = "Augmentation"
BATCH = 128
TIMES, QUICK_TIMES = 4, 1
"""Batches of a turn."""
SETTINGS = Train(random_crop=0.5, random_flip=True, colors=1.0)


def measure(given: Given) -> list[Table]:
    """Measure all ways on the same batch."""
    times = given.size(TIMES, QUICK_TIMES)
    images = store_of(given, BATCH, given.folder / "store").take(np.arange(BATCH))
    layer = DeviceAugmentation(IMAGE_SIZE, SETTINGS)
    ours = tf.function(lambda batch, numbers: layer(batch, numbers, training=True), jit_compile=False)
    layers = keras_layers()
    theirs = tf.function(lambda batch: layers(batch, training=True), jit_compile=False)
    rng = np.random.default_rng(0)
    unchanged = ours(tf.constant(images), tf.constant(np.tile(UNCHANGED, (BATCH, 1)))).numpy()
    if not np.array_equal(unchanged, images):
        raise RuntimeError("augmentation that is switched off changes a pixel")

    def repeat(work: Callable[[], object]) -> Callable[[], float]:
        return rate(BATCH * times, lambda: [work() for _ in range(times)])

    with peers(given) as process:
        competitors = [
            Competitor(
                "carmodel: DeviceAugmentation",
                "ours",
                cores(),
                {"": repeat(lambda: ours(tf.constant(images), tf.constant(draw(BATCH, rng, SETTINGS))).numpy())},
                "It returns uint8, and the random numbers are part of the time.",
            ),
            Competitor(
                "Keras's preprocessing layers",
                "peer",
                cores(),
                {"": repeat(lambda: theirs(tf.constant(images)).numpy())},
                "RandomFlip, RandomTranslation, RandomZoom, RandomColorJitter. They return float32.",
            ),
            albumentations(process, given, images, times),
            Competitor("copy in memory", "limit", 1, {"": repeat(images.copy)}),
        ]
        entries = take_turns(competitors, given.rounds())
    remarks = [
        "All crop or zoom, flip, and change brightness, contrast and saturation, with their own random numbers.",
        "With every change switched off, carmodel returns the same pixels.",
    ]
    title = f"Batches of {BATCH} photos of {IMAGE_SIZE} px on the CPU"
    return [Table(title, "images/s", entries, remarks, f"Augmentation of batches of {BATCH}")]


def keras_layers() -> keras.Sequential:
    """Return Keras's layers for the same kinds of change, used as in its guides."""
    return keras.Sequential(
        [
            keras.layers.RandomFlip("horizontal"),
            keras.layers.RandomTranslation(0.15, 0.15),
            keras.layers.RandomZoom((-0.3, 0.0)),
            keras.layers.RandomColorJitter(
                (0, 255), brightness_factor=0.4, contrast_factor=0.4, saturation_factor=0.4, hue_factor=0.0
            ),
        ]
    )


def albumentations(process: Peers | None, given: Given, images: np.ndarray, times: int) -> Competitor:
    """Return albumentations in the peers' process, which reads the clock itself."""
    name = "albumentations"
    if process is None:
        return Competitor(name, "peer", cores(), {}, MISSING)
    file = given.folder / "images.npy"
    np.save(file, images)

    def work() -> float:
        return BATCH * times / process.call("augment", images=str(file), threads=cores(), times=times)

    try:
        version = process.call("versions", packages=[name])[0]
        work()
    except PeerError as error:
        return Competitor(name, "peer", cores(), {}, str(error))
    note = "RandomResizedCrop, HorizontalFlip, ColorJitter, with a thread per core."
    return Competitor(f"{name} {version}", "peer", cores(), {"": work}, note)
