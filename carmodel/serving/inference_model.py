"""From the trained network to the one that is served: folded and in the precision asked for, where the answers allow it."""

from dataclasses import dataclass, field

import keras
import numpy as np

from carmodel.model.folding import fold, in_float32
from carmodel.serving.forward import Forward
from carmodel.training.precision import fast_bfloat16, onednn_bfloat16

FOLDING_BOUND = 1e-5
"""Largest change of a probability by folding."""

BFLOAT16_BOUND = 0.05
"""Largest change of a probability by bfloat16, against float32."""

BFLOAT16_AGREEMENT = 0.995
"""Least part of the photos whose best class stays the same in bfloat16."""


@dataclass(frozen=True)
class InferenceModel:
    """The network that is served, and how it was chosen.

    Attributes:
        network: float32 weights; uint8 (B, H, W, 3) in, probabilities (B, C) out.
        folded: whether normalisations and Scales are folded into the convolutions.
        precision: "float32" or "bfloat16".
        metrics: what was measured on the photos: largest changes of a probability, agreement of the best classes.
        notes: where it is not what was asked for: why, in words.
    """

    network: keras.Model
    folded: bool
    precision: str
    metrics: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def build_inference_model(trained: keras.Model, photos: np.ndarray, folded: bool, precision: str) -> InferenceModel:
    """Fold and round a network as far as its answers to `photos` stay within the bounds above.

    Args:
        trained: as trained, in any precision.
        photos: uint8 (N, H, W, 3), prepared as for training.
        folded: whether to fold.
        precision: "float32", or "bfloat16" by oneDNN's automatic mixed precision.
    """
    sixteen_bits = any(layer.compute_dtype != "float32" for layer in trained.layers)
    network = in_float32(trained) if sixteen_bits else trained
    metrics: dict[str, float] = {}
    notes: list[str] = []
    size = photos.shape[1]
    answers = Forward(network, size)(photos)
    if folded:
        folded_network = fold(network)
        change = _largest_change(Forward(folded_network, size)(photos), answers)
        metrics["folding_max_change"] = change
        if folded := change <= FOLDING_BOUND:
            network = folded_network
        else:
            notes.append(
                f"not folded: that changes a probability by {change:.1e}, more than {FOLDING_BOUND:.0e}; "
                "the network is served as trained"
            )
    if precision == "bfloat16" and not fast_bfloat16():
        precision = "float32"
        notes.append("float32: this processor computes no bfloat16 (it has neither avx512_bf16 nor amx_bf16)")
    if precision == "bfloat16":
        precision, measured, note = judge_bfloat16(Forward(network, size, bfloat16=True)(photos), answers)
        onednn_bfloat16(False)  # for threads to come
        metrics |= measured
        notes += [note] if note else []
    return InferenceModel(network, folded, precision, metrics, notes)


def judge_bfloat16(rounded: np.ndarray, answers: np.ndarray) -> tuple[str, dict[str, float], str]:
    """Compare probabilities (N, C) in bfloat16 with those in float32: the precision to use, the measures, a note."""
    change = _largest_change(rounded, answers)
    agreement = float(np.mean(rounded.argmax(-1) == answers.argmax(-1)))
    measured = {"bfloat16_max_change": change, "bfloat16_top1_agreement": agreement}
    if change <= BFLOAT16_BOUND and agreement >= BFLOAT16_AGREEMENT:
        return "bfloat16", measured, ""
    return (
        "float32",
        measured,
        (
            f"float32: bfloat16 changes a probability by {change:.3f} (allowed: {BFLOAT16_BOUND}) and keeps {agreement:.2%} of "
            f"the best classes (wanted: {BFLOAT16_AGREEMENT:.1%})"
        ),
    )


def _largest_change(after: np.ndarray, before: np.ndarray) -> float:
    return float(np.abs(after - before).max(initial=0.0))
