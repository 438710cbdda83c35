"""Import, build and train until the first step is done: ``python -m benchmarks.first_step carmodel|keras STORE``.

`benchmarks.startup` measures the time of the whole process, which ends after the first step.
"""

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

BATCH = 8
NETWORK = "MobileNet"


def carmodel(store: str) -> None:
    """Train with `carmodel.training.fit`, without MLflow."""
    from carmodel.data.store import open_store
    from carmodel.model.network import build
    from carmodel.parameters import Train
    from carmodel.training.fit import fit

    rows = open_store(store)
    settings = Train(backbone=NETWORK, batch_size=BATCH, epochs=1)
    with TemporaryDirectory() as folder:
        fit(build(settings, rows.class_names), rows, settings, Path(folder), callbacks=[end_after_first_step()])


def keras(store: str) -> None:
    """Train as a plain Keras script does: all images in memory, a network of `keras.applications`, `fit`.

    Print the seconds of importing TensorFlow.
    """
    began = time.perf_counter()
    import tensorflow  # noqa: F401

    print(time.perf_counter() - began, flush=True)
    # isort: split
    import h5py
    import keras

    with h5py.File(store) as file:
        images, labels = file["images"][:], file["labels"][:]
    inputs = keras.applications.mobilenet.preprocess_input(images.astype("float32"))
    network = keras.applications.MobileNet(weights=None, classes=2, input_shape=inputs.shape[1:])
    network.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    network.fit(inputs, labels, batch_size=BATCH, epochs=1, verbose=0, callbacks=[end_after_first_step()])


def end_after_first_step() -> Any:
    """Return a callback that ends the process."""
    from keras.callbacks import LambdaCallback

    return LambdaCallback(on_train_batch_end=lambda step, logs: os._exit(0))


if __name__ == "__main__":
    {"carmodel": carmodel, "keras": keras}[sys.argv[1]](sys.argv[2])
    raise SystemExit("the training made no step")
