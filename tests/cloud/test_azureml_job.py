"""Command jobs of Azure ML (v2): their YAML, the real client that submits them, and the entry point that they run."""

import re
from pathlib import Path

import mlflow
import pytest
import yaml
from azure.core.exceptions import HttpResponseError
from mlflow.exceptions import ExecutionException

from carmodel.cloud.azure import submit_command_job
from carmodel.cloud.waiting import wait
from carmodel.errors import InputError
from carmodel.parameters import STEPS
from tests.cloud.azureml_cloud import Azure
from tests.cloud.test_azureml_run import TINY, client  # noqa: F401  (the fixture)

JOBS = ["backends/azureml-job.yaml", "backends/azureml-job-gpu.yaml"]
CPU = Path(JOBS[0])


def ml_client(cloud: Azure):
    from azure.ai.ml import MLClient
    from azure.identity import DefaultAzureCredential

    workspace = cloud.workspace
    return MLClient(DefaultAzureCredential(), workspace.subscription, workspace.group, workspace.name)


@pytest.mark.parametrize("path", JOBS)
def test_the_yaml_is_read_by_the_client_and_runs_main_with_parameters_that_exist(path: str) -> None:
    from azure.ai.ml import load_job

    job = load_job(path)
    assert job._validate().passed
    main = yaml.safe_load(Path("MLproject").read_text())["entry_points"]["main"]
    module = main["command"].split()[2]
    assert job.command.split()[:3] == ["python", "-m", module]
    named = {name for step in STEPS.values() for name in step.model_fields} | set(main["parameters"])
    assert set(re.findall(r"--(\w+)", job.command)) <= named
    assert set(re.findall(r"inputs\.(\w+)", job.command)) == set(job.inputs)
    assert Path(path).parent.joinpath(yaml.safe_load(Path(path).read_text())["code"]).resolve() == Path().resolve()
    assert ("gpu" in path) == job.environment.image.endswith(":gpu")


def test_a_yaml_with_an_unknown_key_is_refused_by_the_client(tmp_path: Path, client: Azure) -> None:  # noqa: F811
    bad = tmp_path / "job.yaml"
    bad.write_text(CPU.read_text() + "gpus: 4\n")
    with pytest.raises(InputError, match="job.yaml"):
        submit_command_job("train", {}, bad, "0")


@pytest.mark.slow
def test_the_gpu_job_runs_on_photos_that_are_mounted(client: Azure, sample: Path) -> None:  # noqa: F811
    """As `az ml job create -f … --set command=…`: the real client's upload, code, environment and job."""
    from azure.ai.ml import load_job

    job = load_job(JOBS[1])
    job.command = "python -m steps.preprocess --data_uri ${{inputs.photos}} --image_size 16 --crop none"
    client.resources.mounts[job.inputs["photos"].path] = str(sample)
    known = len(client.management.sent)
    submitted = ml_client(client).jobs.create_or_update(job)
    running = client.jobs.running[submitted.name]
    assert running.wait(120) == 0, running.said()
    asked = [
        (sent.method, sent.path.replace(client.workspace.scope, "").split("/")[1])
        for sent in client.management.sent[known:]
    ]
    assert {("GET", "codes"), ("POST", "codes"), ("PUT", "codes"), ("PUT", "environments"), ("PUT", "jobs")} <= set(
        asked
    )
    kept = client.resources.kept[f"{client.workspace.scope}/jobs/{submitted.name}"]["properties"]
    assert kept["inputs"]["photos"]["mode"] == "ReadOnlyMount"
    assert kept["resources"] == {"instanceCount": 1, "properties": {}, "shmSize": "32g"}
    sent = client.resources.project_of(kept["codeId"])
    assert {"MLproject", "steps/main.py", "configs/gpu_finetune.yaml"} <= set(sent)
    assert not [path for path in sent if path.startswith((".git/", ".venv/"))]
    run = mlflow.get_run(submitted.name)
    assert run.info.status == "FINISHED" and "21 training" in run.data.tags["carmodel.summary"], run.data.tags


@pytest.mark.slow
def test_a_step_is_a_job_whose_failure_is_explained(client: Azure) -> None:  # noqa: F811
    submitted = submit_command_job("preprocess", {"data_uri": "/nowhere/my cars"}, CPU, "0")
    with pytest.raises(ExecutionException) as error:
        wait("preprocess", submitted)
    assert f"preprocess ended as Failed on Azure ML job {submitted.run_id}" in str(error.value)
    assert "/nowhere/my cars: no such file or directory" in str(error.value)


def test_a_job_that_is_cancelled_ends_over_there(client: Azure) -> None:  # noqa: F811
    client.jobs.environment["CARMODEL_HOLD"] = "1"
    try:
        submitted = submit_command_job("preprocess", TINY, CPU, "0")
    finally:
        del client.jobs.environment["CARMODEL_HOLD"]
    assert submitted.state().name == "Running"
    submitted.cancel()
    assert client.jobs.running[submitted.run_id].cancelled
    assert submitted.state() == ("Canceled", True, False, "")


@pytest.mark.parametrize(("status", "tries"), [(429, 2), (500, 2), (401, 1), (403, 1), (404, 1)])
def test_what_passes_is_tried_again_and_the_rest_said_at_once(client: Azure, status: int, tries: int) -> None:  # noqa: F811
    jobs = len(client.jobs.running)
    body = b'{"error": {"code": "Refused", "message": "the service says no"}}'
    fault = client.management.fail(
        "PUT", "/jobs/", status, headers={"Retry-After": "1"}, body=body, times=1 if tries == 2 else 99
    )
    client.jobs.environment["CARMODEL_HOLD"] = "1"
    try:
        if tries == 2:
            submit_command_job("preprocess", TINY, CPU, "0").cancel()
        else:
            with pytest.raises(HttpResponseError, match="the service says no"):
                submit_command_job("preprocess", TINY, CPU, "0")
    finally:
        del client.jobs.environment["CARMODEL_HOLD"]
        fault.times = 0
    assert len(client.jobs.running) - jobs == tries - 1
