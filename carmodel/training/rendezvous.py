"""The private interfaces of Horovod's launcher that this project uses.

`horovod.run` starts ranks with its own ssh and its own output, and its ranks survive the launcher. This module takes
only the assignment of ranks to hosts and the server through which ranks find each other. Each function has a test in
``tests/test_rendezvous.py``, so that an upgrade of Horovod shows what it breaks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """The place of a rank.

    Attributes:
        rank: its number, from 0.
        host: name of its machine.
        environment: the variables by which Horovod tells the rank its place.
    """

    rank: int
    host: str
    environment: dict[str, str]


@contextmanager
def rendezvous(hosts: Sequence[tuple[str, int]]) -> Iterator[tuple[list[Slot], int]]:
    """Assign ranks to hosts, and run the server through which the ranks find each other within the block.

    Args:
        hosts: name and number of ranks of each machine.

    Yields:
        the slots of all ranks, and the port of the server.
    """
    from horovod.runner.common.util.hosts import HostInfo, get_host_assignments
    from horovod.runner.gloo_run import create_slot_env_vars
    from horovod.runner.http.http_server import RendezvousServer

    assigned = get_host_assignments([HostInfo(*host) for host in hosts], sum(ranks for _, ranks in hosts))
    server = RendezvousServer()
    port = server.start()
    try:
        server.init(assigned)
        yield [Slot(slot.rank, slot.hostname, create_slot_env_vars(slot)) for slot in assigned], port
    finally:
        server.stop()
