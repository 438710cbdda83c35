"""Steps of main on other machines: what is refused before any work, and a `main` over Databricks, Azure ML and here."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow.exceptions import ExecutionException

from carmodel.cloud.placement import Place, check_artifacts, check_placement, load_placement
from carmodel.cloud.waiting import JobState, RemoteStep
from carmodel.errors import InputError
from carmodel.recipe import resolve
from carmodel.tracking.unfinished import end_dead_runs
from steps.interrupt import signals_interrupt
from steps.pipeline import run_elsewhere
from tests.cloud.azureml_cloud import Azure
from tests.cloud.databricks_jobs import Workspace
from tests.cloud.mlflow_server import Server
from tests.cloud.stand_in import Wire
from tests.project import environment
from tests.tracked import new_database, tracked_in

ON_DATABRICKS = Place(backend="databricks", backend_config="backends/databricks.json")
AZUREML = "azureml://eastus.api.azureml.ms/mlflow/v1.0/subscriptions/s/resourceGroups/g/providers/P/workspaces/w"
TINY = {
    "preprocess": {"sample_classes": 2, "sample_photos": 10, "image_size": 32},
    "augment": {"copies": 0},
    "train": {"depth": 14, "width": 4, "epochs": 1, "batch_size": 8},
    "package_pyfunc": {"registered_model_name": "placed", "example_pictures": 0},
}


def write(folder: Path, steps: object) -> str:
    path = folder / "placement.yaml"
    path.write_text(yaml.safe_dump(steps))
    return str(path)


def main(
    sources: Path, folder: Path, environment: dict[str, str], placement: dict, **more: str
) -> subprocess.Popen[str]:
    """Start `mlflow run . -P placement=…` with small parameters in a copy of the project."""
    recipe = folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY))
    given = {"config": str(recipe), "placement": write(folder, placement)} | more
    words = [word for name, value in given.items() for word in ("-P", f"{name}={value}")]
    command = ["mlflow", "run", ".", "--env-manager", "local", *words]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=sources, env=environment, start_new_session=True, **both)


def submitted(
    monkeypatch: pytest.MonkeyPatch, state: Callable[[], JobState], cancel: Callable[[], None] = lambda: None
) -> None:
    """Let Databricks accept each step as job 7, whose state and cancellation are these functions."""

    def submit(step: str, parameters: dict[str, str], config: Path, experiment_id: str) -> RemoteStep:
        run = mlflow.MlflowClient().create_run(experiment_id)
        return RemoteStep(run.info.run_id, "job 7", "https://page", state, cancel)

    monkeypatch.setattr("carmodel.cloud.databricks.submit", submit)


def test_the_example_is_valid_and_an_empty_path_places_nothing() -> None:
    placement = load_placement("backends/placement.yaml")
    assert {step: place.backend for step, place in placement.items()} == {
        "preprocess": "databricks",
        "augment": "databricks",
        "train": "azureml-job",
    }
    check_placement(placement, dict(resolve("", "", {})), AZUREML)
    assert load_placement("") == {}


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ({"deploy": {"backend": "databricks", "backend_config": "x.json"}}, "no step 'deploy'; the steps are"),
        ({"train": {"backend": "slurm", "backend_config": "x.json"}}, "'databricks', 'azureml' or 'azureml-job'"),
        ({"train": {"backend": "databricks"}}, "train: backend_config: Field required"),
        ({"train": {"backend": "databricks", "backend_config": "x.json"}}, "no such .json file: backend_config='x.json'"),
        ({"train": {"backend": "azureml-job", "backend_config": "backends/azureml.json"}}, "no such .yaml file"),
        ({"train": "databricks"}, "train: "),
        (["train"], "must map steps to backends"),
    ],
)  # fmt: skip
def test_a_placement_with_an_unknown_name_or_file_is_refused(tmp_path: Path, steps: object, said: str) -> None:
    with pytest.raises(InputError) as error:
        load_placement(write(tmp_path, steps))
    assert said in str(error.value)


def test_a_missing_or_invalid_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; backends/placement.yaml is an example"):
        load_placement("nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("a: b: c")
    with pytest.raises(InputError, match="not valid YAML"):
        load_placement(str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.json", '{"COMPUTE": "cpu",}', "is no valid .json file: "),
        ("x.json", "[]", "must map names to values"),
        ("x.yaml", "a: b: c", "is no valid .yaml file: "),
    ],
)
def test_an_invalid_file_of_a_backend_is_refused_before_any_step(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    (tmp_path / name).write_text(text)
    backend = {"x.json": "azureml", "x.yaml": "azureml-job"}[name]
    place = {"backend": backend, "backend_config": str(tmp_path / name)}
    with pytest.raises(InputError) as error:
        load_placement(write(tmp_path, {"train": place}))
    assert f"{tmp_path / name} {said}" in str(error.value)


def test_a_job_whose_state_is_unknown_may_still_be_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> JobState:
        raise PermissionError("the sign-in has expired")

    submitted(monkeypatch, refuse)
    monkeypatch.setattr("carmodel.cloud.waiting.is_transient", lambda error: False)
    with tracked_in(tmp_path):
        with pytest.raises(ExecutionException, match="the state of job 7 is unknown, and it may still be running"):
            run_elsewhere("train", {}, ON_DATABRICKS, "0")
        (run,) = mlflow.MlflowClient().search_runs(["0"])
        assert (run.info.status, run.data.tags["carmodel.remote"]) == ("RUNNING", "job 7")
        assert end_dead_runs("0") == []


@pytest.mark.parametrize(
    ("backend", "tracking", "fine"),
    [
        ("databricks", "databricks", True),
        ("databricks", "databricks://profile", True),
        ("databricks", "https://mlflow.example", True),
        ("databricks", AZUREML, True),
        ("databricks", "sqlite:///mlflow.db", False),
        ("databricks", "/tmp/mlruns", False),
        ("azureml", "https://mlflow.example", False),
        ("azureml-job", "databricks", False),
        ("azureml-job", AZUREML, True),
    ],
)
def test_the_machines_must_reach_the_tracking_server(backend: str, tracking: str, fine: bool) -> None:
    placement = {"train": Place(backend=backend, backend_config="any")}
    if fine:
        check_placement(placement, dict(resolve("", "", {})), tracking)
    else:
        with pytest.raises(InputError, match="set MLFLOW_TRACKING_URI to"):
            check_placement(placement, dict(resolve("", "", {})), tracking)


@pytest.mark.parametrize("data_uri", ["/data/cars", "cars", "file:///data/cars"])
def test_a_step_elsewhere_takes_no_local_path(data_uri: str) -> None:
    settings = dict(resolve("", "", {"preprocess": {"data_uri": data_uri}}))
    with pytest.raises(InputError, match=f"preprocess.data_uri={data_uri} is a path of this machine"):
        check_placement({"preprocess": ON_DATABRICKS}, settings, "databricks")
    check_placement({"augment": ON_DATABRICKS}, settings, "databricks")


@pytest.mark.parametrize("data_uri", ["", "dbfs:/mnt/cars", "abfss://photos@account.dfs.core.windows.net/cars"])
def test_a_step_elsewhere_takes_a_uri_that_is_the_same_everywhere(data_uri: str) -> None:
    settings = dict(resolve("", "", {"preprocess": {"data_uri": data_uri}}))
    check_placement({"preprocess": ON_DATABRICKS}, settings, "databricks")


def test_artifacts_in_a_folder_of_this_machine_are_refused() -> None:
    with pytest.raises(InputError, match="in a folder of this machine, /tmp/mlruns"):
        check_artifacts({"train": ON_DATABRICKS}, "/tmp/mlruns")
    check_artifacts({}, "/tmp/mlruns")
    check_artifacts({"train": ON_DATABRICKS}, "mlflow-artifacts:/0")


def test_main_refuses_before_any_work(sources: Path, tmp_path: Path, commands: str) -> None:
    own = environment(commands, MLFLOW_TRACKING_URI=new_database(tmp_path))
    said, _ = main(sources, tmp_path, own, {"train": dict(ON_DATABRICKS)}).communicate()
    assert "main: error: placement: train on databricks cannot log to sqlite" in said
    assert "Running command 'python -m steps.preprocess" not in said


def test_a_second_signal_does_not_stop_the_cancellation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled: list[bool] = []

    def state() -> JobState:
        os.kill(os.getpid(), signal.SIGINT)
        return JobState("RUNNING")

    def cancel() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        cancelled.append(True)

    submitted(monkeypatch, state, cancel)
    with tracked_in(tmp_path):
        with signals_interrupt(), pytest.raises(KeyboardInterrupt):
            run_elsewhere("train", {}, ON_DATABRICKS, "0")
        (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert (run.info.status, cancelled) == ("FAILED", [True])


@pytest.mark.slow
def test_main_over_three_places_explains_a_failure_and_a_rerun_finishes(
    sources: Path,
    tmp_path: Path,
    cloud: Azure,
    databricks: tuple[Workspace, Wire],
    databricks_environment: dict[str, str],
) -> None:
    """Preprocess on Databricks, train as a job of Azure ML, the rest here; all runs in Azure ML's tracking."""
    workspace, jobs = databricks[0], cloud.jobs
    own = databricks_environment | cloud.environment
    workspace.environment.update(jobs.environment | cloud.workspace.identity.environment)
    placement = {
        "preprocess": dict(ON_DATABRICKS),
        "train": {"backend": "azureml-job", "backend_config": "backends/azureml-job.yaml"},
    }
    known = set(jobs.running)
    startup = tmp_path / "startup.sh"
    startup.write_text("echo no space left on device; exit 28")
    jobs.environment["BASH_ENV"] = str(startup)  # a machine that fails before it gets to the command
    failed, _ = main(sources, tmp_path, own, placement).communicate()
    del jobs.environment["BASH_ENV"]
    assert "main: preprocess ran, run " in failed, failed
    assert "main: train is Azure ML job " in failed and "https://ml.azure.com/runs/" in failed
    assert "main: stopped: train ended as Failed" in failed and "no space left on device" in failed
    assert "run the same command again" in failed

    again, _ = main(sources, tmp_path, own, placement).communicate()
    assert "main: preprocess reused" in again, again
    for step in ("train", "evaluate", "package_pyfunc"):
        assert f"main: {step} ran" in again, again
    assert len(set(jobs.running) - known) == 2
    assert cloud.workspace.identity.secret not in failed + again
    assert databricks_environment["DATABRICKS_TOKEN"] not in failed + again


