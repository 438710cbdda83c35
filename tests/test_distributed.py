"""Horovod for Keras 3, and whole trainings, on three real ranks over Gloo, which are started once."""

import json
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if find_spec("horovod") is None:
    pytest.skip("Horovod is not installed: make horovod", allow_module_level=True)

from carmodel.training.launch import Host, run
from tests import distributed_ranks

# There may be fewer GPUs than ranks here.
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}

pytestmark = pytest.mark.slow


RANKS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the ranks left."""
    out = tmp_path_factory.mktemp("ranks")
    run("tests.training_ranks:everything", [str(out)], [Host("localhost", RANKS)], out / "logs", NO_GPU)
    return out


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def five_steps(folder: Path) -> Callable[[str], list[dict[str, np.ndarray]]]:
    return lambda kind: [dict(np.load(folder / f"five_steps-{kind}-{rank}.npz")) for rank in range(RANKS)]


def test_ranks_times_batch_8_is_one_process_with_the_batches_together(five_steps: Any) -> None:
    """With normalisation frozen the sums are the same but for their order.

    float32 sums of some thousand terms in another order differ by about 1e-6 of their size; five steps of a network
    with weights below 1 stay within 1e-5. Without the averaging the weights are 1e-2 apart.
    """
    alone = distributed_ranks.five_steps(RANKS, frozen=True)
    for rank in five_steps("frozen"):
        np.testing.assert_allclose(rank["gradient"], alone["gradient"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(rank["weights"], alone["weights"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(rank["loss"], alone["loss"], rtol=1e-5)


@pytest.mark.parametrize("kind", ["frozen", "free"])
def test_ranks_end_bit_equal(kind: str, five_steps: Any) -> None:
    """Also with normalisation training, and although only rank 0 began with the right weights."""
    first, *others = five_steps(kind)
    for other in others:
        for name, values in first.items():
            np.testing.assert_array_equal(values, other[name])


@pytest.mark.parametrize("optimizer", distributed_ranks.OPTIMIZERS)
def test_every_optimizer_does_what_it_does_with_the_mean_gradient(optimizer: str, seen: list[dict[str, Any]]) -> None:
    """Rounding of the mean is all that may differ; optimizers that divide by the gradient's size enlarge it."""
    assert max(rank["optimizers"][optimizer] for rank in seen) <= 1e-5


def test_accumulated_gradients_are_exchanged_only_when_an_update_is_due(seen: list[dict[str, Any]]) -> None:
    assert all(rank["exchanges"] == [False, False, True] * 2 for rank in seen)


def test_when_one_rank_overflows_all_skip_the_step_and_halve_the_loss_scale(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert rank["non-finite"]["scales"] == [512.0, 512.0]
        assert rank["non-finite"]["weights"] == pytest.approx([1.0, 0.8])


def test_variables_without_weight_decay_stay_without(seen: list[dict[str, Any]]) -> None:
    assert all(rank["undecayed"] == 1.0 for rank in seen)


@pytest.mark.parametrize(
    ("kind", "bound"),
    # Half precision rounds by 2^-11 and bfloat16 by 2^-8 of a number, before the exchange and after it; half precision
    # also after each sum in between, and it rounds numbers below 6e-5 more coarsely.
    [("none", 1e-6), ("float16", 2**-8), ("bfloat16", 2**-7)],
)
def test_compression_keeps_within_its_rounding(kind: str, bound: float, seen: list[dict[str, Any]]) -> None:
    errors = [rank["compression"][kind] for rank in seen]
    assert max(errors) <= bound
    assert len(set(errors)) == 1, "every rank must get the same averages"


def test_metrics_are_averages_weighted_by_rows(seen: list[dict[str, Any]]) -> None:
    logs = seen[0]["logs"]
    values, rows = 10.0 ** np.arange(RANKS), np.arange(1, RANKS + 1)
    assert logs["loss"] == pytest.approx(values.mean())
    assert logs["val_loss"] == pytest.approx((values * rows).sum() / rows.sum())
    assert logs["images_per_second"] == sum(5.0 + rank for rank in range(RANKS))
    assert [logs[f"images_per_second_rank_{rank}"] for rank in range(RANKS)] == [5.0 + rank for rank in range(RANKS)]
    assert all(f"all_reduce_seconds_rank_{rank}" in logs for rank in range(RANKS))
    assert all(rank["logs"] == logs for rank in seen)


def test_moving_statistics_become_the_average_where_they_train(seen: list[dict[str, Any]]) -> None:
    for rank, saw in enumerate(seen):
        assert saw["moving"] == pytest.approx([(RANKS - 1) / 2, rank])


def test_a_model_that_would_not_train_with_the_others_is_refused(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert len(rank["refused"]) == 2
        assert all("distribute(model.optimizer)" in error and "jit_compile=False" in error for error in rank["refused"])


def test_ranks_that_train_apart_stop_after_the_epoch(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        not_exchanged, not_averaged = rank["apart"]
        assert "gradients were averaged 0 times in 2 updates" in not_exchanged
        assert "the weights of the ranks differ, first in " in not_averaged


def test_rank_0_and_the_first_of_a_machine_speak_for_the_others(seen: list[dict[str, Any]]) -> None:
    assert all(rank["shared"] == [{"epoch": 0}, "found by process 0"] for rank in seen)


def trained(folder: Path) -> list[dict[str, Any]]:
    """What each rank saw in a training."""
    return [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(RANKS)]


def test_40_rows_are_dealt_to_3_ranks_in_equal_steps_without_overlap(folder: Path) -> None:
    """13 rows per rank, in 3 steps of 4; the 7 validation rows are 3, 2 and 2."""
    ranks = trained(folder / "plain")
    assert [rank["steps"] for rank in ranks] == [3, 3, 3]
    assert [len([row for row in rank["taken"] if row < 40]) for rank in ranks] == [12, 12, 12]
    assert [len([row for row in rank["taken"] if row >= 40]) for rank in ranks] == [3, 2, 2]
    assert len({row for rank in ranks for row in rank["taken"]}) == 43


@pytest.mark.parametrize("training", ["plain", "frozen"])
def test_all_ranks_see_the_same_metrics_and_end_with_the_same_weights(training: str, folder: Path) -> None:
    first, *others = trained(folder / training)
    assert all(len(other["history"]["val_loss"]) == len(first["history"]["val_loss"]) for other in others)
    assert all(other["history"] == first["history"] for other in others)
    first, *others = (np.load(folder / training / f"weights-{rank}.npy") for rank in range(RANKS))
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_a_frozen_networks_features_are_computed_once_and_shared(folder: Path) -> None:
    ranks = trained(folder / "frozen")
    assert {row for rank in ranks for row in rank["taken"]} == set(range(47))


def test_the_model_loads_with_its_optimizer_without_horovod_and_carmodel(folder: Path, commands: str) -> None:
    program = f"""
import sys
sys.modules["horovod"] = sys.modules["carmodel"] = None
import keras
model = keras.models.load_model({str(folder / "model-0.keras")!r})
assert type(model.optimizer) is keras.optimizers.AdamW and int(model.optimizer.iterations) == 1
"""
    subprocess.run([f"{commands}/python", "-c", program], check=True, timeout=120, cwd=folder)
