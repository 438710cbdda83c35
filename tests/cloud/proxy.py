"""A proxy on this machine that leads the hosts of a cloud to stand-ins, for clients that choose their hosts themselves.

Clients are pointed to it by HTTPS_PROXY and ask it to CONNECT (https://www.rfc-editor.org/rfc/rfc9110#name-connect); it
opens a tunnel to the stand-in of that host, where TLS ends: the client checks the stand-in's certificate for the host that
it meant. A host without a stand-in is refused and remembered, so that a test can say that nothing else was asked for.
"""

import re
import selectors
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.cloud.stand_in import Wire


@dataclass
class Proxy:
    """A running proxy.

    Attributes:
        url: its address.
        stand_ins: regular expression of a whole host name to the stand-in that answers for it; the first match counts.
        refused: hosts that were asked for and have no stand-in.
    """

    url: str
    stand_ins: dict[str, Wire]
    refused: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make requests, urllib3, httpx and azure-core use it for all but this machine."""
        local = "localhost,127.0.0.1"
        return {"HTTPS_PROXY": self.url, "https_proxy": self.url, "NO_PROXY": local, "no_proxy": local}

    def port_of(self, host: str) -> int | None:
        """Port of the stand-in for a host."""
        for pattern, wire in self.stand_ins.items():
            if re.fullmatch(pattern, host):
                return urlsplit(wire.url).port
        self.refused.append(host)
        return None


@contextmanager
def lead(stand_ins: dict[str, Wire]) -> Iterator[Proxy]:
    """Run a proxy on a free port, from threads, until the context ends."""

    class Tunnel(socketserver.StreamRequestHandler):
        rbufsize = 0  # what follows the headers belongs to the tunnel

        def handle(self) -> None:
            method, target, _ = self.rfile.readline().decode().split()
            while self.rfile.readline().strip():
                pass
            port = proxy.port_of(target.rpartition(":")[0]) if method == "CONNECT" else None
            if port is None:
                self.wfile.write(b"HTTP/1.1 502 No stand-in\r\nContent-Length: 0\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", port)) as upstream, suppress(OSError):
                self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                relay(self.connection, upstream)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Tunnel) as server:
        proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}", stand_ins)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield proxy
        finally:
            server.shutdown()


def relay(one: socket.socket, other: socket.socket) -> None:
    """Pass bytes both ways until one side ends."""
    with selectors.DefaultSelector() as selector:
        selector.register(one, selectors.EVENT_READ, other)
        selector.register(other, selectors.EVENT_READ, one)
        while True:
            for key, _ in selector.select():
                if not (data := key.fileobj.recv(65536)):  # type: ignore[union-attr]
                    return
                key.data.sendall(data)
