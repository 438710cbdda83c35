"""How many cores a process may use."""

import os
from pathlib import Path

import pytest

from carmodel.data.threads import cores


@pytest.mark.parametrize(
    ("limit", "expected"), [("max 100000", 64), ("200000 100000", 2), ("50000 100000", 1), ("150000 100000", 2)]
)
def test_the_cpu_limit_of_a_container_counts(
    limit: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    (quota := tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert cores(quota) == expected
    assert cores(tmp_path / "missing") == 64
