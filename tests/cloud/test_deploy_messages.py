"""The commands that a deployment prints: to see its status, resume, undo or delete it."""

from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from carmodel.deploy.messages import client_errors_explained, command, undo_line
from carmodel.deploy.status import DeployError
from carmodel.parameters import Deploy

BASE = "mlflow run . -e deploy --env-manager local"


def settings(target: str, **changed: object) -> Deploy:
    return Deploy.model_validate({"target": target, "name": "cars", "model_uri": "models:/cars/1"} | changed)


def test_a_client_s_error_becomes_one_with_the_next_commands() -> None:
    with pytest.raises(DeployError) as failed, client_errors_explained(settings("online"), "deploying cars"):
        raise MlflowException("GET https://me:word@host failed")
    message = str(failed.value)
    assert message.startswith("deploying cars: GET https://…@host failed\n")
    assert f"{BASE} -P target=online -P name=cars -P action=status" in message
    assert f"{BASE} -P target=online -P name=cars -P action=delete" in message


def test_a_command_repeats_what_differs_from_the_defaults(tmp_path: Path) -> None:
    start = f"{BASE} -P target=local -P name=cars"
    assert command(settings("local"), "status") == f"{start} -P action=status"
    assert command(settings("local"), "deploy") == f"{start} -P action=deploy -P model_uri=models:/cars/1"
    assert command(settings("local", model_uri=""), "deploy").endswith("-P model_uri=models:/NAME/VERSION")
    elsewhere = settings("local", folder=str(tmp_path / "my cars"), port=6000)
    assert command(elsewhere, "delete") == f"{start} -P action=delete -P folder='{tmp_path}/my cars'"
    assert command(elsewhere, "deploy", "models:/cars/2").endswith("-P model_uri=models:/cars/2 -P port=6000")


def test_a_command_names_the_settings_file_that_the_user_chose(tmp_path: Path) -> None:
    assert command(settings("aci"), "deploy").endswith("-P model_uri=models:/cars/1")
    file = tmp_path / "aci.yml"
    file.touch()
    assert command(settings("aci", settings_file=str(file)), "deploy").endswith(f"-P settings_file={file}")
    assert "settings_file" not in command(settings("aci", settings_file=str(file)), "delete")


def test_the_previous_version_is_restored_at_its_port() -> None:
    line = undo_line(settings("local", port=6000), "models:/cars/0", 5000)
    assert line.startswith("  to restore the previous version:  ")
    assert line.endswith("-P model_uri=models:/cars/0 -P port=5000\n")
    assert undo_line(settings("local"), "models:/cars/1") == undo_line(settings("local"), "") == ""
