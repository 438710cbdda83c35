"""Whole trainings on two real ranks: death and resume. Those on three ranks are in test_distributed."""

import json
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carmodel.model.network import build
from carmodel.parameters import Train
from carmodel.training.launch import Host, RankError, run
from carmodel.training.optimizer import make_optimizer

ROOT = Path(__file__).resolve().parents[1]
# There may be fewer GPUs than ranks here.
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
DETERMINISTIC = NO_GPU | {"TF_DETERMINISTIC_OPS": "1"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("horovod") is None, reason="Horovod is not installed: make horovod"),
]


def seen(folder: Path, ranks: int) -> list[dict[str, Any]]:
    return [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(ranks)]


def weights(folder: Path, ranks: int) -> list[np.ndarray]:
    return [np.load(folder / f"weights-{rank}.npy") for rank in range(ranks)]


@pytest.fixture(scope="module")
def died(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, float]:
    """Folder of a training whose rank 1 was killed, the error, and the seconds from the last epoch to the error.

    Beside it, in "uninterrupted", is one that ended well.
    """
    folder = tmp_path_factory.mktemp("died")
    (folder / "uninterrupted").mkdir()
    with pytest.raises(RankError) as error:
        run("tests.training_ranks:killed", [str(folder)], [Host("localhost", 2)], folder / "logs", DETERMINISTIC)
    saved = (folder / "checkpoints" / "epoch-0002.npz").stat().st_mtime
    return folder, str(error.value), time.time() - saved


def test_a_rank_killed_while_the_others_wait_for_its_gradients_ends_the_job(died: tuple[Path, str, float]) -> None:
    folder, error, seconds = died
    assert seconds < 60
    assert error.startswith("rank 1 of 2, on localhost, ended by SIGKILL; its last lines:\n")
    assert "epoch 2/4" in (folder / "logs" / "rank-0.log").read_text()
    assert not (folder / "weights-0.npy").exists()


def test_a_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(
    died: tuple[Path, str, float],
) -> None:
    """Bit for bit, although of the new job's machines only the first has the checkpoint."""
    folder, *_ = died
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["epoch-0001.npz", "epoch-0002.npz"]
    run("tests.training_ranks:resumed", [str(folder)], [Host("localhost", 2)], folder / "again", DETERMINISTIC)
    for resumed, uninterrupted in zip(weights(folder, 2), weights(folder / "uninterrupted", 2), strict=True):
        np.testing.assert_array_equal(resumed, uninterrupted)
    resumed, uninterrupted = (seen(where, 2)[0]["history"] for where in (folder, folder / "uninterrupted"))
    assert resumed.keys() == uninterrupted.keys()
    for name in ("loss", "accuracy", "top5", "val_loss", "val_accuracy", "val_top5"):
        assert len(resumed[name]) == 4 and resumed[name] == uninterrupted[name], name


def test_the_learning_rate_grows_with_the_ranks_unless_switched_off() -> None:
    network = build(Train(depth=14, width=4), ["a", "b"])

    def peak(params: Train, ranks: int) -> float:
        return float(make_optimizer(params, network.trainable_variables, 1, 10, ranks=ranks).learning_rate)

    constant = {"warmup_epochs": 0.0, "learning_rate": 0.1}
    assert peak(Train(**constant), 4) == pytest.approx(0.4)
    assert peak(Train(**constant, scale_learning_rate=False), 4) == pytest.approx(0.1)
    assert peak(Train(**constant), 1) == pytest.approx(0.1)


def test_one_process_imports_nothing_of_horovod(commands: str) -> None:
    program = "import sys, steps.train_rank; assert not [name for name in sys.modules if name.startswith('horovod')]"
    subprocess.run([f"{commands}/python", "-c", program], check=True, timeout=300, cwd=ROOT)
