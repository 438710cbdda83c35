"""The proxy: a cloud's host is answered by its stand-in, over TLS that the client checks, and no other host by any."""

import pytest
import requests
from fastapi import FastAPI, Request

from tests.cloud.proxy import lead
from tests.cloud.stand_in import serve

app = FastAPI()


@app.get("/who")
async def who(request: Request) -> dict[str, str]:
    return {"host": request.headers["host"]}


def test_a_host_is_led_to_its_stand_in_and_any_other_is_refused_and_remembered(authority):
    with serve(app, authority) as wire, lead({r".*\.azuredatabricks\.net": wire}) as proxy:
        there = {"proxies": {"https": proxy.url}, "timeout": 5}
        answer = requests.get("https://adb-1.azuredatabricks.net/who", verify=str(authority.root), **there)
        with pytest.raises(requests.exceptions.SSLError):
            requests.get("https://adb-1.azuredatabricks.net/who", **there)
        with pytest.raises(requests.exceptions.ProxyError):
            requests.get("https://telemetry.example/who", verify=str(authority.root), **there)
    assert answer.json() == {"host": "adb-1.azuredatabricks.net"}
    assert set(proxy.refused) == {"telemetry.example"}


def test_the_environment_leads_a_client_that_knows_nothing_of_it(authority, monkeypatch):
    with serve(app, authority) as wire, lead({"management.azure.com": wire}) as proxy:
        for name, value in (proxy.environment | authority.environment).items():
            monkeypatch.setenv(name, value)
        assert requests.get("https://management.azure.com/who", timeout=5).json()["host"] == "management.azure.com"
        assert requests.get(f"{wire.url}/who", timeout=5).json()["host"].startswith("localhost:")
