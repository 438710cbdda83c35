"""Runs that do not finish: killed ones are ended, interrupted trainings are found again, refused parameters leave nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from carmodel.parameters import Augment, Train
from carmodel.recipe import SettingsError
from carmodel.tracking import processes, unfinished
from carmodel.tracking.cache import cache_key
from carmodel.tracking.lineage import PROCESS_TAG, REMOTE_TAG
from carmodel.tracking.runs import step_run
from steps.command import run_step
from tests.tracked import tracked_in

CLIENT = mlflow.MlflowClient


@pytest.fixture(autouse=True)
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with tracked_in(tmp_path):
        created = mlflow.create_experiment("unfinished", tmp_path.as_uri())
        monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", created)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", created)
        yield created


@pytest.fixture
def dead() -> str:
    """The identity of a process that was killed."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        identity = processes.identify(process.pid)
        process.kill()
    return identity


def status(run_id: str) -> str:
    return CLIENT().get_run(run_id).info.status


def running(experiment: str, identity: str) -> str:
    return CLIENT().create_run(experiment, tags={PROCESS_TAG: identity}).info.run_id


def test_a_killed_process_is_dead_and_a_living_one_is_not(dead: str) -> None:
    assert processes.has_died(dead)
    assert not processes.has_died(processes.identify(os.getpid()))


def test_a_process_id_that_another_process_has_now_is_dead() -> None:
    identity = json.loads(processes.identify(os.getpid()))
    assert processes.has_died(json.dumps(identity | {"started": "1"}))


@pytest.mark.parametrize("other", [{"host": "another"}, {"machine_id": "another"}, {"namespace": "pid:[1]"}])
def test_a_process_of_another_machine_or_container_is_never_called_dead(dead: str, other: dict[str, str]) -> None:
    assert not processes.has_died(json.dumps(json.loads(dead) | other))


def test_only_runs_of_killed_processes_are_ended(experiment: str, dead: str) -> None:
    killed = running(experiment, dead)
    remote = running(experiment, json.dumps(json.loads(dead) | {"host": "another"}))
    living = running(experiment, processes.identify(os.getpid()))
    unknown = CLIENT().create_run(experiment).info.run_id
    queued = {"mlflow.parentRunId": killed, REMOTE_TAG: "a job whose process has not started yet"}
    waiting = CLIENT().create_run(experiment, tags=queued).info.run_id
    assert unfinished.end_dead_runs(experiment) == [killed]
    assert status(killed) == "FAILED"
    assert {status(run) for run in (remote, living, unknown, waiting)} == {"RUNNING"}


def test_a_step_that_died_before_it_wrote_its_process_is_ended_with_its_main(experiment: str, dead: str) -> None:
    main = running(experiment, dead)
    step = CLIENT().create_run(experiment, tags={"mlflow.parentRunId": main}).info.run_id
    environment = os.environ | {"MLFLOW_RUN_ID": step}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environment) as working:
        while not processes.any_process_has("MLFLOW_RUN_ID", step):  # until the interpreter has replaced the fork
            time.sleep(0.01)
        assert unfinished.end_dead_runs(experiment) == [main]
        working.kill()
    assert unfinished.end_dead_runs(experiment) == [step]


def test_an_interrupted_training_is_found_by_its_key_and_says_how_to_resume(
    experiment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "epoch-0001.npz").write_bytes(b"weights")
    with pytest.raises(KeyboardInterrupt), step_run("train", Train(), {"epochs": "30"}) as step:
        mlflow.log_artifact(str(tmp_path / "epoch-0001.npz"), unfinished.CHECKPOINTS)
        raise KeyboardInterrupt
    assert status(step.run_id) == "FAILED"
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"mlflow run . -e train --env-manager local --experiment-id {experiment} -P epochs=30" in last
    assert last.endswith(f"-P resume={step.run_id}")
    assert unfinished.find_unfinished(cache_key("train", Train()), experiment) == step.run_id
    assert unfinished.find_unfinished(cache_key("train", Train(seed=1)), experiment) is None


def test_a_training_without_a_checkpoint_is_not_resumed(experiment: str) -> None:
    with pytest.raises(RuntimeError), step_run("train", Train()):
        raise RuntimeError
    assert unfinished.find_unfinished(cache_key("train", Train()), experiment) is None


def test_a_training_goes_on_if_old_checkpoints_cannot_be_deleted(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from steps.train_rank import keep_checkpoint  # imports TensorFlow

    def refuse(self: object, path: str | None = None) -> None:
        raise MlflowException("403: you may not delete at https://me:word@host")

    monkeypatch.setattr(LocalArtifactRepository, "delete_artifacts", refuse)
    with mlflow.start_run() as run:
        for number in (1, 2):
            for old in tmp_path.glob("epoch-*.npz"):
                old.unlink()
            (path := tmp_path / f"epoch-000{number}.npz").write_bytes(b"weights")
            keep_checkpoint(path)
    assert len(CLIENT().list_artifacts(run.info.run_id, unfinished.CHECKPOINTS)) == 2
    said = capsys.readouterr().out
    assert "checkpoints/epoch-0001.npz is no longer needed, but cannot be deleted: 403" in said and "word" not in said


def test_a_missing_input_leaves_no_run(experiment: str) -> None:
    with pytest.raises(SettingsError), step_run("augment", Augment()):
        raise SettingsError("augment needs store_uri")
    assert CLIENT().search_runs([experiment]) == []


def test_the_run_that_mlflow_opened_is_deleted_after_mlflow_has_ended_it(
    experiment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = CLIENT().create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", opened)
    monkeypatch.setattr(sys, "argv", ["augment", "--copies", "many"])
    with pytest.raises(SystemExit):
        run_step("augment", Augment, lambda settings, step: None)
    assert "augment.copies='many'" in capsys.readouterr().err
    CLIENT().set_terminated(opened, "FAILED")  # fails if the run is deleted
    deadline = time.monotonic() + 300
    while CLIENT().search_runs([experiment]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert CLIENT().search_runs([experiment]) == []


def test_a_second_signal_does_not_disturb_the_end_of_an_interrupted_step(
    experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(settings: Augment, step: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(sys, "argv", ["augment"])
    with pytest.raises(SystemExit):
        run_step("augment", Augment, work)
    assert [run.info.status for run in CLIENT().search_runs([experiment])] == ["FAILED"]
