"""README.md and docs/ tell the truth: every file, command and parameter that they name exists."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from carmodel.parameters import ENTRY_POINTS
from steps.command import parse_step
from steps.main import parse_main
from steps.sweep import parse_sweep

README = Path("README.md")
PAGES = [README, Path("DEVELOPING.md"), Path("pretrained/README.md"), *sorted(Path("docs").glob("*.md"))]
FOLDERS = "backends|benchmarks|carmodel|configs|docs|examples|notebooks|pretrained|steps|tests"
EVERYWHERE = pytest.mark.parametrize("page", PAGES, ids=str)


def found(pattern: str, page: Path) -> set[str]:
    return set(re.findall(pattern, page.read_text()))


def commands_in(page: Path, start: str) -> list[list[str]]:
    """Return the words of each command in the shell blocks of a page that begins with `start`."""
    blocks = re.findall(r"(?ms)^```bash\n(.*?)^```", page.read_text())
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(start)]


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
def test_every_command_of_mlflow_run_is_accepted(page: Path, tmp_path: Path) -> None:
    for command in commands_in(page, "mlflow run"):
        options = dict(pairwise(command))
        arguments = [f"--{command[i + 1]}" for i, option in enumerate(command) if option == "-P"]
        arguments = [argument.replace("/mnt/shared", str(tmp_path)) for argument in arguments]
        step = options.get("-e", "main")
        if step == "main":
            parse_main(arguments)
        elif step == "sweep":
            parse_sweep(arguments)
        else:
            parse_step(step, ENTRY_POINTS[step], arguments)


def test_every_recipe_is_described() -> None:
    described = found(r"(?m)^\| `(\w+)` \|", Path("docs/training.md"))
    assert {path.stem for path in Path("configs").glob("*.yaml")} <= described


def test_the_model_that_is_deployed_is_the_demo_s() -> None:
    recipe = yaml.safe_load(Path("configs/demo.yaml").read_text())
    assert f"models:/{recipe['package_pyfunc']['registered_model_name']}@candidate" in README.read_text()
