"""The parameters as a page of the documentation: ``python -m carmodel.parameter_table > docs/parameters.md``."""

from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from carmodel.parameters import ENTRY_POINTS

TYPES = {bool: "true or false", int: "integer", float: "number", dict: "mapping", tuple: "list"}
INTRODUCTION = """\
# Parameters

Set a parameter with `-P`. The parameter `config` takes values from a recipe, here `configs/laptop.yaml`:

```bash
mlflow run . --env-manager local -P config=laptop -P epochs=3
```

A name that several steps share, such as `seed`, sets all of them. `set` sets a parameter of one step.
Use it for a name that means something else in another step, such as `crop` or `flip`:

```bash
mlflow run . --env-manager local -P set=train.seed=1,augment.seed=2
```

Without `config`, `main` uses the recipe `demo`, and `sweep` uses `sweep_demo`. The other entry points use the defaults
below. `-P` takes precedence over `set`, and `set` over the recipe.

To run one step, add its name: `-e train`. `main` sets `store_uri`, `augmented_uri`, `model_uri` and `evaluation_uri` for
each step. It has two more parameters:

| parameter | values | default | meaning |
| --- | --- | --- | --- |
| `fresh` | true or false | `false` | run every step and reuse no earlier run |
| `placement` | string |  | file that says which steps run on another machine, such as `backends/placement.yaml` |

This page is generated from `carmodel/parameters/`: `python -m carmodel.parameter_table > docs/parameters.md`.
"""


def parameter_page() -> str:
    """Return the page in Markdown: a table of the parameters of each entry point."""
    sections = [INTRODUCTION]
    for name, parameters in ENTRY_POINTS.items():
        rows = [_row(parameter, field) for parameter, field in parameters.model_fields.items()]
        table = ["| parameter | values | default | meaning |", "| --- | --- | --- | --- |", *rows]
        sections.append(f"## {name}\n\n{parameters.__doc__}\n\n" + "\n".join(table) + "\n")
    return "\n".join(sections)


def allowed_values(field: FieldInfo) -> str:
    """Return the bounds or the choices of a parameter as text. Empty if all values of its type are valid."""
    if get_origin(field.annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(field.annotation)))}"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [(name, getattr(item, name, None)) for item in field.metadata for name in signs]
    return ", ".join(f"{signs[name]} {limit}" for name, limit in limits if limit is not None)


def _row(name: str, field: FieldInfo) -> str:
    of_type = next(
        (text for kind, text in TYPES.items() if kind in (field.annotation, get_origin(field.annotation))), ""
    )
    values = ", ".join(filter(None, (of_type, allowed_values(field)))) or "string"
    default = "" if field.default in ({}, ()) else str(field.default)
    default = default.lower() if field.annotation is bool else default
    return f"| `{name}` | {values} | {default and f'`{default}`'} | {field.description} |"


if __name__ == "__main__":
    print(parameter_page(), end="")
