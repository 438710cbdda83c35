"""The GPU recipes in a tiny run on the CPU: `main` is killed after an epoch, and the same command resumes the training."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from carmodel.parameters import STEPS
from tests.project import Project, environment, happened
from tests.tracked import new_database

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(1800)]

TINY = {
    "preprocess.sample_classes": "3",
    "preprocess.sample_photos": "20",
    "preprocess.image_size": "48",
    "preprocess.validation_fraction": "0.2",
    "train.weights": "none",  # Keras would download them
    "train.epochs": "32x1,48x2",
    "train.batch_size": "16",
    "train.warmup_epochs": "1",
    "package_pyfunc.min_accuracy": "0",
    "package_pyfunc.registered_model_name": "tiny",
}


@pytest.mark.parametrize("recipe", ["gpu_finetune", "gpu_scratch"])
def test_a_killed_main_is_resumed_by_the_same_command(recipe: str, tmp_path: Path) -> None:
    project = Project(tmp_path / "project", environment(str(Path(sys.executable).parent), CUDA_VISIBLE_DEVICES=""))
    client = mlflow.MlflowClient(new_database(project.folder))
    chosen = ",".join(f"{name}={value}" for name, value in TINY.items())
    command = ["mlflow", "run", ".", "--env-manager", "local", f"-Pconfig={recipe}", f"-Pset={chosen}"]
    how = {"cwd": project.folder, "env": project.environment, "stdout": subprocess.PIPE, "text": True}

    killed = subprocess.Popen(command, start_new_session=True, stderr=subprocess.STDOUT, **how)
    printed = []
    for line in killed.stdout or []:
        printed.append(line)
        if line.startswith("epoch 2/3"):  # the checkpoint of the first epoch is complete
            os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "".join(printed)
    assert not any(line.startswith("epoch 3/3") for line in printed)

    again = subprocess.run(command, stderr=subprocess.STDOUT, check=False, **how)
    assert again.returncode == 0, again.stdout
    done = happened(again.stdout)
    assert (done["preprocess"], done["train"], done["evaluate"]) == ("reused", "ran", "ran")
    assert "epoch 3/3" in again.stdout and "epoch 1/3" not in again.stdout
    runs = {run.info.run_name: run for run in client.search_runs(["0"], "attributes.status = 'FINISHED'")}
    assert runs.keys() >= {"main", *STEPS} - {"augment"}
    assert [metric.step for metric in client.get_metric_history(runs["train"].info.run_id, "loss")][-1] == 2
