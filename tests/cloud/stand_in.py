"""Loopback stand-ins for a cloud's REST services: TLS, a memory of what they were sent, and faults on demand.

A service is a FastAPI application that checks what it is sent and keeps state; `serve` puts it behind TLS on a free port
of this machine. Clients trust its certificate through `Authority.environment`.
"""

import datetime
import ipaddress
import re
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fastapi import FastAPI


class Sent(NamedTuple):
    """One request as it arrived."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Fault:
    """What a matching request gets instead of its answer; `status` 0 drops the connection without one."""

    method: str
    path: str
    status: int
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1

    def meets(self, method: str, path: str) -> bool:
        """Whether this request is to fail."""
        return self.times > 0 and method == self.method and re.search(self.path, path) is not None


class Wire:
    """ASGI layer between TLS and a service: records every request, and answers with the faults that a test asks for.

    Attributes:
        sent: the requests so far, in order.
        faults: those to come; `fail` adds one.
    """

    def __init__(self, app: FastAPI):
        self.app, self.sent, self.faults = app, [], []  # type: FastAPI, list[Sent], list[Fault]
        self.url = ""

    def fail(self, method: str, path: str, status: int, **how: Any) -> Fault:
        """Let the next request with this method, whose path matches the regular expression, fail."""
        self.faults.append(fault := Fault(method, path, status, **how))
        return fault

    def seen(self, method: str, path: str) -> list[Sent]:
        """The requests so far with this method and a path that matches the regular expression."""
        return [sent for sent in self.sent if sent.method == method and re.search(path, sent.path)]

    async def __call__(self, scope, receive, send):
        """Answer one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {key.decode().lower(): value.decode() for key, value in scope["headers"]}
        self.sent.append(Sent(scope["method"], scope["path"], scope["query_string"].decode(), headers, body))
        fault = next((f for f in self.faults if f.meets(scope["method"], scope["path"])), None)
        if fault is None:
            replayed = False

            async def again():
                # Once the body was given, what is left to receive is the end of the connection.
                nonlocal replayed
                if replayed:
                    return await receive()
                replayed = True
                return {"type": "http.request", "body": body, "more_body": False}

            return await self.app(scope, again, send)
        fault.times -= 1
        if fault.status == 0:
            return receive.__self__.transport.abort()  # uvicorn's request cycle
        headers = {"content-type": "application/json"} | fault.headers
        raw = [(key.lower().encode(), value.encode()) for key, value in headers.items()]
        await send({"type": "http.response.start", "status": fault.status, "headers": raw})
        return await send({"type": "http.response.body", "body": fault.body})


class Authority(NamedTuple):
    """A certificate that clients trust, and its key, as PEM files."""

    certificate: Path
    key: Path

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make requests, aiohttp, urllib3 and OpenSSL trust it."""
        return {name: str(self.certificate) for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")}


# Hosts that clients make up from an account's name, a region or a workspace; `tests.cloud.proxy` leads them here.
CLOUD_HOSTS = (
    "login.microsoftonline.com",
    "management.azure.com",
    "ml.azure.com",
    "*.azureml.ms",
    "*.api.azureml.ms",
    "*.eastus.inference.ml.azure.com",
    "*.azuredatabricks.net",
    "*.7.azuredatabricks.net",
    "*.blob.core.windows.net",
    "*.dfs.core.windows.net",
    "*.file.core.windows.net",
    "*.azurecr.io",
)


def make_authority(folder: Path) -> Authority:
    """Write a self-signed certificate into `folder`, valid for a day for localhost and `CLOUD_HOSTS`."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "carmodel tests")])
    dates = now - datetime.timedelta(hours=1), now + datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), *dates)
    hosts = [x509.DNSName(host) for host in ("localhost", *CLOUD_HOSTS)]
    hosts.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    certificate = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False).sign(key, hashes.SHA256())
    authority = Authority(folder / "certificate.pem", folder / "key.pem")
    authority.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    authority.key.write_bytes(key.private_bytes(*pem))
    return authority


@contextmanager
def serve(app: FastAPI, authority: Authority) -> Iterator[Wire]:
    """Serve an application at ``https://localhost:PORT`` (`Wire.url`) from a thread, until the context ends."""
    wire = Wire(app)
    config = uvicorn.Config(
        wire,
        host="127.0.0.1",
        port=0,
        log_level="warning",
        lifespan="off",
        http="h11",
        ssl_certfile=str(authority.certificate),
        ssl_keyfile=str(authority.key),
        ssl_version=ssl.PROTOCOL_TLS_SERVER,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the stand-in did not start")
        time.sleep(0.01)
    wire.url = f"https://localhost:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield wire
    finally:
        # Not waiting for clients that keep their connection open.
        server.should_exit = server.force_exit = True
        thread.join(10)
