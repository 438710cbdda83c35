"""README.md tells the truth: its table of parameters is the settings', its files and recipes are there.

`python -m tests.test_readme` prints the table to paste.
"""

import re
from pathlib import Path

import yaml

from carmodel.parameters import ENTRY_POINTS
from carmodel.recipe import resolve

README = Path("README.md").read_text() if Path("README.md").is_file() else ""


def parameter_table() -> str:
    lines = ["| step | parameter | default | |", "| --- | --- | --- | --- |"]
    for step, settings in ENTRY_POINTS.items():
        for i, (name, field) in enumerate(settings.model_fields.items()):
            shown = f"`{field.default}`" if field.default != "" else ""
            lines.append(f"| {step if i == 0 else ''} | `{name}` | {shown} | {field.description} |")
    return "\n".join(lines)


def test_the_parameters_are_those_of_the_settings() -> None:
    assert parameter_table() in README


def test_every_recipe_that_is_named_exists_and_every_recipe_is_named() -> None:
    named = set(re.findall(r"configs/(\w+\.yaml)", README)) | set(
        re.findall(r"^ {6}(\w+\.yaml) ", README, re.MULTILINE)
    )
    assert named == {path.name for path in Path("configs").glob("*.yaml")}


def test_every_source_file_of_the_tree_exists() -> None:
    tree = README.partition("    MLproject  ")[2].partition("\n## ")[0]
    for name in re.findall(r"(\w+\.py)\b", tree):
        assert list(Path("carmodel").rglob(name)) + list(Path("steps").rglob(name)), name


def test_every_parameter_set_in_an_example_exists() -> None:
    for text in re.findall(r"-P set=(\S+)", README):
        resolve("", text, {})
    names = {name for settings in ENTRY_POINTS.values() for name in settings.model_fields}
    assert set(re.findall(r"-P (\w+)=", README)) <= names | {"config", "set", "fresh", "placement"}


def test_the_registered_name_that_is_served_is_the_demo_s() -> None:
    recipe = yaml.safe_load(Path("configs/demo.yaml").read_text())
    assert f"models:/{recipe['package_pyfunc']['registered_model_name']}@candidate" in README


if __name__ == "__main__":
    print(parameter_table())
