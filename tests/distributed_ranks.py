"""What the ranks of tests/test_distributed.py do: `contract` runs on every rank and leaves what it saw in a folder."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import layers, optimizers

from carmodel.model.head import head
from carmodel.model.scale import Scale
from carmodel.training.batches import Batches

CLASSES = 3
STEPS = 5
BATCH = 8

OPTIMIZERS = {
    "SGD": lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "SGD, weight decay": lambda: optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1),
    "SGD, global clipnorm": lambda: optimizers.SGD(0.1, global_clipnorm=0.01),
    "SGD, clipnorm": lambda: optimizers.SGD(0.1, clipnorm=0.01),
    "SGD, EMA": lambda: optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=2),
    "SGD, static loss scale": lambda: optimizers.SGD(0.1, loss_scale_factor=64.0),
    "SGD, accumulation": lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2, global_clipnorm=0.01),
    "AdamW": lambda: optimizers.AdamW(0.01, weight_decay=0.1),
    "AdamW, accumulation": lambda: optimizers.AdamW(0.01, gradient_accumulation_steps=2),
    "Lamb": lambda: optimizers.Lamb(0.01),
    "LossScaleOptimizer": lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.1), dynamic_growth_steps=2),
    "LossScaleOptimizer, accumulation": lambda: optimizers.LossScaleOptimizer(
        optimizers.SGD(0.1, gradient_accumulation_steps=2, global_clipnorm=0.01)
    ),
}


class Store(SimpleNamespace):
    """Rows in memory, as `carmodel.training.batches.Rows`."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.images[rows]


def photos(rows: int, validation: int = 0) -> Store:
    """Made-up 32 px photos, the same in every process."""
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (rows, 32, 32, 3), np.uint8)
    kept = np.arange(rows) >= rows - validation
    return Store(
        images=images,
        labels=numbers.integers(0, CLASSES, rows),
        validation=kept,
        class_names=["a", "b", "c"],
        image_size=32,
        crc32=np.arange(rows),
    )


def small() -> keras.Model:
    """A network of the project's layers, with two normalisations."""
    image = keras.Input((32, 32, 3), dtype="uint8")
    x = layers.Rescaling(1 / 64, -2)(image)
    for filters in (8, 16):
        x = layers.Conv2D(filters, 3, strides=2, use_bias=False)(x)
        x = layers.BatchNormalization(center=False, scale=False, momentum=0.5)(x)
        x = layers.ReLU()(Scale()(x))
    return keras.Model(image, head(layers.GlobalAveragePooling2D()(x), CLASSES))


