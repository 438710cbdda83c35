"""The private interfaces of Horovod's launcher still do what the project needs."""

import socket
from importlib.util import find_spec

import pytest

from carmodel.training.rendezvous import rendezvous

pytestmark = pytest.mark.skipif(find_spec("horovod") is None, reason="Horovod is not installed: make horovod")


def test_ranks_fill_the_hosts_in_order() -> None:
    with rendezvous([("first", 2), ("second", 1)]) as (slots, _):
        assert [(slot.rank, slot.host) for slot in slots] == [(0, "first"), (1, "first"), (2, "second")]


def test_each_rank_is_told_its_place() -> None:
    with rendezvous([("first", 2), ("second", 1)]) as (slots, _):
        names = ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE", "HOROVOD_HOSTNAME")
        told = [tuple(slot.environment[name] for name in names) for slot in slots]
    assert told == [("0", "3", "0", "2", "first"), ("1", "3", "1", "2", "first"), ("2", "3", "0", "1", "second")]


def test_the_server_answers_within_the_block() -> None:
    with rendezvous([("localhost", 1)]) as (_, port):
        socket.create_connection(("localhost", port), timeout=5).close()
