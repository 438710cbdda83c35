"""`run -b azureml`: azureml-mlflow's backend, on SDK v1, submits the project, and the submitted job really runs."""

import subprocess
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import ExecutionException
from mlflow.projects.utils import load_project

from carmodel.cloud.azure import environment_of, submit_project_run
from carmodel.cloud.waiting import wait
from carmodel.errors import InputError
from tests.cloud.azureml_cloud import Azure
from tests.project import TINY_PREPROCESS

ASKED = {
    "GET /discovery",
    "GET /history/v1.0/experiments/Default",
    "PUT /environment/v1.0/environments/carmodel",
    "GET /rp/workspaces/computes/gpu-cluster",
    "POST /content/v2.0/snapshots/getblob",
    "POST /execution/v1.0/experiments/Default/snapshotrun",
}


def test_mlflow_names_a_project_s_environment_otherwise_than_azureml_mlflow() -> None:
    """When this fails, `carmodel.cloud.azure` is not needed any more: `mlflow run -b azureml` works."""
    assert not hasattr(load_project("."), "conda_env_path")


def test_without_an_image_azure_ml_installs_the_project_s_packages() -> None:
    environment = environment_of(load_project(".").env_config_path, "")
    packages = environment.python.conda_dependencies.pip_packages
    assert {"tensorflow", "azureml-mlflow", "mlflow"} <= {package.partition("==")[0] for package in packages}
    assert environment.python.user_managed_dependencies is False


@pytest.mark.slow
def test_the_command_submits_the_project_and_the_job_runs_it(client: Azure, sources: Path) -> None:
    jobs, earlier = client.jobs, len(client.management.sent)
    known, snapshots = set(jobs.running), set(jobs.snapshots)
    words = [word for name, value in TINY_PREPROCESS.items() for word in ("-P", f"{name}={value}")]
    command = ["python", "-m", "carmodel.cloud.azure", "run", ".", "-e", "preprocess", "-b", "azureml", *words]
    command += ["--backend-config", "backends/azureml-gpu.json"]
    done = subprocess.run(command, cwd=sources, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scope = client.workspace.scope
    assert {f"{sent.method} {sent.path.replace(scope, '')}" for sent in client.region.sent} >= ASKED
    queries = {sent.query for sent in client.management.sent[earlier:] if (sent.method, sent.path) == ("GET", scope)}
    assert queries == {"api-version=2022-05-01"}

    (run_id,), (snapshot,) = set(jobs.running) - known, set(jobs.snapshots) - snapshots
    job, files, environment = jobs.running[run_id], set(jobs.snapshots[snapshot]), jobs.environments["carmodel"]
    assert job.wait() == 0, job.said()
    assert jobs.targets[run_id] == "gpu-cluster"
    assert {"MLproject", "steps/preprocess.py", "conda.yaml"} <= files
    assert not [path for path in files if path.startswith((".git/", ".venv/", "mlruns/"))]
    assert environment["docker"]["baseImage"] == "REGISTRY.azurecr.io/carmodel:gpu"
    assert environment["python"]["userManagedDependencies"] is True
    secret = client.workspace.identity.secret
    assert secret not in done.stdout + done.stderr + job.said()
    assert secret.encode() not in b"".join(sent.body for sent in client.region.sent)


@pytest.mark.slow
def test_the_failure_of_a_job_is_explained(client: Azure) -> None:
    submitted = submit_project_run("preprocess", {"data_uri": "/nowhere/cars"}, Path("backends/azureml.json"), "0")
    assert submitted.page.startswith("https://ml.azure.com/runs/")
    with pytest.raises(ExecutionException) as error:
        wait("preprocess", submitted)
    assert "preprocess ended as Failed on Azure ML run Default_" in str(error.value)
    assert "/nowhere/cars: no such file or directory" in str(error.value)
    assert mlflow.get_run(submitted.run_id).info.status == "FAILED"


def test_an_unknown_cluster_is_refused_with_the_service_s_message(client: Azure, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"COMPUTE": "no-such-cluster"}')
    with pytest.raises(InputError, match="no-such-cluster"):
        submit_project_run("preprocess", TINY_PREPROCESS, tmp_path / "config.json", "0")


def test_a_job_can_be_cancelled(client: Azure) -> None:
    with client.jobs.held():
        submitted = submit_project_run("preprocess", TINY_PREPROCESS, Path("backends/azureml.json"), "0")
    assert submitted.state().name == "Running"
    submitted.cancel()
    assert client.jobs.running[submitted.run_id].cancelled
    with pytest.raises(ExecutionException, match="ended as Canceled on Azure ML run"):
        wait("preprocess", submitted)
