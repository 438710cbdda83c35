"""docs/openapi.json says what the endpoint does: it is the classifier's signature, and a live server keeps to it."""

import json
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core import NOT_SET
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from urllib3 import PoolManager

from tests.tiny import Endpoint

DOCUMENT = json.loads(Path("docs/openapi.json").read_text())
schema = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.mark.slow  # packaging imports TensorFlow
def test_the_document_is_made_from_the_signature() -> None:
    from carmodel.serving.openapi import describe

    assert describe() == DOCUMENT, "write it again: make schema"


def is_text(body: object) -> bool:
    """Whether there is a body, and it is text: MLflow's server fails on others, before the classifier hears of them."""
    try:
        return body is not NOT_SET and (not isinstance(body, bytes) or bool(body.decode()))
    except UnicodeDecodeError:
        return False


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_a_live_server_answers_as_described(endpoint: Endpoint, case: schemathesis.Case) -> None:
    checks = [status_code_conformance, content_type_conformance, response_schema_conformance]
    if case.method == "GET" or is_text(case.body):
        checks.append(not_a_server_error)
    case.call_and_validate(base_url=endpoint.address, checks=checks)


@pytest.mark.slow
def test_the_examples_get_an_answer_in_each_of_the_formats(endpoint: Endpoint) -> None:
    content = DOCUMENT["paths"]["/invocations"]["post"]["requestBody"]["content"]["application/json"]
    assert {*content["examples"]} == {"records", "split", "inputs"}
    for name, example in content["examples"].items():
        with PoolManager() as http:
            response = http.request("POST", f"{endpoint.address}/invocations", json=example["value"])
        assert [row["error"] for row in response.json()["predictions"]] == [None, None], name
