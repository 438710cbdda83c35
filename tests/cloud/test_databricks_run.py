"""The project on Databricks: MLflow's own backend submits it, and the job that it submits really runs."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import yaml
from databricks.sdk.service.compute import ClusterSpec
from mlflow.exceptions import ExecutionException, MlflowException

from carmodel.cloud import databricks as remote
from carmodel.cloud.snapshot import copy_project
from carmodel.cloud.waiting import wait
from carmodel.errors import InputError
from tests.cloud.databricks_jobs import Workspace
from tests.cloud.mlflow_server import Server
from tests.cloud.stand_in import Wire
from tests.project import TINY_PREPROCESS, client_here

CONFIG = Path("backends/databricks.json")
KNOWN = re.compile(
    r"/api/2\.0/(dbfs/get-status|jobs/runs/(submit|get|cancel))|/dbfs/.*|/\.well-known/databricks-config"
)


@pytest.fixture
def client(
    databricks: tuple[Workspace, Wire],
    databricks_environment: dict[str, str],
    sources: Path,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[Workspace, Wire]]:
    """This process as a client of the workspace that submits a copy, tracks to the server, and asks for nothing else."""
    monkeypatch.setattr(remote, "ROOT", sources)
    with client_here(databricks_environment):
        yield databricks
    assert [sent.path for sent in databricks[1].sent if not KNOWN.fullmatch(sent.path)] == []


@pytest.mark.parametrize("name", ["databricks", "databricks-gpu"])
def test_the_clusters_are_read_by_the_client_s_own_model(name: str) -> None:
    cluster = json.loads(Path(f"backends/{name}.json").read_text())
    assert ClusterSpec.from_dict(cluster).as_dict() == cluster
    (script,) = cluster["init_scripts"]
    assert script["workspace"]["destination"].endswith("/install_horovod.sh")
    # The only runtime whose Python is the project's: 3.11.
    assert cluster["spark_version"].startswith("15.4.")
    assert ("gpu" in cluster["spark_version"]) == (cluster["spark_env_vars"].get("HOROVOD_GPU_OPERATIONS") == "NCCL")


def test_the_init_script_is_what_make_runs_and_the_image_too() -> None:
    script = Path("backends/install_horovod.sh").read_text()
    makefile = Path("Makefile").read_text()
    assert "backends/install_horovod.sh $(BIN)/python ." in makefile
    assert f"uv=={re.search(r'UV_VERSION := (.*)', makefile)[1]}" in script
    assert "/opt/project/install_horovod.sh" in Path("backends/environment/Dockerfile").read_text()
    subprocess.run(["bash", "-n", "backends/install_horovod.sh"], check=True)


@pytest.mark.slow
def test_mlflow_run_submits_the_project_and_the_job_runs_it(
    tmp_path: Path, server: Server, client: tuple[Workspace, Wire]
) -> None:
    workspace, _ = client
    words = [word for name, value in TINY_PREPROCESS.items() for word in ("-P", f"{name}={value}")]
    clean = copy_project(tmp_path / "clean", "preprocess", {})
    command = ["mlflow", "run", str(clean), "-e", "preprocess", "-b", "databricks"]
    command += ["--backend-config", str(CONFIG), "--env-manager", "local", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Check the run's status at https://adb-1.2.azuredatabricks.net" in done.stderr
    ((job_id, job),) = workspace.jobs.items()
    assert job.wait() == 0, job.said()
    assert {"MLproject", "steps/preprocess.py", "requirements.lock"} <= workspace.project()
    body = workspace.requests[job_id]
    assert body["shell_command_task"]["env_vars"]["MLFLOW_TRACKING_URI"] == server.url
    assert json.loads(CONFIG.read_text()).items() <= body["new_cluster"].items()
    (run_id,) = re.findall(r'_mlflow_local_backend_run_id": "(\w+)"', body["shell_command_task"]["command"][2])
    run = mlflow.get_run(run_id)
    assert run.info.status == "FINISHED" and "8 training" in run.data.tags["carmodel.summary"]
    assert run.data.tags["mlflow.databricks.runURL"].startswith("https://adb-1.2")


def test_the_project_of_spark_jobs_holds_sources_alone_and_starts_files(tmp_path: Path) -> None:
    project = remote.make_project(tmp_path / "new", "preprocess", {}, "https://mlflow.example")
    left_out = {".git", ".venv", "mlruns", "mlflow.db", "sample", "pretrained"}
    assert not left_out & {path.name for path in project.iterdir()}
    written = yaml.safe_load((project / "MLproject").read_text())
    assert set(written["entry_points"]) == set(yaml.safe_load(Path("MLproject").read_text())["entry_points"])
    for name, point in written["entry_points"].items():
        assert point["command"].startswith(f"python databricks_job.py https://mlflow.example {name} ")
    with pytest.raises(InputError, match="give a new folder"):
        remote.make_project(tmp_path / "new", "preprocess", {})
    with pytest.raises(InputError, match="contains a password"):
        remote.make_project(tmp_path / "other", "preprocess", {}, "https://me:word@mlflow.example")


def test_a_spark_job_runs_a_step_and_a_second_one_sends_no_project(client: tuple[Workspace, Wire]) -> None:
    workspace, wire = client
    submitted = []
    for seed in ("1", "2"):
        more = {"set": f"preprocess.margin=0.25, preprocess.seed={seed}"}  # a blank within a value
        submitted.append((seed, remote.submit("preprocess", TINY_PREPROCESS | more, CONFIG, "0")))
    for seed, job in submitted:
        wait("preprocess", job)
        run = mlflow.get_run(job.run_id)
        assert (run.info.status, run.data.params["margin"], run.data.params["seed"]) == ("FINISHED", "0.25", seed)
        assert mlflow.artifacts.load_dict(f"runs:/{job.run_id}/data_report.json")["photos"] == 10
    assert len(wire.seen("POST", r"projects-code/\w+\.tar\.gz$")) == 1
    assert "steps/preprocess.py" in workspace.project()
    body = list(workspace.requests.values())[-1]
    assert body["spark_python_task"]["python_file"].startswith("dbfs:/mlflow-experiments/0/projects-code/")


def test_the_failure_of_a_job_is_explained(client: tuple[Workspace, Wire]) -> None:
    submitted = remote.submit("preprocess", {"data_uri": "/nowhere/cars"}, CONFIG, "0")
    with pytest.raises(ExecutionException) as error:
        wait("preprocess", submitted)
    assert "preprocess ended as FAILED on Databricks run 7000: Command exited with code 2" in str(error.value)
    assert "/nowhere/cars: no such file or directory" in str(error.value)
    assert "its page: https://adb-1.2.azuredatabricks.net" in str(error.value)
    assert mlflow.get_run(submitted.run_id).info.status == "FAILED"


def test_a_cancelled_job_is_not_taken_for_a_finished_one(client: tuple[Workspace, Wire]) -> None:
    workspace, _ = client
    workspace.environment["CARMODEL_HOLD"] = "1"
    submitted = remote.submit("preprocess", TINY_PREPROCESS, CONFIG, "0")
    submitted.cancel()
    with pytest.raises(ExecutionException, match="ended as CANCELED on Databricks run 7000: Run cancelled"):
        wait("preprocess", submitted)


def test_a_job_that_never_ran_has_ended_without_a_result(client: tuple[Workspace, Wire]) -> None:
    workspace, wire = client
    workspace.environment["CARMODEL_HOLD"] = "1"
    submitted = remote.submit("preprocess", TINY_PREPROCESS, CONFIG, "0")
    for life in ("INTERNAL_ERROR", "SKIPPED"):
        state = {"life_cycle_state": life, "state_message": "No such node type"}
        wire.fail("GET", "jobs/runs/get", 200, body=json.dumps({"run_id": 7000, "state": state}).encode())
        with pytest.raises(ExecutionException, match=f"ended as {life} on Databricks run 7000: No such node type"):
            wait("preprocess", submitted)


def test_a_passing_fault_is_retried(client: tuple[Workspace, Wire]) -> None:
    workspace, wire = client
    workspace.environment["CARMODEL_HOLD"], workspace.patience = "1", 0
    body = b'{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "later"}'
    wire.fail("POST", "jobs/runs/submit", 429, body=body)
    wire.fail("GET", "jobs/runs/get", 500, body=body)
    submitted = remote.submit("preprocess", TINY_PREPROCESS, CONFIG, "0")
    assert submitted.state().name in ("PENDING", "RUNNING")
    assert len(workspace.jobs) == 1


def test_a_refusal_is_raised_at_once_and_leaves_a_failed_run(client: tuple[Workspace, Wire]) -> None:
    workspace, wire = client
    body = b'{"error_code": "PERMISSION_DENIED", "message": "no cluster create permission"}'
    wire.fail("POST", "jobs/runs/submit", 403, body=body)
    with pytest.raises(MlflowException, match="no cluster create permission"):
        remote.submit("preprocess", TINY_PREPROCESS, CONFIG, "0")
    assert workspace.jobs == {} and len(wire.seen("POST", "jobs/runs/submit")) == 1
    (run,) = mlflow.search_runs(["0"], output_format="list", max_results=1, order_by=["attributes.start_time DESC"])
    assert run.info.status == "FAILED"


def test_a_wrong_token_is_refused_before_anything_is_sent(client: tuple[Workspace, Wire]) -> None:
    wrong = client_here(dict(os.environ) | {"DATABRICKS_TOKEN": "dapi-wrong"})
    with wrong, pytest.raises((MlflowException, ExecutionException), match="Invalid access token"):
        remote.submit("preprocess", TINY_PREPROCESS, CONFIG, "0")
    assert not client[1].seen("POST", "/dbfs/")
