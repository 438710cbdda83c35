"""`run -b azureml`: azureml-mlflow's project backend, on SDK v1, submits the project, and the submitted job really runs."""

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import ExecutionException
from mlflow.projects.utils import load_project

from carmodel.cloud.azure import environment_of, submit_project_run
from carmodel.cloud.waiting import wait
from carmodel.errors import InputError
from tests.cloud.azureml_cloud import Azure

TINY = {"sample_classes": "2", "sample_photos": "5", "image_size": "16"}
ASKED = {
    "GET /discovery",
    "GET /history/v1.0/experiments/Default",
    "PUT /environment/v1.0/environments/carmodel",
    "GET /rp/workspaces/computes/gpu-cluster",
    "POST /content/v2.0/snapshots/getblob",
    "POST /execution/v1.0/experiments/Default/snapshotrun",
}


@pytest.fixture
def client(cloud: Azure, monkeypatch) -> Azure:
    """This process as a client that is signed in to the workspace; it may ask no other host."""
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(cloud.workspace.uri)
    yield cloud
    mlflow.set_tracking_uri(before)
    assert cloud.proxy.refused == []


def test_mlflow_s_own_command_would_end_in_an_attribute_error() -> None:
    """When this fails, `carmodel.cloud.azure` is not needed any more."""
    code = "from mlflow.projects.utils import load_project; print(hasattr(load_project('.'), 'conda_env_path'))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"


def test_without_an_image_azure_ml_installs_the_project_s_packages() -> None:
    environment = environment_of(load_project("."), "")
    packages = environment.python.conda_dependencies.pip_packages
    assert {"tensorflow", "azureml-mlflow", "mlflow"} <= {package.partition("==")[0] for package in packages}
    assert environment.python.user_managed_dependencies is False


@pytest.mark.slow
def test_the_command_submits_the_project_to_the_cluster_and_the_job_runs_it(cloud: Azure, tmp_path: Path) -> None:
    known, earlier, snapshots = set(cloud.jobs.running), len(cloud.management.sent), set(cloud.jobs.snapshots)
    words = [word for name, value in TINY.items() for word in ("-P", f"{name}={value}")]
    config = ["-b", "azureml", "--backend-config", "backends/azureml-gpu.json"]
    done = subprocess.run(
        [sys.executable, "-m", "carmodel.cloud.azure", "run", ".", "-e", "preprocess", *config, *words],
        env=os.environ | cloud.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    scope = cloud.workspace.scope
    asked = {f"{sent.method} {sent.path.replace(scope, '')}" for sent in cloud.region.sent}
    assert asked >= ASKED
    queries = {sent.query for sent in cloud.management.sent[earlier:] if (sent.method, sent.path) == ("GET", scope)}
    assert queries == {"api-version=2022-05-01"}
    (run_id,) = set(cloud.jobs.running) - known
    assert cloud.jobs.targets[run_id] == "gpu-cluster"
    job = cloud.jobs.running[run_id]
    assert job.wait(120) == 0, job.said()
    (snapshot,) = set(cloud.jobs.snapshots) - snapshots
    files = cloud.jobs.snapshots[snapshot]
    assert {"MLproject", "steps/preprocess.py", "conda.yaml"} <= set(files)
    assert not [path for path in files if path.startswith((".git/", ".venv/", "mlruns/"))]
    environment = cloud.jobs.environments["carmodel"]
    assert environment["docker"]["baseImage"] == "REGISTRY.azurecr.io/carmodel:gpu"
    assert environment["python"]["userManagedDependencies"] is True
    secret = cloud.workspace.identity.secret
    assert secret not in done.stdout + done.stderr + job.said()
    assert secret.encode() not in b"".join(sent.body for sent in cloud.region.sent)


@pytest.mark.slow
def test_a_job_is_watched_to_its_end_and_its_failure_explained(client: Azure) -> None:
    submitted = submit_project_run("preprocess", {"data_uri": "/nowhere/cars"}, Path("backends/azureml.json"), "0")
    assert submitted.page.startswith("https://ml.azure.com/runs/")
    with pytest.raises(ExecutionException) as error:
        wait("preprocess", submitted)
    assert "preprocess ended as Failed on Azure ML run Default_" in str(error.value)
    assert "/nowhere/cars: no such file or directory" in str(error.value)
    assert mlflow.get_run(submitted.run_id).info.status == "FAILED"


def test_a_cluster_that_is_not_there_is_said_with_the_service_s_words(client: Azure, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"COMPUTE": "no-such-cluster"}')
    with pytest.raises(InputError, match="no-such-cluster"):
        submit_project_run("preprocess", TINY, tmp_path / "config.json", "0")


def test_a_job_that_is_cancelled_ends_over_there(client: Azure) -> None:
    client.jobs.environment["CARMODEL_HOLD"] = "1"
    try:
        submitted = submit_project_run("preprocess", TINY, Path("backends/azureml.json"), "0")
    finally:
        del client.jobs.environment["CARMODEL_HOLD"]
    assert submitted.state().name == "Running"
    submitted.cancel()
    assert client.jobs.running[submitted.run_id].cancelled
    with pytest.raises(ExecutionException, match="ended as Canceled on Azure ML run"):
        wait("preprocess", submitted)
