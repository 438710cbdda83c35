"""Run one rank: ``python -m carmodel.training.worker``, which `carmodel.training.launch` starts.

The first line of the standard input is JSON with the environment, the function ("module:name") and its arguments. Secrets
therefore do not appear in the list of processes, and no file is copied. The launcher keeps the input open. When the
launcher ends or is killed, the input is closed, and the rank stops.
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

# Seconds that a rank waits before it ends because another rank has died. The launcher thus sees the rank that died first.
PATIENCE = 20


def main() -> None:
    """Call the function that the input names."""
    task = json.loads(sys.stdin.buffer.readline())
    os.environ.update(task["environment"])
    for variable in ("HOROVOD_GLOO_IFACE", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, interface_towards(os.environ["HOROVOD_GLOO_RENDEZVOUS_ADDR"]))
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    call(task["function"], task["arguments"])


def call(function: str, arguments: Sequence[str]) -> None:
    """Call ``module:name``. An exception ends the process at once, before Horovod can wait for the other ranks."""
    try:
        pkgutil.resolve_name(function)(*arguments)
    except Exception as error:
        if _lost_another(error):
            print("another rank has died", flush=True)
            time.sleep(PATIENCE)
        else:
            traceback.print_exc()
        _end()


def address_towards(host: str) -> str:
    """Return the IPv4 address of this machine that `host` can reach."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Connecting a datagram socket chooses the route and sends nothing.
        probe.connect((host, 9))
        return probe.getsockname()[0]


def interface_towards(host: str) -> str:
    """Return the name of this machine's network interface that `host` can reach."""
    import psutil

    address = address_towards(host)
    return next(name for name, own in psutil.net_if_addrs().items() if any(entry.address == address for entry in own))


def _end_with_launcher() -> None:
    # Reading sys.stdin would hold its lock, which a thread must not do when Python ends.
    os.read(sys.stdin.fileno(), 1)
    _end()


def _end() -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _lost_another(error: Exception) -> bool:
    """Return whether another rank has died. TensorFlow's error contains the text of Horovod's error."""
    return any(sign in str(error) for sign in ("Horovod has been shut down", "gloo/transport", "HorovodInternalError"))


if __name__ == "__main__":
    main()
