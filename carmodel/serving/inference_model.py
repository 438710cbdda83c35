"""Convert a trained network to a faster one for serving, and check that its answers stay the same."""

from dataclasses import dataclass, field

import keras
import numpy as np

from carmodel.model.folding import fold, in_float32
from carmodel.model.head import with_mirror_image
from carmodel.serving.forward import Forward
from carmodel.serving.onnx_engine import OnnxEngine
from carmodel.serving.onnx_export import to_onnx
from carmodel.serving.tensorflow_engine import TensorFlowEngine
from carmodel.training.precision import fast_bfloat16, onednn_bfloat16

BATCH = 32
FOLDING_BOUND = 1e-5
"""Largest change of a probability that folding may cause."""

ONNX_BOUND = 1e-4
"""Largest change of a probability that ONNX Runtime may cause, which adds float32 numbers in another order."""

BFLOAT16_BOUND = 0.05
"""Largest change of a probability that bfloat16 may cause."""

BFLOAT16_AGREEMENT = 0.995
"""Smallest fraction of photos whose most likely class must stay the same in bfloat16."""


@dataclass(frozen=True)
class InferenceModel:
    """A network for serving.

    Attributes:
        network: float32 weights; uint8 (B, H, W, 3) in, probabilities (B, C) out.
        onnx: the same network as an ONNX model. None if TensorFlow must run it.
        forward: runs the network.
        folded: whether normalisations and Scales are folded into the convolutions.
        precision: "float32" or "bfloat16".
        metrics: largest changes of a probability on the photos, and agreement of the most likely classes.
        notes: sentences that explain what was not done as requested.
    """

    network: keras.Model
    onnx: bytes | None
    forward: Forward
    folded: bool
    precision: str
    metrics: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def engine(self) -> str:
        """Return what runs the network: "onnxruntime" or "tensorflow"."""
        return "onnxruntime" if self.onnx else "tensorflow"


def build_inference_model(
    trained: keras.Model, photos: np.ndarray, folded: bool, precision: str, flip: bool = False
) -> InferenceModel:
    """Fold and convert a network and choose its precision, as far as the answers to `photos` stay within the bounds above.

    Args:
        trained: the trained network, in any precision.
        photos: uint8 (N, H, W, 3), prepared as for training.
        folded: whether to fold normalisations and Scales.
        precision: "float32", or "bfloat16" by oneDNN's automatic mixed precision.
        flip: whether to average the answers to each photo and its mirror image.
    """
    network = in_float32(trained)
    if flip:
        network = with_mirror_image(network)
    metrics: dict[str, float] = {}
    notes: list[str] = []
    size = photos.shape[1]
    answers = _answers(network, photos)
    if folded:
        folded_network = fold(network)
        change = _largest_change(_answers(folded_network, photos), answers)
        metrics["folding_max_change"] = change
        if folded := change <= FOLDING_BOUND:
            network = folded_network
        else:
            notes.append(
                f"the network is served as trained, because folding changes a probability by {change:.1e}, more than "
                f"{FOLDING_BOUND:.0e}"
            )
    if precision == "bfloat16" and not fast_bfloat16():
        precision = "float32"
        notes.append("float32 is used, because bfloat16 is not faster on this processor")
    if precision == "bfloat16":
        forward = Forward(TensorFlowEngine(network, size, bfloat16=True), size)
        precision, measured, note = judge_bfloat16(forward(photos), answers)
        onednn_bfloat16(False)  # for threads that start later
        metrics |= measured
        notes += [note] if note else []
        if precision == "bfloat16":
            return InferenceModel(network, None, forward, folded, precision, metrics, notes)
    converted, measured, note = _checked_onnx(network, photos, answers)
    metrics |= measured
    notes += [note] if note else []
    onnx, forward = converted or (None, Forward(TensorFlowEngine(network, size), size))
    return InferenceModel(network, onnx, forward, folded, precision, metrics, notes)


def _checked_onnx(
    network: keras.Model, photos: np.ndarray, answers: np.ndarray
) -> tuple[tuple[bytes, Forward] | None, dict[str, float], str]:
    """Convert a network to ONNX, and compare its probabilities for `photos` with `answers`, (N, C).

    Returns:
        the ONNX model with its `Forward`, the measures and "". Or None, the measures and a sentence, if TensorFlow must
        run the network.
    """
    size = photos.shape[1]
    try:
        onnx = to_onnx(network, size)
        forward = Forward(OnnxEngine(onnx), size)
        change = _largest_change(forward(photos), answers)
    except Exception as error:  # networks may have any operation, and the converter raises any exception
        reason = str(error).strip().partition("\n")[0]
        return None, {}, f"TensorFlow runs the network, because it cannot be converted for ONNX Runtime: {reason}"
    if change <= ONNX_BOUND:
        return (onnx, forward), {"onnx_max_change": change}, ""
    note = (
        f"TensorFlow runs the network, because ONNX Runtime changes a probability by {change:.1e}, more than "
        f"{ONNX_BOUND:.0e}"
    )
    return None, {"onnx_max_change": change}, note


def judge_bfloat16(rounded: np.ndarray, answers: np.ndarray) -> tuple[str, dict[str, float], str]:
    """Compare probabilities (N, C) in bfloat16 and in float32.

    Returns:
        the precision to use, the measures, and a sentence if it is float32.
    """
    change = _largest_change(rounded, answers)
    agreement = float(np.mean(rounded.argmax(-1) == answers.argmax(-1)))
    measured = {"bfloat16_max_change": change, "bfloat16_top1_agreement": agreement}
    if change <= BFLOAT16_BOUND and agreement >= BFLOAT16_AGREEMENT:
        return "bfloat16", measured, ""
    note = (
        f"float32 is used, because bfloat16 changes a probability by {change:.3f} (at most {BFLOAT16_BOUND}) and keeps "
        f"{agreement:.2%} of the most likely classes (at least {BFLOAT16_AGREEMENT:.1%})"
    )
    return "float32", measured, note


def _answers(network: keras.Model, photos: np.ndarray) -> np.ndarray:
    # `predict` may wait for the end of its tf.data pipeline, see `carmodel.training.dataset`.
    parts = [network.predict_on_batch(photos[start : start + BATCH]) for start in range(0, len(photos), BATCH)]
    return np.concatenate(parts)


def _largest_change(after: np.ndarray, before: np.ndarray) -> float:
    return float(np.abs(after - before).max(initial=0.0))
