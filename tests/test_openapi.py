"""docs/openapi.json describes the columns of the classifier's signature."""

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # packaging imports TensorFlow

SCHEMAS = json.loads(Path("docs/openapi.json").read_text())["components"]["schemas"]
TYPES = {"string": "string", "long": "integer", "double": "number", "boolean": "boolean"}


@pytest.fixture(scope="module")
def signature() -> Any:
    from carmodel.serving.packaging import signature

    return signature()


def test_a_row_has_the_columns_of_the_signature(signature: Any) -> None:
    assert list(SCHEMAS["Row"]["properties"]) == signature.inputs.input_names()
    assert SCHEMAS["Row"]["required"] == [column.name for column in signature.inputs.inputs if column.required]


def test_an_answer_has_the_columns_of_the_signature(signature: Any) -> None:
    described = SCHEMAS["Answer"]["properties"]
    assert list(described) == [column.name for column in signature.outputs.inputs]
    for column in signature.outputs.inputs:
        if not column.required:
            assert described[column.name]["type"] == [TYPES[column.type.name], "null"]


def test_the_params_are_those_of_the_signature(signature: Any) -> None:
    (top_k,) = signature.params.params
    assert SCHEMAS["Params"]["properties"][top_k.name]["default"] == top_k.default
