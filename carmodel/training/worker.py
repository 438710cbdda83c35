"""The process of one rank: ``python -m carmodel.training.worker``, as `carmodel.training.launch` starts it, also by ssh.

The first line of the standard input says what to run, as JSON with environment, function ("module:name") and arguments:
so nothing secret shows in a list of processes, and no file has to be copied. The rest of the input is a lifeline: it
ends when the launcher ends, however that dies, and then so does the rank.
"""

import json
import os
import pkgutil
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

# Seconds for which a rank that lost another one waits with its own end, so that the other's death is seen first.
PATIENCE = 20


def main() -> None:
    """Run what the input asks for."""
    task = json.loads(sys.stdin.buffer.readline())
    os.environ.update(task["environment"])
    for variable in ("HOROVOD_GLOO_IFACE", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, interface_towards(os.environ["HOROVOD_GLOO_RENDEZVOUS_ADDR"]))
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    call(task["function"], task["arguments"])


def call(function: str, arguments: Sequence[str]) -> None:
    """Call ``module:name``; an exception ends the process at once, without Horovod's farewell to the other ranks."""
    try:
        pkgutil.resolve_name(function)(*arguments)
    except Exception as error:
        if _lost_another(error):
            print("another rank is gone", flush=True)
            time.sleep(PATIENCE)
        else:
            traceback.print_exc()
        _end()


def address_towards(host: str) -> str:
    """This machine's own IPv4 address on the way to `host`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Nothing is sent: connecting a datagram socket only chooses the route.
        probe.connect((host, 9))
        return probe.getsockname()[0]


def interface_towards(host: str) -> str:
    """Name of the network interface that holds `address_towards`."""
    import psutil

    address = address_towards(host)
    return next(name for name, held in psutil.net_if_addrs().items() if any(entry.address == address for entry in held))


def _end_with_launcher() -> None:
    # Not through sys.stdin, whose lock a thread must not hold when Python ends.
    os.read(sys.stdin.fileno(), 1)
    _end()


def _end() -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _lost_another(error: Exception) -> bool:
    """Whether Horovod says that another rank is gone: its own error, or TensorFlow's around it."""
    return any(sign in str(error) for sign in ("Horovod has been shut down", "gloo/transport", "HorovodInternalError"))


if __name__ == "__main__":
    main()
