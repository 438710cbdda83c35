"""README.md and docs/ tell the truth: every file, command and parameter that they name exists."""

import re
from pathlib import Path

import pytest
import yaml

from carmodel.parameters import ENTRY_POINTS
from carmodel.recipe import load_recipe, resolve

README = Path("README.md")
PAGES = [README, Path("DEVELOPING.md"), Path("pretrained/README.md"), *sorted(Path("docs").glob("*.md"))]
FOLDERS = "backends|benchmarks|carmodel|configs|docs|examples|pretrained|steps|tests"
EVERYWHERE = pytest.mark.parametrize("page", PAGES, ids=str)


def found(pattern: str, page: Path) -> set[str]:
    return set(re.findall(pattern, page.read_text()))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = found(r"(?m)^#+ (.+)$", page)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 160
    assert [line for line in lines if len(line) > 120] == []


@EVERYWHERE
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in found(r"\]\((?!https?:)([^)\s]+)\)", page):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@EVERYWHERE
def test_every_path_of_the_project_exists(page: Path) -> None:
    for path in found(rf"(?<![\w/:.@-])((?:{FOLDERS})/[\w./-]*\w)", page):
        assert Path(path).exists(), path


@EVERYWHERE
def test_every_module_exists(page: Path) -> None:
    for module in found(r"(?:python -m|from|import) ((?:carmodel|steps|benchmarks|tests)[\w.]*)", page):
        path = Path(*module.split("."))
        assert path.is_dir() or path.with_suffix(".py").is_file(), module


@EVERYWHERE
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"(?m)^([a-z-]+):", Path("Makefile").read_text()))
    assert found(r"(?m)(?:^|`|^\w+=\S+ )make ([a-z-]+)", page) <= targets


@EVERYWHERE
def test_every_parameter_exists_and_takes_the_value(page: Path) -> None:
    for text in found(r"-P set=(\S+)", page):
        resolve("", text, {})
    for recipe in found(r"-P config=([\w./]+)", page):
        load_recipe(recipe)
    names = {name for settings in ENTRY_POINTS.values() for name in settings.model_fields}
    assert found(r"-P (\w+)=", page) <= names | {"config", "set", "fresh", "placement"}


def test_every_recipe_is_described() -> None:
    described = found(r"(?m)^\| `(\w+)` \|", Path("docs/training.md"))
    assert {path.stem for path in Path("configs").glob("*.yaml")} <= described


def test_the_model_that_is_deployed_is_the_demo_s() -> None:
    recipe = yaml.safe_load(Path("configs/demo.yaml").read_text())
    assert f"models:/{recipe['package_pyfunc']['registered_model_name']}@candidate" in README.read_text()
