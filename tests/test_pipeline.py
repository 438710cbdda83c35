"""What main decides: which training it resumes, and what it says of a classifier that it reuses."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import mlflow
import pytest

from carmodel.parameters import Train
from carmodel.serving.registry import CHAMPION
from carmodel.tracking.cache import cache_key
from carmodel.tracking.lineage import PROCESS_TAG, STARTED_TAG
from carmodel.tracking.processes import identify
from carmodel.tracking.runs import step_run
from carmodel.tracking.unfinished import CHECKPOINTS, find_running, process_tags
from steps.pipeline import Pipeline, describe_version
from tests.tracked import tracked_in


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with tracked_in(tmp_path):
        created = mlflow.create_experiment("pipeline", tmp_path.as_uri())
        monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", created)
        yield created


def test_a_training_resumes_the_unfinished_one_with_the_same_parameters(
    experiment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError), step_run("train", Train(epochs="9")) as step:
        mlflow.log_text("weights", f"{CHECKPOINTS}/epoch-0001.npz")
        raise RuntimeError
    pipeline = Pipeline(experiment, False, {})
    same, other = Train(epochs="9"), Train(epochs="8")
    assert pipeline.with_checkpoint(same, cache_key("train", same)).resume == step.run_id
    assert pipeline.with_checkpoint(other, cache_key("train", other)).resume == ""
    assert f"main: resuming the unfinished training of run {step.run_id}" in capsys.readouterr().out


def test_a_step_that_still_runs_after_its_parent_was_killed_is_waited_for(experiment: str) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as working:
        tags = {STARTED_TAG: "key", PROCESS_TAG: identify(working.pid)}
        run = mlflow.MlflowClient().create_run(experiment, tags=tags)
        assert find_running("key", experiment) == run.info.run_id
        Timer(1, working.kill).start()
        Pipeline(experiment, False, {}).wait_for_running("train", "key")
        assert working.poll() is not None
    assert mlflow.get_run(run.info.run_id).info.status == "FAILED"


def test_another_main_finds_a_step_before_the_step_has_tagged_its_own_run(
    experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    with mlflow.start_run(tags=process_tags()) as main:
        pipeline = Pipeline(experiment, False, {})
        monkeypatch.setattr(pipeline, "start_and_wait", lambda *step: seen.append(find_running("key", experiment)))
        pipeline.execute("train", Train(), "key")
        assert seen == [main.info.run_id]
        assert find_running("key", experiment) is None


def test_a_reused_classifier_is_called_what_the_registry_calls_it_now(experiment: str, tmp_path: Path) -> None:
    client = mlflow.MlflowClient()
    client.create_registered_model("cars")
    for version in "12":
        client.create_model_version("cars", tmp_path.as_uri(), tags={"version": version})
    assert describe_version("models:/cars/1") == "cars version 1; there is no champion"
    client.set_registered_model_alias("cars", CHAMPION, "2")
    assert describe_version("models:/cars/1") == "cars version 1; the champion is version 2"
    assert describe_version("models:/cars/2") == "cars version 2, the champion"
