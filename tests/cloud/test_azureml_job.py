"""Command jobs of Azure ML (v2): their YAML, the real client that submits them, and the entry point that they run."""

import re
from pathlib import Path

import mlflow
import pytest
import yaml
from azure.ai.ml import MLClient, load_job
from azure.core.exceptions import HttpResponseError
from azure.identity import DefaultAzureCredential
from mlflow.exceptions import ExecutionException

from carmodel.cloud.azure import submit_command_job
from carmodel.cloud.waiting import wait
from carmodel.errors import InputError
from carmodel.parameters import STEPS
from tests.cloud.azureml_cloud import Azure
from tests.project import TINY_PREPROCESS

CPU, GPU = "backends/azureml-job.yaml", "backends/azureml-job-gpu.yaml"


@pytest.mark.parametrize("path", [CPU, GPU])
def test_the_yaml_is_read_by_the_client_and_runs_main_with_parameters_that_exist(path: str) -> None:
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


def test_a_yaml_with_an_unknown_key_is_refused_by_the_client(tmp_path: Path, client: Azure) -> None:
    bad = tmp_path / "job.yaml"
    bad.write_text(Path(CPU).read_text() + "gpus: 4\n")
    with pytest.raises(InputError, match="job.yaml"):
        submit_command_job("train", {}, bad, "0")


@pytest.mark.slow
def test_the_gpu_job_runs_on_mounted_photos(client: Azure, sample: Path, sources: Path) -> None:
    """As `az ml job create -f … --set command=…`: the real client's upload, code, environment and job."""
    job, resources, workspace = load_job(sources / GPU), client.resources, client.workspace
    job.command = "python -m steps.preprocess --data_uri ${{inputs.photos}} --image_size 16 --crop none"
    resources.mounts[job.inputs["photos"].path] = str(sample)
    ml = MLClient(DefaultAzureCredential(), workspace.subscription, workspace.group, workspace.name)
    submitted = ml.jobs.create_or_update(job)
    running = client.jobs.running[submitted.name]
    assert running.wait() == 0, running.said()
    kept = resources.kept[f"{workspace.scope}/jobs/{submitted.name}"]["properties"]
    assert kept["inputs"]["photos"]["mode"] == "ReadOnlyMount"
    assert kept["resources"] == {"instanceCount": 1, "properties": {}, "shmSize": "32g"}
    sent = resources.project_of(kept["codeId"])
    assert {"MLproject", "steps/main.py", "configs/gpu_finetune.yaml"} <= set(sent)
    assert not [path for path in sent if path.startswith((".git/", ".venv/", "mlruns/"))]
    run = mlflow.get_run(submitted.name)
    assert run.info.status == "FINISHED" and "21 training" in run.data.tags["carmodel.summary"], run.data.tags


@pytest.mark.slow
def test_a_step_is_a_job_whose_failure_is_explained(client: Azure) -> None:
    submitted = submit_command_job("preprocess", {"data_uri": "/nowhere/my cars"}, Path(CPU), "0")
    with pytest.raises(ExecutionException) as error:
        wait("preprocess", submitted)
    assert f"preprocess ended as Failed on Azure ML job {submitted.run_id}" in str(error.value)
    assert "/nowhere/my cars: no such file or directory" in str(error.value)


def test_a_job_keeps_the_tags_of_its_file(client: Azure, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(Path(CPU).read_text() + "tags: {cost-center: '42'}\n")
    with mlflow.start_run() as main, client.jobs.held():
        submitted = submit_command_job("preprocess", TINY_PREPROCESS, tmp_path / "job.yaml", "0")
    submitted.cancel()
    kept = client.resources.kept[f"{client.workspace.scope}/jobs/{submitted.run_id}"]["properties"]
    assert kept["tags"] == {"cost-center": "42", "mlflow.parentRunId": main.info.run_id}


def test_a_job_can_be_cancelled(client: Azure) -> None:
    with client.jobs.held():
        submitted = submit_command_job("preprocess", TINY_PREPROCESS, Path(CPU), "0")
    assert submitted.state().name == "Running"
    submitted.cancel()
    assert client.jobs.running[submitted.run_id].cancelled
    assert submitted.state() == ("Canceled", True, False, "")


def test_a_job_gets_the_pretrained_weights_only_if_it_uses_them(client: Azure) -> None:
    for parameters, sent in (({}, False), ({"init": "pretrained"}, True)):
        with client.jobs.held():
            submitted = submit_command_job("train", parameters, Path(CPU), "0")
        submitted.cancel()
        kept = client.resources.kept[f"{client.workspace.scope}/jobs/{submitted.run_id}"]["properties"]
        files = set(client.resources.project_of(kept["codeId"]))
        assert {"MLproject", "steps/train.py"} <= files
        assert ("pretrained/stanford_cars.keras" in files) == sent


@pytest.mark.parametrize(("status", "retried"), [(429, True), (500, True), (401, False), (403, False)])
def test_a_passing_fault_is_retried_and_any_other_raised(client: Azure, status: int, retried: bool) -> None:
    jobs = len(client.jobs.running)
    body = b'{"error": {"code": "Refused", "message": "the service says no"}}'
    # The SDK sends a refused job again in another version of the API, so the fault stays.
    times = 1 if retried else 99
    fault = client.management.fail("PUT", "/jobs/", status, headers={"Retry-After": "1"}, body=body, times=times)
    with client.jobs.held():
        if retried:
            submit_command_job("preprocess", TINY_PREPROCESS, Path(CPU), "0").cancel()
        else:
            with pytest.raises(HttpResponseError, match="the service says no"):
                submit_command_job("preprocess", TINY_PREPROCESS, Path(CPU), "0")
    fault.times = 0
    assert len(client.jobs.running) - jobs == int(retried)
