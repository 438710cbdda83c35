"""The endpoint under load: many clients, good and bad rows mixed, and a server that is killed meanwhile."""

import base64
from typing import Any

import pytest

from benchmarks.load import load, load_through_restart, mixed_rows
from tests.tiny import NAMES, Endpoint, free_port

pytestmark = pytest.mark.slow


def test_sixteen_clients_get_every_row_answered_right(endpoint: Endpoint) -> None:
    rows = mixed_rows()
    expected = {
        row["image"]: endpoint.expected(base64.b64decode(row["image"]))
        for row in rows[:12]  # the whole photos
    }

    def right(row: dict[str, Any], answer: dict[str, Any]) -> bool:
        if set(row) != {"image"} or row["image"] not in expected:
            return (answer["error"] is None) == ("x2" in row and row["x2"] > row["x1"])
        probabilities = expected[row["image"]]
        best = int(probabilities.argmax())
        near = answer["probability"] == pytest.approx(float(probabilities[best]), abs=1e-4)
        return near and (answer["label"], answer["class_id"], answer["error"]) == (NAMES[best], best, None)

    outcome = load(endpoint.address, rows, right, clients=16, seconds=15.0)
    assert outcome.faults == []
    assert outcome.rows > 16 * 8
    print(outcome)


def test_clients_come_through_a_server_that_is_killed_and_started_again(endpoint: Endpoint) -> None:
    outcome = load_through_restart(str(endpoint.model), free_port(), clients=16, seconds=15.0)
    assert outcome.faults == []
    # Requests that waited for the new server, and others before and after.
    assert outcome.latencies.max() > 1.0
    assert (outcome.latencies < 1.0).sum() > 16
