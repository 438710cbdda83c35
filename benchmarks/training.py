"""Train ResNet-50: with Scale, beside `keras.applications.ResNet50`, and from a store beside synthetic data in memory."""

from collections.abc import Callable
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from benchmarks.given import Given
from benchmarks.photos import IMAGE_SIZE, store_of
from benchmarks.turns import Competitor, Entry, Table, rate, take_turns
from carmodel.data.store import Store
from carmodel.data.threads import cores
from carmodel.model.head import logits_of
from carmodel.model.pretrained import copy_weights
from carmodel.model.resnet import resnet
from carmodel.model.scale import Scale
from carmodel.parameters import Train
from carmodel.training import precision
from carmodel.training.dataset import untuned
from carmodel.training.fit import Throughput, fit
from carmodel.training.fused_normalization import with_fused_normalization
from carmodel.training.optimizer import make_optimizer

TITLE = "Training"
CLASSES = 196
BATCH = 8
STORE_SIDE = 128
"""Side of the images of the training from a store, in pixels. Reading and computing take time in proportion to the pixels."""
STORE_STEPS, QUICK_STORE_STEPS = 6, 2
"""Steps of an epoch of the training from a store."""
PEER = "keras.applications.ResNet50"
OWN = "Images are uint8, and normalised in each step. Batch normalisation and Scale are one operation, as in `fit`."


def measure(given: Given) -> list[Table]:
    """Measure the step of all networks, and training from a store."""
    tables = [steps(given)]
    keras.utils.clear_session(free_memory=True)
    return [*tables, from_store(given)]


def precisions() -> list[str]:
    """Return the precisions that this machine is fast at."""
    return ["float32", *["bfloat16"] * bool(precision.fast_bfloat16())]


def steps(given: Given) -> Table:
    """Measure training steps on random photos, with the same optimizer and loss."""
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (BATCH, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    labels = numbers.integers(0, CLASSES, BATCH)
    ours, peer = resnet(50, CLASSES), keras.applications.ResNet50(weights=None, classes=CLASSES)
    remarks = [*check(ours, peer, images), "The images are random numbers."]
    prepared = keras.applications.resnet.preprocess_input(images.astype("float32"))
    ways: list[tuple[str, str, keras.Model, np.ndarray, str]] = [
        ("carmodel: ResNet-50 with Scale", "ours", with_fused_normalization(ours), images, OWN),
        (PEER, "peer", peer, prepared, "Images are float32, and normalised before."),
        ("the same network without normalisation", "limit", without_normalisation(ours), images, ""),
    ]
    competitors = []
    for name, role, network, inputs, note in ways:
        network.compile(keras.optimizers.SGD(0.001, momentum=0.9), "sparse_categorical_crossentropy", jit_compile=False)
        work = partial(network.train_on_batch, inputs, labels)
        works = {kind: partial(in_precision, kind, rate(BATCH, work)) for kind in precisions()}
        competitors.append(Competitor(name, role, cores(), works, note))
    entries = take_turns(competitors, given.rounds())
    precision.onednn_bfloat16(False)
    title = f"Training step, batch {BATCH}, {IMAGE_SIZE} px, SGD with momentum"
    return Table(title, "images/s", entries, remarks, "Training step of ResNet-50 with Scale", precisions()[-1])


def in_precision(kind: str, work: Callable[[], float]) -> float:
    """Measure in a precision. Graphs that were traced before run in it, too."""
    precision.onednn_bfloat16(kind == "bfloat16")
    return work()


def without_normalisation(network: keras.Model) -> keras.Model:
    """Return a copy of a network in which nothing takes the place of batch normalisation and Scale."""

    def clone(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, keras.layers.BatchNormalization | Scale):
            return keras.layers.Identity(name=layer.name)
        return layer.__class__.from_config(layer.get_config())

    def call(layer: keras.Layer, *arguments: object, **_: object) -> object:
        return layer(*arguments)  # without the mask, which only batch normalisation takes

    return keras.models.clone_model(network, clone_function=clone, call_function=call)


def check(ours: keras.Model, peer: keras.Model, images: np.ndarray) -> list[str]:
    """Give both networks the same weights, compare their features, and return sentences."""
    copy_weights(peer, ours)
    theirs = keras.Model(peer.input, peer.layers[-2].output)
    mine = keras.Model(ours.input, ours.get_layer("pool").output)
    expected = theirs(keras.applications.resnet.preprocess_input(images[:2].astype("float32"))).numpy()
    change = np.abs(mine(images[:2]).numpy() - expected).max() / np.abs(expected).max()
    sizes = [sum(int(np.prod(v.shape)) for v in network.trainable_variables) for network in (ours, peer)]
    return [
        f"Both start with the same weights, and their features differ by at most {change:.0e} of the largest one.",
        f"Trainable weights: {sizes[0]:,} with Scale, and {sizes[1]:,} in Keras, whose convolutions have biases.",
    ]


class OtherTurn(keras.callbacks.Callback):
    """After each epoch of a training, let another model train for as many steps.

    Args:
        other: trains and returns images per second.

    Attributes:
        rates: images per second of both, after the first epoch, which traces the graphs.
    """

    def __init__(self, other: Callable[[], float]) -> None:
        super().__init__()
        self.other = other
        self.rates: tuple[list[float], list[float]] = [], []

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Record the rate of this epoch, and of a turn of the other model."""
        theirs = self.other()
        if epoch > 0:
            self.rates[0].append((logs or {})["images_per_second"])
            self.rates[1].append(theirs)


def from_store(given: Given) -> Table:
    """Train with `carmodel.training.fit` on a store, in turns with Keras's `fit` on one batch that stays in memory."""
    count = given.size(STORE_STEPS, QUICK_STORE_STEPS)
    store = store_of(given, BATCH * count, given.folder / "store", STORE_SIDE)
    kind = precisions()[-1]
    precision.apply(kind)
    settings = Train(epochs=given.rounds() + 1, batch_size=BATCH, warmup_epochs=0, learning_rate=0.001, precision=kind)
    turns = OtherTurn(synthetic(store, settings, count))
    fit(resnet(50, len(store.class_names)), store, settings, given.folder / "checkpoints", callbacks=[turns])
    entries = [
        Entry("carmodel: fit on a store", "ours", cores(), {"": turns.rates[0]}),
        Entry("the same network on synthetic data in memory", "limit", cores(), {"": turns.rates[1]}),
    ]
    remark = f"An epoch has {count} steps. Validation and checkpoints are not part of the time."
    title = f"Training from a store, {kind}, batch {BATCH}, {STORE_SIDE} px"
    return Table(title, "images/s", entries, [remark], "Training ResNet-50 from a store")


def synthetic(store: Store, settings: Train, steps: int) -> Callable[[], float]:
    """Return a function that trains the same network on one batch in memory, and returns images per second."""
    network = with_fused_normalization(logits_of(resnet(50, len(store.class_names))))
    optimizer = make_optimizer(settings, network.trainable_variables, int(settings.epochs), steps)
    network.compile(optimizer, keras.losses.CategoricalCrossentropy(from_logits=True), jit_compile=False)
    images = store.take(np.arange(BATCH))
    batch = images, np.eye(len(store.class_names), dtype=np.float32)[store.labels[:BATCH]]
    data = untuned(tf.data.Dataset.from_tensors(batch).repeat(steps).prefetch(1))

    def turn() -> float:
        result = network.fit(data, epochs=1, shuffle=False, verbose=0, callbacks=[Throughput(BATCH * steps)])
        return float(result.history["images_per_second"][0])

    return turn
