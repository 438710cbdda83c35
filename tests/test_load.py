"""Many clients at once, while the server is killed and restarted: `make load`."""

import pytest

from benchmarks.load import load_through_restart
from tests.tiny import Endpoint, free_port


@pytest.mark.slow
def test_every_row_of_every_client_is_answered_through_a_restart(endpoint: Endpoint) -> None:
    outcome = load_through_restart(str(endpoint.model), free_port(), clients=16, seconds=9.0)
    assert outcome.faults == []
    # Some requests waited for the new server, and many did not.
    assert outcome.latencies.max() > 1.0
    assert (outcome.latencies < outcome.latencies.max() / 2).sum() > 16
