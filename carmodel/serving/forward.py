"""Run a network on any number of photos, as small batches of fixed sizes in parallel."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from carmodel.errors import InputError

NVIDIA_DEVICE = Path("/dev/nvidiactl")
"""It exists if the process can use any GPU of NVIDIA."""


class Engine(Protocol):
    """What computes the network; see `OnnxEngine` and `TensorFlowEngine`."""

    sizes: tuple[int, ...]
    workers: int
    classes: int

    def start_thread(self) -> None:
        """Prepare a thread, before it calls `run`."""

    def run(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities, float32 (B, C), of uint8 (B, H, W, 3), where B is one of `sizes`."""


class Forward:
    """The forward pass of a network, with a pool of threads.

    The batch sizes of an engine are powers of two, so any number of rows is a sum of sizes and no row is padded. A fixed
    number of batches runs at a time, even if there are more callers. This limits the memory.

    Args:
        engine: the network.
        image_size: side of the square images.

    Attributes:
        classes: number of probabilities per image.
        largest: largest batch size.
        workers: number of batches that run at a time.
    """

    def __init__(self, engine: Engine, image_size: int) -> None:
        self._engine = engine
        self.classes, self.largest, self.workers = engine.classes, engine.sizes[0], engine.workers
        self._pool = ThreadPoolExecutor(self.workers, "forward", initializer=engine.start_thread)
        for size in engine.sizes:  # the first call builds the kernels
            self(np.zeros((size, image_size, image_size, 3), np.uint8))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities, float32 (N, C), of uint8 (N, H, W, 3). Many threads may call it at once."""
        started = [self.start(images[i : i + self.largest]) for i in range(0, len(images), self.largest)]
        return np.concatenate([np.empty((0, self.classes), np.float32), *(future.result() for future in started)])

    def start(self, images: np.ndarray) -> Future[np.ndarray]:
        """Queue a batch, uint8 (N, H, W, 3) with N up to `largest`. The result is float32 (N, C)."""
        return self._pool.submit(self._run, images)

    def _run(self, images: np.ndarray) -> np.ndarray:
        answers = []
        while len(images):
            size = next(size for size in self._engine.sizes if size <= len(images))
            answers.append(self._engine.run(images[:size]))
            images = images[size:]
        return np.concatenate(answers)


def load_engine(artifacts: Mapping[str, str], image_size: int, precision: str) -> Engine:
    """Load a packaged network into ONNX Runtime, or into TensorFlow if ONNX Runtime cannot run it as it should.

    TensorFlow runs networks on GPUs, in bfloat16, and without an ONNX file, such as those of earlier versions. Otherwise it
    is not even imported, so that a server starts sooner. It need not be installed then.

    Args:
        artifacts: the files ``model`` (Keras) and, optionally, ``onnx``.
        image_size: side of the square images.
        precision: "float32" or "bfloat16".

    Raises:
        InputError: a package is not installed, or the file is damaged.
    """
    in_onnx_runtime = "onnx" in artifacts and not (NVIDIA_DEVICE.exists() and _tensorflow_sees_a_gpu())
    file = artifacts["onnx" if in_onnx_runtime else "model"]
    try:
        if in_onnx_runtime:
            from carmodel.serving.onnx_engine import OnnxEngine

            return OnnxEngine(Path(file))
        import carmodel.quiet_tensorflow  # noqa: F401
        from carmodel.serving.tensorflow_engine import load_keras_file

        return load_keras_file(file, image_size, precision)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{file} needs the package {error.name}. Install what the classifier needs: pip install -r "
            f"{Path(file).parents[1] / 'requirements.txt'}"
        ) from None
    except Exception as error:  # ONNX Runtime and Keras raise different exceptions for a file that they cannot read
        raise InputError(
            f"{file} cannot be loaded: {error}. Package the classifier again: mlflow run . -e package_pyfunc "
            "--env-manager local -P model_uri=…"
        ) from error


def _tensorflow_sees_a_gpu() -> bool:
    try:
        import carmodel.quiet_tensorflow  # noqa: F401
    except ImportError:
        return False
    from carmodel.training.precision import gpus

    return gpus() > 0