@pytest.mark.slow
def test_an_interrupted_main_cancels_the_job(
    sources: Path,
    tmp_path: Path,
    server: Server,
    databricks: tuple[Workspace, Wire],
    databricks_environment: dict[str, str],
) -> None:
    workspace, wire = databricks
    workspace.environment["CARMODEL_HOLD"] = "1"  # the driver waits before it runs the command
    started = main(sources, tmp_path, databricks_environment, {"preprocess": dict(ON_DATABRICKS)}, fresh="true")
    said = ""
    try:
        for line in started.stdout:
            said += line
            if "main: preprocess: " in line:
                break
        os.killpg(started.pid, signal.SIGINT)  # as a terminal does; `mlflow run` then sends SIGTERM to main
        said += started.communicate()[0]
    finally:
        started.kill()
    assert "main: preprocess: cancelled Databricks run" in said, said
    (cancelled,) = wire.seen("POST", "/api/2.0/jobs/runs/cancel")
    ((number, job),) = workspace.jobs.items()
    assert str(number).encode() in cancelled.body
    assert job.wait(10) is not None and job.cancelled
    (run,) = mlflow.MlflowClient(server.url).search_runs(["0"], "tags.mlflow.runName = 'preprocess'", max_results=1)
    assert run.info.status == "FAILED"
