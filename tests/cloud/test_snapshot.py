"""What is sent to other machines: the sources, and the pretrained weights only if the entry point uses them."""

from pathlib import Path

import pytest

from carmodel.cloud.snapshot import copy_project, uses_pretrained
from carmodel.recipe import SettingsError


@pytest.mark.parametrize(
    ("entry_point", "parameters", "used"),
    [
        ("train", {}, False),
        ("train", {"config": "configs/residual.yaml", "seed": "3"}, False),
        ("train", {"config": "laptop"}, True),
        ("main", {}, True),  # its default recipe is demo
        ("main", {"config": "residual"}, False),
        ("main", {"config": "configs/overnight.yaml"}, True),
        ("train", {"init": "pretrained"}, True),
        ("train", {"set": "train.backbone=pretrained/efficientnet_lite2.keras"}, True),
        ("train", {"backbone": "./pretrained/efficientnet_lite2.keras"}, True),
        ("train", {"set": "package_pyfunc.registered_model_name=pretrained_cars"}, False),
        ("package_pyfunc", {"model_uri": "models:/carmodel-pretrained@champion"}, False),
    ],
)
def test_parameters_recipe_and_set_tell_whether_the_weights_are_used(
    entry_point: str, parameters: dict[str, str], used: bool
) -> None:
    assert uses_pretrained(entry_point, parameters) == used


def test_an_unknown_recipe_is_refused_before_anything_is_copied(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such recipe"):
        copy_project(tmp_path / "project", "main", {"config": "latpop"})
    assert not list(tmp_path.iterdir())


def test_the_copy_has_the_sources_and_the_weights_that_are_used(tmp_path: Path) -> None:
    without = copy_project(tmp_path / "without", "main", {"config": "residual"})
    with_weights = copy_project(tmp_path / "with", "main", {"config": "laptop"})
    assert {"MLproject", "carmodel", "steps", "configs", "backends"} <= {path.name for path in without.iterdir()}
    assert not (without / "pretrained").exists() and not (without / ".git").exists()
    assert (with_weights / "pretrained" / "efficientnet_lite2.keras").is_file()
