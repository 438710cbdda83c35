"""Run a network with ONNX Runtime, on CPUs."""

import os
import threading
from pathlib import Path

# From version 1.29 on, ONNX Runtime sends usage data to Microsoft unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# isort: split
import numpy as np
import onnxruntime

from carmodel.data.threads import cores


class OnnxEngine:
    """A network in ONNX Runtime (https://onnxruntime.ai).

    An image that is alone is computed by all cores together. If there are several, each core computes its own, which
    gives more images per second.

    Args:
        model: a file, or its content; uint8 (B, H, W, 3) in, probabilities (B, C) out.

    Attributes:
        sizes: batch sizes, the largest one first.
        workers: number of batches to run at a time.
        classes: number of probabilities per image.
    """

    sizes: tuple[int, ...] = (1,)

    def __init__(self, model: Path | bytes) -> None:
        self.workers = cores()
        self._alone = open_session(model, self.workers)
        self._beside_others = open_session(model, 1) if self.workers > 1 else self._alone
        self.classes: int = self._alone.get_outputs()[0].shape[-1]
        self._input: str = self._alone.get_inputs()[0].name
        self._running = 0
        self._lock = threading.Lock()

    def start_thread(self) -> None:
        """Do nothing: ONNX Runtime has no settings per thread."""

    def run(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities, float32 (B, C), of uint8 (B, H, W, 3)."""
        with self._lock:
            session = self._beside_others if self._running else self._alone
            self._running += 1
        try:
            answers: np.ndarray = session.run(None, {self._input: images})[0]
            return answers
        finally:
            with self._lock:
                self._running -= 1


def open_session(model: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    """Load a model, a file or its content, into ONNX Runtime.

    Args:
        model: see `OnnxEngine`.
        threads: threads of each run.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # After a run, threads that wait for the next one would take the cores from those that decode photos.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
