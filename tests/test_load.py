"""The endpoint under load: many clients, good and bad rows mixed, and a server that is killed meanwhile."""

import base64
from typing import Any

import pytest

from benchmarks.load import load, load_through_restart, mixed_rows
from carmodel.serving.rows import BOX_COLUMNS, box_of
from tests.tiny import NAMES, Endpoint, free_port

pytestmark = pytest.mark.slow

GOOD = 16
"""Rows of `mixed_rows` that get an answer: twelve whole photos, four with a box. They come first."""


def test_sixteen_clients_get_every_row_answered_right(endpoint: Endpoint) -> None:
    rows = mixed_rows()
    expected = {
        id(row): endpoint.expected(base64.b64decode(row["image"]), box_of([row.get(corner) for corner in BOX_COLUMNS]))
        for row in rows[:GOOD]
    }

    def right(row: dict[str, Any], answer: dict[str, Any]) -> bool:
        if (probabilities := expected.get(id(row))) is None:
            return answer["error"] is not None and answer["label"] is None
        best = int(probabilities.argmax())
        near = answer["probability"] == pytest.approx(float(probabilities[best]), abs=1e-4)
        return near and (answer["label"], answer["class_id"], answer["error"]) == (NAMES[best], best, None)

    outcome = load(endpoint.address, rows, right, clients=16, seconds=6.0)
    assert outcome.faults == []
    assert outcome.rows > 16 * 8


def test_clients_come_through_a_server_that_is_killed_and_started_again(endpoint: Endpoint) -> None:
    outcome = load_through_restart(str(endpoint.model), free_port(), clients=16, seconds=9.0)
    assert outcome.faults == []
    # Some requests waited for the new server, and many did not.
    assert outcome.latencies.max() > 1.0
    assert (outcome.latencies < outcome.latencies.max() / 2).sum() > 16
