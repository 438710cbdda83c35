"""The stand-in itself: TLS that a client checks, a memory, and faults."""

import pytest
import requests
from fastapi import FastAPI, Request

from tests.cloud.stand_in import serve

app = FastAPI()


@app.post("/echo")
async def echo(request: Request) -> dict[str, str]:
    return {"got": (await request.body()).decode()}


def test_it_answers_over_tls_that_the_client_checks_and_remembers_the_request(authority):
    with serve(app, authority) as wire:
        answer = requests.post(f"{wire.url}/echo?a=1", "hello", verify=str(authority.root), timeout=5)
        with pytest.raises(requests.exceptions.SSLError):
            requests.post(f"{wire.url}/echo", timeout=5)
    assert answer.json() == {"got": "hello"}
    (sent,) = wire.seen("POST", "^/echo$")
    assert (sent.query, sent.body) == ("a=1", b"hello")


def test_it_fails_when_told_to_and_then_recovers(authority):
    root = str(authority.root)
    with serve(app, authority) as wire, requests.Session() as session:
        wire.fail("POST", "/echo", 429, headers={"Retry-After": "3"}, body=b'{"error": "slow down"}', times=2)
        wire.fail("POST", "/echo", 0)
        for _ in range(2):
            answer = session.post(f"{wire.url}/echo", verify=root, timeout=5)
            assert (answer.status_code, answer.headers["Retry-After"]) == (429, "3")
        with pytest.raises(requests.exceptions.ConnectionError):
            session.post(f"{wire.url}/echo", verify=root, timeout=5)
        assert session.post(f"{wire.url}/echo", "x", verify=root, timeout=5).json() == {"got": "x"}
