"""Who may be called champion: rules tried on a real registry in SQLite."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.pyfunc import PythonModel

from carmodel.errors import InputError
from carmodel.serving import serve
from carmodel.serving.registry import newest_model, promote, register
from steps.package_pyfunc import difference
from tests.tracked import tracked_in

NAME = "cars"


class Echo(PythonModel):
    def predict(self, context: object, model_input: pd.DataFrame, params: dict | None = None) -> pd.DataFrame:
        return model_input


@pytest.fixture(scope="module")
def model_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("registry")
    with tracked_in(folder):
        with mlflow.start_run():
            info = mlflow.pyfunc.log_model(name="echo", python_model=Echo(), pip_requirements=["mlflow"])
        yield info.model_uri


@pytest.fixture
def add(model_uri: str) -> Iterator[Callable[..., str]]:
    """Registers a version with an accuracy, in a registry without other versions."""
    yield lambda accuracy, store="store A", report="": register(model_uri, NAME, accuracy, store, report)
    MlflowClient().delete_registered_model(NAME)


def alias(name: str) -> str | None:
    version = MlflowClient().get_registered_model(NAME).aliases.get(name)
    return None if version is None else str(version)


def test_the_newest_promoted_version_is_the_candidate_and_carries_its_accuracy(add: Callable[..., str]) -> None:
    assert [add(0.7), add(0.6)] == ["1", "2"]
    assert alias("candidate") is None
    for version, newest in (("1", "1"), ("2", "2"), ("1", "2")):
        promote(MlflowClient(), NAME, version, min_accuracy=0.9)
        assert (alias("candidate"), alias("champion")) == (newest, None)
    assert MlflowClient().get_model_version(NAME, "2").tags == {"test_top1": "0.6", "test_store": "store A"}


def test_the_first_version_that_is_good_enough_becomes_champion(add: Callable[..., str]) -> None:
    champion, reason = promote(MlflowClient(), NAME, add(0.49), min_accuracy=0.5)
    assert not champion
    assert "below min_accuracy 0.5" in reason
    assert alias("champion") is None
    champion, reason = promote(MlflowClient(), NAME, add(0.5), min_accuracy=0.5)
    assert champion
    assert "first champion" in reason
    assert alias("champion") == "2"


def test_champion_moves_to_an_equal_or_better_version_only(add: Callable[..., str]) -> None:
    client = MlflowClient()
    promote(client, NAME, add(0.7), 0.5)
    champion, reason = promote(client, NAME, add(0.6), 0.5)
    assert (champion, alias("champion")) == (False, "1")
    assert "below 0.7000 of the champion, version 1, which stays" in reason
    assert promote(client, NAME, add(0.7), 0.5).champion
    assert alias("champion") == "3"
    assert promote(client, NAME, add(0.9), 0.5).champion
    assert alias("champion") == "4"
    champion, reason = promote(client, NAME, "4", 0.5)
    assert champion
    assert "already" in reason


def report_of(folder: Path, right: str) -> str:
    """Write the predictions of a report, right ("1") or wrong ("0") for each photo, and return its path."""
    folder.mkdir()
    answers = ["Audi" if letter == "1" else "BMW" for letter in right]
    pd.DataFrame({"label": "Audi", "predicted": answers}).to_csv(folder / "predictions.csv", index=False)
    return str(folder)


@pytest.mark.parametrize(
    ("answers", "promoted", "said"),
    [
        (("0011111", "0011111"), True, "right on the same photos as the champion"),
        (("0011111", "0111111"), True, "1 photos gained, 0 lost"),
        (("0011111", "1101111"), False, "2 photos gained, 1 lost, p = 1 in McNemar's test"),
        (("0" * 9 + "1" * 9, "1" * 17 + "0"), True, "9 photos gained, 1 lost, p = 0.021 in McNemar's test"),
        (("1111111", "0111111"), False, "0 photos gained, 1 lost"),
    ],
    ids=["same answers", "nothing lost", "perhaps chance", "hardly chance", "worse"],
)
def test_a_champion_falls_to_a_version_that_is_better_by_more_than_chance(
    add: Callable[..., str], tmp_path: Path, answers: tuple[str, str], promoted: bool, said: str
) -> None:
    client = MlflowClient()
    for number, right in enumerate(answers, start=1):
        report = report_of(tmp_path / str(number), right)
        version = add(right.count("1") / len(right), report=report)
        assert client.get_model_version(NAME, version).tags["test_report"] == report
        champion, reason = promote(client, NAME, version, 0.5)
    assert (champion, alias("champion")) == (promoted, "2" if promoted else "1")
    assert said in reason
    assert promoted or "set_registered_model_alias('cars', 'champion', '2')" in reason


def test_without_the_champion_s_answers_an_accuracy_that_is_not_below_is_enough(
    add: Callable[..., str], tmp_path: Path
) -> None:
    client = MlflowClient()
    promote(client, NAME, add(0.5, report=str(tmp_path / "deleted")), 0.5)
    champion, reason = promote(client, NAME, add(0.6, report=report_of(tmp_path / "2", "11100")), 0.5)
    assert champion and "not below 0.5000" in reason


def test_an_equally_good_older_version_moves_no_alias_back(add: Callable[..., str]) -> None:
    older, newer = add(0.7), add(0.7)
    promote(MlflowClient(), NAME, newer, 0.5)
    champion, reason = promote(MlflowClient(), NAME, older, 0.5)
    assert (champion, alias("candidate"), alias("champion")) == (False, "2", "2")
    assert "the newer version 2 stays the champion" in reason


@pytest.mark.parametrize("measured", [True, False], ids=["on another store", "never"])
def test_a_champion_that_cannot_be_compared_stays_and_the_reason_has_the_command(
    add: Callable[..., str], model_uri: str, measured: bool
) -> None:
    client = MlflowClient()
    if measured:
        promote(client, NAME, add(0.7, "store A"), 0.5)
    else:
        client.create_registered_model(NAME)
        by_hand = mlflow.register_model(model_uri, NAME).version
        client.set_registered_model_alias(NAME, "champion", by_hand)
    champion, reason = promote(client, NAME, add(0.9, "store B"), 0.5)
    assert (champion, alias("champion")) == (False, "1")
    assert "cannot be compared" in reason
    assert "set_registered_model_alias('cars', 'champion', '2')" in reason


def test_the_newest_champion_is_found_among_all_models(add: Callable[..., str], model_uri: str) -> None:
    client = MlflowClient()
    assert newest_model(client, "champion") is None
    older = register(model_uri, "trucks", 0.7, "store A")
    version = add(0.7)
    assert newest_model(client, "champion") is None
    promote(client, "trucks", older, 0.5)
    promote(client, NAME, version, 0.5)
    assert newest_model(client, "champion") == f"models:/{NAME}@champion"
    assert newest_model(client, "champion", without=NAME) == "models:/trucks@champion"
    client.delete_registered_model("trucks")


def test_serving_prefers_ones_own_champion_to_the_pretrained_network(
    add: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = MlflowClient()
    monkeypatch.setattr(serve, "package_pretrained", lambda: "the pretrained network")
    assert serve.choose_model() == "the pretrained network"
    assert "you have no registered model of your own yet" in capsys.readouterr().out
    promote(client, NAME, add(0.7), 0.9)
    assert serve.choose_model() == "the pretrained network"
    assert f"make serve MODEL=models:/{NAME}@candidate" in capsys.readouterr().out
    promote(client, NAME, add(0.95), 0.9)
    assert serve.choose_model() == f"models:/{NAME}@champion"


def test_the_newest_champion_is_found_on_a_later_page_of_models(
    add: Callable[..., str], model_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient()
    monkeypatch.setattr("carmodel.serving.registry.PAGE", 1)
    mlflow.register_model(model_uri, "another")
    promote(client, NAME, add(0.7), 0.5)
    assert newest_model(client, "champion") == f"models:/{NAME}@champion"
    client.delete_registered_model("another")


def test_versions_beyond_nine_keep_their_order(add: Callable[..., str], tmp_path: Path) -> None:
    versions = [add(0.5 + i / 100) for i in range(11)]
    assert versions[-1] == "11"
    assert all(promote(MlflowClient(), NAME, version, 0.5).champion for version in versions)
    assert alias("champion") == "11"


def test_packaging_says_if_the_accuracy_was_measured_with_other_settings(tmp_path: Path) -> None:
    used = {"image_size": 64, "flip": True, "model": "models:/m-1", "test_store": "a"}
    assert not difference(tmp_path, used)
    (tmp_path / "settings.json").write_text('{"image_size": 64, "flip": true}')
    assert not difference(tmp_path, used)
    said = difference(tmp_path, used | {"image_size": 96})
    assert "measured with image_size=64, flip=true, and the classifier uses image_size=96, flip=true" in said


@pytest.mark.parametrize(("name", "value"), [("model", "models:/m-2"), ("test_store", "b")])
def test_the_accuracy_of_another_model_or_of_other_photos_is_refused(tmp_path: Path, name: str, value: str) -> None:
    used = {"image_size": 64, "flip": True, "model": "models:/m-1", "test_store": "a"}
    (tmp_path / "settings.json").write_text(json.dumps(used | {name: value}))
    with pytest.raises(InputError, match=f"report on another model or on other photos: {name}={value}, and this step"):
        difference(tmp_path, used)
