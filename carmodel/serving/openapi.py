"""The endpoint in the words of OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.1), made from the classifier's signature.

`python -m carmodel.serving.openapi > docs/openapi.json` writes it again; a test compares the two, and another one sends what
it describes to a live server.
"""

import json
from importlib.metadata import version
from typing import Any

from mlflow.types.schema import Array, ColSpec, DataType, Object

from carmodel.serving.packaging import input_example, signature
from carmodel.serving.rows import BOX_COLUMNS

JSON_TYPES = {DataType.string: "string", DataType.long: "integer", DataType.double: "number"}

PHOTO = {
    "description": "A JPEG, PNG, WebP or BMP file as Base64, with or without a data: prefix. Anything else, also a URL, "
    "is answered with the row's error.",
    "type": ["string", "null"],
    "contentEncoding": "base64",
}
CORNER = {
    "description": "A side of the car's box in pixels of the photo as displayed, 0-based, x2 and y2 exclusive: all four, "
    "or none. A box that is wrong is answered with the row's error.",
    "type": ["integer", "null"],
}
ANSWERS = {
    "label": "The likeliest class; null where the row has an error.",
    "class_id": "Its number, 0-based.",
    "probability": "Its probability.",
    "top_k": "The likeliest classes, most probable first; empty where the row has an error.",
    "error": "Null, or what is wrong with the row. The other rows are answered all the same.",
}


def describe() -> dict[str, Any]:
    """Return the document: MLflow's four addresses, with the classifier's rows in and out."""
    schemas = {
        "Row": _row(),
        "Params": _params(),
        "DataframeRecords": _request("dataframe_records", {"type": "array", "items": _ref("Row")}),
        "DataframeSplit": _request("dataframe_split", _split()),
        "Inputs": _request("inputs", {"anyOf": [{"type": "array", "items": _ref("Row")}, _columns()]}),
        "Answer": _answer(),
        "Answers": _object({"predictions": {"type": "array", "items": _ref("Answer")}}, "predictions"),
        "Refusal": _object({"error_code": {"type": "string"}, "message": {"type": "string"}}, "error_code", "message")
        | {"additionalProperties": True},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "carmodel",
            "version": version("mlflow"),
            "description": "The car classifier behind MLflow's scoring server; the version is MLflow's.",
        },
        "servers": [{"url": "http://localhost:5001"}],
        "paths": {
            "/invocations": {"post": _invocations()},
            "/ping": {"get": _plain("ping", "Answers once the model is loaded.")},
            "/health": {"get": _plain("health", "The same as /ping.")},
            "/version": {"get": _plain("version", "MLflow's version, as bare text.")},
        },
        "components": {"schemas": schemas},
    }


def _invocations() -> dict[str, Any]:
    formats = ("DataframeRecords", "DataframeSplit", "Inputs")
    frame, params = input_example()
    records, split = frame.to_dict("records"), frame.to_dict("split", index=False)
    examples: dict[str, dict[str, Any]] = {
        "records": {"dataframe_records": records},
        "split": {"dataframe_split": split},
        "inputs": {"inputs": records},
    }
    return {
        "operationId": "classify",
        "summary": "Name the car in each photo.",
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"oneOf": [_ref(name) for name in formats]},
                    "examples": {name: {"value": body | {"params": params}} for name, body in examples.items()},
                }
            },
        },
        "responses": {
            "200": _response("An answer for each row, in the order of the rows.", _ref("Answers")),
            "400": _response(
                "The request as a whole can't be read: no JSON, none or several of the formats, rows of unequal "
                "length, no rows, no column image, or a top_k that is no whole number. The message may repeat the request.",
                _ref("Refusal"),
            ),
            "500": {
                "description": "MLflow's server fails on a request without Content-Type, and on a body that is not UTF-8.",
                "content": {"text/plain": {}},
            },
        },
    }


def _row() -> dict[str, Any]:
    columns = signature().inputs.inputs
    properties = {column.name: CORNER if column.name in BOX_COLUMNS else PHOTO for column in columns}
    return _object(properties, *(column.name for column in columns if column.required))


def _columns() -> dict[str, Any]:
    """The rows by column, or one row by itself; columns of unequal length are refused."""
    row = _row()
    properties = {name: {"anyOf": [cell, {"type": "array", "items": cell}]} for name, cell in row["properties"].items()}
    return row | {"properties": properties}


def _split() -> dict[str, Any]:
    names = signature().inputs.input_names()
    columns = {"type": "array", "items": {"enum": names}, "contains": {"const": names[0]}, "uniqueItems": True}
    rows = {"type": "array", "items": {"type": "array", "items": {"type": ["string", "integer", "null"]}}}
    return _object({"columns": columns, "data": rows}, "columns", "data")


def _params() -> dict[str, Any]:
    return _object(
        {
            param.name: {
                "description": "How many classes to list; less than 1 counts as 1, more than there are as all.",
                "type": [_type(param.dtype)["type"], "null"],
                "default": param.default,
            }
            for param in signature().params.params
        }
    )


def _request(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return _object({name: schema, "params": _ref("Params")}, name)


def _answer() -> dict[str, Any]:
    columns = signature().outputs.inputs
    return _object(
        {column.name: _column(column) | {"description": ANSWERS[column.name]} for column in columns},
        *(column.name for column in columns),
    )


def _column(column: ColSpec) -> dict[str, Any]:
    """A column that is not required is there all the same, and null where there is nothing to say."""
    schema = _type(column.type)
    return schema if column.required else schema | {"type": [schema["type"], "null"]}


def _type(kind: object) -> dict[str, Any]:
    """The JSON Schema of one of MLflow's types."""
    match kind:
        case Array():
            return {"type": "array", "items": _type(kind.dtype)}
        case Object():
            fields = kind.properties
            return _object({field.name: _type(field.dtype) for field in fields}, *(field.name for field in fields))
        case DataType():
            return {"type": JSON_TYPES[kind]}
    raise TypeError(f"{kind} has no JSON Schema here")


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _response(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _plain(name: str, description: str) -> dict[str, Any]:
    # MLflow calls these application/json, although their bodies are no JSON: hence no schema.
    return {
        "operationId": name,
        "summary": description,
        "responses": {"200": {"description": description, "content": {"application/json": {}}}},
    }


if __name__ == "__main__":
    print(json.dumps(describe(), indent=2))
