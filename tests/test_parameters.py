"""The parameters and their page in the documentation."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from carmodel.parameter_table import parameter_page
from carmodel.parameters import ENTRY_POINTS, LINK_OF, STEPS, Preprocess
from steps.main import parse_main


def test_the_page_of_parameters_is_current() -> None:
    command = "python -m carmodel.parameter_table > docs/parameters.md"
    assert Path("docs/parameters.md").read_text() == parameter_page(), command


def test_one_class_is_refused() -> None:
    with pytest.raises(ValidationError, match="give at least 2 classes, or 0 for all"):
        Preprocess(classes=1)
    assert Preprocess(classes=2).classes == 2


def test_every_parameter_has_a_description() -> None:
    for step, settings in ENTRY_POINTS.items():
        for name, field in settings.model_fields.items():
            assert field.description, f"{step}.{name}"


def test_every_input_of_a_step_is_the_output_of_another() -> None:
    assert set(LINK_OF.values()) <= {name for step in STEPS.values() for name in step.model_fields}


def test_the_help_of_main_gives_each_meaning_of_a_shared_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for step in ("preprocess", "augment"):
        field = ENTRY_POINTS[step].model_fields["crop"]
        assert f"[{step}] {field.description} (" in text