def five_steps(ranks: int, rank: int = 0, share: int = 1, *, frozen: bool) -> dict[str, np.ndarray]:
    """First gradient and last weights of five steps, with a global batch of 8 * `ranks`, on `share` ranks."""
    keras.utils.set_random_seed(1 + rank)
    network = small()
    if rank != 0:
        # As if rank 0 alone had restored a checkpoint.
        network.set_weights([weight + 1 for weight in network.get_weights()])
    for layer in network.layers:
        if frozen and isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
    optimizer = optimizers.SGD(0.05, momentum=0.9)
    loss = keras.losses.CategoricalCrossentropy()
    callbacks: list[keras.callbacks.Callback] = []
    if share > 1:
        from carmodel.training.distributed import Horovod, SynchronizeRanks, distribute

        average = distribute(optimizer)
        Horovod().broadcast(network.variables)
        callbacks.append(SynchronizeRanks(average, rows=STEPS * BATCH))
    store = photos(STEPS * BATCH * ranks)
    batches = Batches(store, np.arange(len(store)), BATCH * ranks // share, seed=3, rank=rank, ranks=share)
    gradients = gradient(network, loss, *batches[0])
    if share > 1:
        gradients = average(gradients)
    network.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    history = network.fit(batches, epochs=1, shuffle=False, verbose=0, callbacks=callbacks).history
    return {
        "gradient": np.concatenate([np.ravel(g) for g in gradients]),
        "weights": np.concatenate([np.ravel(v.numpy()) for v in network.variables]),
        "loss": np.array(history["loss"]),
    }


def gradient(network: keras.Model, loss: Any, images: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        value = loss(labels, network(images, training=True))
    return tape.gradient(value, [v.value for v in network.trainable_variables])


def contract(folder: str) -> None:
    """Everything about Horovod for Keras, in one start of the ranks."""
    from carmodel.training.distributed import Horovod

    job = Horovod()
    rank, ranks = job.rank, job.count
    out = Path(folder)
    for frozen in (True, False):
        np.savez(
            out / f"five_steps-{'frozen' if frozen else 'free'}-{rank}.npz",
            **five_steps(ranks, rank, ranks, frozen=frozen),
        )
    seen = {
        "rank": rank,
        "ranks": ranks,
        "optimizers": {name: distance(make, rank, ranks) for name, make in OPTIMIZERS.items()},
        "exchanges": exchanges(),
        "non-finite": one_rank_overflows(rank),
        "undecayed": undecayed(),
        "compression": {kind: compression_error(kind, rank, ranks) for kind in ("none", "float16", "bfloat16")},
        "logs": logs(rank),
        "refused": refused(),
        "apart": [without_exchange(rank), without_average(rank)],
        "shared": shared(rank),
        "moving": moving(rank),
    }
    saved(out / f"model-{rank}.keras")
    (out / f"seen-{rank}.json").write_text(json.dumps(seen))


def dense() -> keras.Model:
    keras.utils.set_random_seed(7)
    return keras.Sequential([keras.Input((6,)), layers.Dense(4, "tanh"), layers.Dense(CLASSES, "softmax")])


def points(rows: int) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.random.default_rng(5)
    return numbers.normal(size=(rows, 6)).astype(np.float32), numbers.integers(0, CLASSES, rows)


def distance(make: Any, rank: int, ranks: int) -> float:
    """Largest difference of any weight, after six steps, from a plain optimizer that is given the mean gradients."""
    import tensorflow as tf

    from carmodel.training.distributed import distribute

    numbers = np.random.default_rng(5)
    start = [numbers.normal(size=shape).astype(np.float32) for shape in ((6, 4), (4,))]
    gradients = [[numbers.normal(size=(ranks, *w.shape)).astype(np.float32) for w in start] for _ in range(6)]
    ends = []
    for optimizer, pick in ((make(), lambda each: each[rank]), (make(), lambda each: each.mean(0))):
        weights = [keras.Variable(value) for value in start]
        optimizer.build(weights)
        if not ends:
            distribute(optimizer)
        step = tf.function(optimizer.apply)
        for each in gradients:
            # As model.fit does: the loss, hence its gradient, is scaled.
            step([optimizer.scale_loss(keras.ops.convert_to_tensor(pick(gradient))) for gradient in each])
        ends.append([weight.numpy() for weight in weights])
    assert all((end != begin).all() for end, begin in zip(ends[1], start, strict=True))
    return max(float(np.abs(a - b).max()) for a, b in zip(*ends, strict=True))


def exchanges() -> list[bool]:
    """With three gradients an update, after which of six steps something was exchanged."""
    from carmodel.training.distributed import distribute

    optimizer, model = optimizers.SGD(0.1, gradient_accumulation_steps=3), dense()
    average = distribute(optimizer)
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    spent = [0.0]
    for _ in range(6):
        model.train_on_batch(*points(4))
        spent.append(float(average.seconds))
    return [bool(step > 0) for step in np.diff(spent)]


def one_rank_overflows(rank: int) -> dict[str, Any]:
    """A gradient that is infinite on rank 1 alone: the step is skipped and the scale halved everywhere."""
    from carmodel.training.distributed import distribute

    optimizer = optimizers.LossScaleOptimizer(optimizers.SGD(0.1), initial_scale=1024.0)
    distribute(optimizer)
    weight = keras.Variable(np.ones(2, np.float32))
    optimizer.build([weight])
    scales, weights = [], []
    for value in (np.inf if rank == 1 else 1.0, 1.0):
        optimizer.apply([keras.ops.convert_to_tensor(np.full(2, value, np.float32)) * 1024.0], [weight])
        scales.append(float(optimizer.dynamic_scale.numpy()))
        weights.append(float(weight.numpy()[0]))
    return {"scales": scales, "weights": weights}


def undecayed() -> float:
    """What is left of a bias of 1 that was excluded from weight decay before the optimizer was distributed."""
    from carmodel.training.distributed import distribute

    optimizer, bias = optimizers.SGD(0.1, weight_decay=0.5), keras.Variable(np.ones(2, np.float32))
    optimizer.exclude_from_weight_decay(var_list=[bias])
    distribute(optimizer)
    optimizer.apply([keras.ops.zeros(2)], [bias])
    return float(bias.numpy()[0])


def compression_error(kind: str, rank: int, ranks: int) -> float:
    """Largest error of an average, relative to the mean size of the numbers that are averaged."""
    from carmodel.training.distributed import Average

    numbers = np.random.default_rng(11)
    # Sizes that do not divide by the ranks, over seven orders of magnitude, signs mixed.
    values = [
        (numbers.normal(size=(ranks, *shape)) * 10.0 ** numbers.uniform(-4, 3, (ranks, *shape))).astype(np.float32)
        for shape in ((5,), (3, 7), (), (1001,))
    ]
    averages = Average(kind)([keras.ops.convert_to_tensor(value[rank]) for value in values])
    return max(
        float((np.abs(average.numpy() - value.mean(0)) / np.abs(value).mean(0)).max())
        for average, value in zip(averages, values, strict=True)
    )


def logs(rank: int) -> dict[str, float]:
    """An epoch's logs after SynchronizeRanks: rank r brings values of 10^r, and r + 1 validation rows."""
    from carmodel.training.distributed import Average, SynchronizeRanks

    together = SynchronizeRanks(Average(), rows=6, validation_rows=rank + 1)
    model = dense()
    model.compile("sgd")
    together.set_model(model)
    together.set_params({"steps": 0})
    together.on_epoch_begin(0)
    logs = {"loss": 10.0**rank, "val_loss": 10.0**rank, "images_per_second": 5.0 + rank}
    together.on_epoch_end(0, logs)
    return logs


def refused() -> list[str]:
    """Errors of a model that XLA compiles, and of one whose optimizer is not distributed."""
    from carmodel.training.distributed import Average, SynchronizeRanks, distribute

    errors = []
    for jit in (True, False):
        model = dense()
        model.compile("sgd", "mse", jit_compile=jit)
        together = SynchronizeRanks(distribute(model.optimizer) if jit else Average(), rows=2)
        try:
            model.fit(np.zeros((2, 6)), np.zeros((2, CLASSES)), verbose=0, callbacks=[together])
        except ValueError as error:
            errors.append(str(error))
    return errors


def error_of_an_epoch(average: Any, model: keras.Model, rank: int) -> str:
    """What stops an epoch in which each rank sees other points."""
    from carmodel.training.distributed import SynchronizeRanks

    x, y = points(8)
    try:
        model.fit(x + rank, y, batch_size=4, verbose=0, callbacks=[SynchronizeRanks(average, 8)])
    except RuntimeError as error:
        return str(error)
    return ""


def without_exchange(rank: int) -> str:
    """The error of a training whose gradients are clipped, but are not exchanged."""
    from carmodel.training.distributed import distribute

    model = dense()
    model.compile(optimizers.SGD(0.1), "sparse_categorical_crossentropy", jit_compile=False)
    average = distribute(model.optimizer)
    model.optimizer._clip_gradients = lambda gradients: gradients
    return error_of_an_epoch(average, model, rank)


def without_average(rank: int) -> str:
    """The error of a training whose exchanges are counted, but return this rank's own gradients."""
    from carmodel.training.distributed import distribute

    model = dense()
    model.compile(optimizers.SGD(0.1), "sparse_categorical_crossentropy", jit_compile=False)
    average = distribute(model.optimizer)
    average._exchange = lambda gradients: gradients
    return error_of_an_epoch(average, model, rank)


def shared(rank: int) -> list[Any]:
    """What rank 0 says, and what the first rank of a machine found."""
    from carmodel.training.distributed import Horovod

    return [
        Horovod().from_rank_0({"epoch": rank}),
        Horovod().once_per_machine(lambda: f"found by process {os.environ['HOROVOD_RANK']}"),
    ]


def moving(rank: int) -> list[float]:
    """Moving means after being made equal, of a layer that trains and of a frozen one: rank r starts with r."""
    from carmodel.training.distributed import equalise_moving_statistics

    inner = keras.Sequential([keras.Input((2,)), layers.BatchNormalization(), layers.BatchNormalization()])
    inner.layers[1].trainable = False
    model = keras.Sequential([keras.Input((2,)), inner])
    for layer in inner.layers:
        layer.moving_mean.assign([rank, rank])
    equalise_moving_statistics(model)
    return [float(layer.moving_mean.numpy()[0]) for layer in inner.layers]


def saved(path: Path) -> None:
    """Train a step and save with optimizer state."""
    from carmodel.training.distributed import SynchronizeRanks, distribute

    optimizer, model = optimizers.AdamW(0.01), dense()
    average = distribute(optimizer)
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(*points(8), verbose=0, callbacks=[SynchronizeRanks(average, 8)])
    model.save(path)
