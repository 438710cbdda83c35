"""Trainings that run at the same time take different GPUs."""

import os
from pathlib import Path

import pytest

from carmodel.training import gpu_slots


def test_each_training_takes_a_gpu_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_slots, "_taken", [])
    taken = []
    for _ in range(2):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
        taken.append(gpu_slots.take_gpu(tmp_path))
    assert taken == ["2", "5"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"


def test_a_machine_without_gpus_has_none_to_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_slots.take_gpu(tmp_path) is None
