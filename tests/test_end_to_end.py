"""The public commands: `mlflow run` on a copy of the project, cached, loaded elsewhere, served."""

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.entities import Run

from carmodel.data import stanford_cars
from carmodel.data.store import open_store
from carmodel.mlflow_model import load_network, training_parameters
from carmodel.parameters import STEPS
from carmodel.serving.calibration import apply_temperature
from carmodel.tracking.artifacts import fetch
from carmodel.tracking.digests import ROOT
from carmodel.tracking.lineage import outputs_of
from tests.endpoint import serve
from tests.project import (
    TINY_PREPROCESS,
    Project,
    check_runs,
    copy_project,
    environment,
    finished_runs,
    happened,
)
from tests.tracked import new_database, tracked_in

pytestmark = pytest.mark.slow

INTERPRETER = str(Path(sys.executable).parent)
"""Folder of commands that start an interpreter."""


class Local(Project):
    """A copy of the project with a tracking store of its own, in the default place.

    Args:
        folder: a new one.
        commands: folder of `python` and `mlflow`.
    """

    def __init__(self, folder: Path, commands: str) -> None:
        # There may be fewer GPUs than ranks here.
        super().__init__(folder, environment(commands, CUDA_VISIBLE_DEVICES=""))
        self.uri = new_database(folder)
        (folder / "pretrained").symlink_to(ROOT / "pretrained")

    def tiny_main(self, *shared: str) -> dict[str, str]:
        """Run `main` with small parameters, and return what it did with each step: ran or reused."""
        own = {"preprocess__seed": "5", "package_pyfunc__registered_model_name": "tiny"}
        return happened(succeeded(self.main("Default", *shared, **own)).stdout)

    def runs(self) -> list[Run]:
        return mlflow.MlflowClient(self.uri).search_runs(["0"], order_by=["attributes.start_time ASC"])

    def newest(self, step: str) -> Run:
        return next(run for run in reversed(self.runs()) if run.info.run_name == step)


def succeeded(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def project(commands: str, tmp_path_factory: pytest.TempPathFactory) -> Local:
    return Local(tmp_path_factory.mktemp("end-to-end") / "project", commands)


@pytest.fixture(scope="module")
def first(project: Local) -> tuple[dict[str, str], list[Run]]:
    """What happened to each step in the first `main`, and the runs of main and its steps."""
    return project.tiny_main(), project.runs()


@pytest.fixture
def tracked(project: Local) -> Iterator[None]:
    with tracked_in(project.folder):
        yield


def test_main_runs_every_step_once_as_its_child(first: tuple[dict[str, str], list[Run]]) -> None:
    table, (main, *steps) = first
    assert table == dict.fromkeys(STEPS, "ran")
    assert [run.info.run_name for run in (main, *steps)] == ["main", *STEPS]
    assert {run.data.tags["mlflow.parentRunId"] for run in steps} == {main.info.run_id}
    assert {run.info.status for run in (main, *steps)} == {"FINISHED"}


@pytest.mark.usefixtures("first")
def test_every_step_logs_its_parameters_outputs_metrics_and_pictures(project: Local) -> None:
    client = mlflow.MlflowClient(project.uri)
    pictures = {
        "preprocess": "contact_sheet.png",
        "augment": "before_after.png",
        "train": "training_curves.png",
        "evaluate": "report/mistakes.png",
        "package_pyfunc": "examples/0.jpg",
    }
    check_runs(runs := finished_runs(client, "Default"))
    for step, picture in pictures.items():
        assert outputs_of(runs[step]), step
        folder = str(Path(picture).parent)
        assert picture in [file.path for file in client.list_artifacts(runs[step].info.run_id, folder)]


@pytest.mark.usefixtures("first", "tracked")
def test_the_model_loads_by_every_flavor_where_there_is_no_source_of_ours(project: Local, tmp_path: Path) -> None:
    uri = outputs_of(project.newest("train"))["model"]["uri"]
    program = f"""
import os, sys, mlflow, numpy as np, tensorflow
mlflow.set_tracking_uri({project.uri!r})
folder, images = mlflow.artifacts.download_artifacts({uri!r}), np.zeros((2, 32, 32, 3), np.uint8)
assert "carmodel" not in sys.modules
def answers(flavor):
    if flavor != "keras":
        return getattr(mlflow, flavor).load_model(folder).predict(images)
    sys.path.insert(0, folder + "/code")
    import carmodel.model.scale
    return mlflow.keras.load_model(folder).predict(images, verbose=0)
for flavor in ("tensorflow", "pyfunc", "keras"):
    if os.fork() == 0:
        probabilities = answers(flavor)
        assert probabilities.shape == (2, 3) and np.allclose(probabilities.sum(1), 1, atol=1e-5)
        os._exit(0)
    assert os.wait()[1] == 0, flavor
"""
    elsewhere = {"cwd": tmp_path, "env": project.environment, "capture_output": True, "text": True}
    succeeded(subprocess.run(["python", "-c", program], check=False, **elsewhere))


@pytest.mark.usefixtures("first", "tracked")
def test_the_endpoint_gives_each_photo_the_probabilities_of_the_network(project: Local, tmp_path: Path) -> None:
    candidate = mlflow.MlflowClient().get_model_version_by_alias("tiny", "candidate")
    assert candidate.run_id == project.newest("package_pyfunc").info.run_id
    folder = next(project.folder.glob("sample/*"))
    test = stanford_cars.read(folder).photos.query("split == 'test'").set_index("source")
    store = open_store(fetch(outputs_of(project.newest("preprocess"))["data"]["uri"]) / "test.h5")
    rows = [
        [base64.b64encode(Path(path).read_bytes()).decode(), *box]
        for path, *box in test.loc[store.source, ["path", "x1", "y1", "x2", "y2"]].to_numpy().tolist()
    ]
    columns = ["image", "x1", "y1", "x2", "y2"]
    body = {"dataframe_split": {"columns": columns, "data": [*rows, ["no photo", *[None] * 4]]}, "params": {"top_k": 3}}
    with serve("models:/tiny@candidate", tmp_path) as endpoint:
        *answers, bad = endpoint.predict(body)
    network, _ = load_network(outputs_of(project.newest("train"))["model"]["uri"])
    temperature = project.newest("package_pyfunc").data.metrics["temperature"]
    expected = apply_temperature(network.predict(store.take(np.arange(len(store)))), temperature)
    for answer, probabilities in zip(answers, expected, strict=True):
        assert answer["error"] is None
        assert answer["label"].startswith("Synthetic")
        served = {item["class_id"]: item["probability"] for item in answer["top_k"]}
        np.testing.assert_allclose([served[i] for i in range(3)], probabilities, atol=2e-5)
    assert bad["label"] is None
    assert bad["error"]


@pytest.mark.usefixtures("first", "tracked")
def test_the_registered_version_pins_its_packages_and_says_how_it_was_made(project: Local) -> None:
    uri = f"models:/tiny/{mlflow.MlflowClient().get_model_version_by_alias('tiny', 'candidate').version}"
    pinned = Path(mlflow.pyfunc.get_model_dependencies(uri)).read_text().splitlines()
    assert {f"{name}=={version(name)}" for name in ("onnxruntime", "opencv-python-headless")} <= set(pinned)
    facts = mlflow.models.get_model_info(uri).metadata
    assert (len(facts["class_names"]), facts["folded"], facts["precision"]) == (3, True, "float32")
    assert facts["engine"] == "onnxruntime"
    assert project.newest("package_pyfunc").data.metrics["folding_max_change"] <= 1e-5


@pytest.mark.usefixtures("first")
def test_the_same_main_again_reuses_every_step(project: Local) -> None:
    assert project.tiny_main() == dict.fromkeys(STEPS, "reused")


@pytest.mark.usefixtures("first")
@pytest.mark.skipif(find_spec("horovod") is None, reason="Horovod is not installed: make horovod")
def test_fresh_reuses_nothing_and_two_processes_make_one_run_a_step(project: Local) -> None:
    table = project.tiny_main("fresh=true", "copies=0", "processes=2", "batch_size=4")
    assert table == {step: "ran" for step in STEPS if step != "augment"}
    main, *steps = project.runs()[-len(STEPS) :]
    assert [run.info.run_name for run in (main, *steps)] == ["main", *table]
    train = project.newest("train")
    for rank in (0, 1):
        assert {f"images_per_second_rank_{rank}", f"all_reduce_seconds_rank_{rank}"} <= set(train.data.metrics)
    assert train.data.metrics["val_loss"] == pytest.approx(train.data.metrics["validation_loss"])
    logs = {file.path for file in mlflow.MlflowClient(project.uri).list_artifacts(train.info.run_id, "ranks")}
    assert logs == {"ranks/rank-0.log", "ranks/rank-1.log"}


@pytest.mark.parametrize(
    ("entry", "name", "value", "said"),
    [
        ("main", "epoch", "3", "no parameter 'epoch'; did you mean `epochs`?"),
        ("train", "epochs", "3", "train needs store_uri"),
        ("augment", "store_uri", "no/such/folder", "no/such/folder: no such file or directory"),
    ],
)
def test_a_wrong_parameter_is_an_error_without_traceback(
    project: Local, entry: str, name: str, value: str, said: str
) -> None:
    done = project.run("python", "-m", f"steps.{entry}", f"--{name}", value)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_real_photos_go_through_the_whole_pipeline(project: Local, photos: Path) -> None:
    given = (
        "config=configs/laptop.yaml", f"data_uri={photos}", "classes=3", "image_size=64", "epochs=1",
        "learning_rate=1e-5", "ema=0", "registered_model_name=real",
    )  # fmt: skip
    succeeded(project.run("mlflow", "run", ".", "--env-manager", "local", *(f"-P{value}" for value in given)))
    assert project.newest("evaluate").data.metrics["test_top1"] > 1 / 2


@pytest.mark.usefixtures("tracked")
def test_a_training_continues_from_a_registered_classifier(
    project: Local, first: tuple[dict[str, str], list[Run]]
) -> None:
    made = {run.info.run_name: outputs_of(run) for run in first[1]}
    given = {"store_uri": made["preprocess"]["data"]["uri"], "init": "models:/tiny/1", "learning_rate": "1e-9"}
    command = ("python", "-m", "steps.train", *(f"--{name}={value}" for name, value in given.items()), "--epochs=1")
    succeeded(project.run(*command))
    before, after = (
        load_network(output["model"]["uri"])[0] for output in (made["train"], outputs_of(project.newest("train")))
    )
    assert after.count_params() == before.count_params()
    for old, new in zip(before.trainable_variables, after.trainable_variables, strict=True):
        np.testing.assert_allclose(new, old, atol=1e-5, err_msg=old.path)


@pytest.mark.usefixtures("tracked")
def test_a_registered_classifier_is_evaluated_as_its_network(
    project: Local, first: tuple[dict[str, str], list[Run]]
) -> None:
    made = {run.info.run_name: run for run in first[1]}
    given = {
        "store_uri": outputs_of(made["preprocess"])["data"]["uri"],
        "model_uri": "models:/tiny/1",
        "compare_uri": outputs_of(made["train"])["model"]["uri"],
    }
    succeeded(project.run("python", "-m", "steps.evaluate", *(f"--{name}={value}" for name, value in given.items())))
    metrics = project.newest("evaluate").data.metrics
    assert metrics["test_log_loss"] == pytest.approx(made["evaluate"].data.metrics["test_log_loss"])
    assert (metrics["test_gained"], metrics["test_lost"]) == (0, 0)
    assert training_parameters("models:/tiny/1") == made["train"].data.params


def test_a_step_runs_from_a_git_url(commands: str, tmp_path: Path) -> None:
    """Git reads the repository of an address from a local one, so that nothing is downloaded."""
    repository, folder = copy_project(tmp_path / "repository"), tmp_path / "elsewhere"
    folder.mkdir()
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.com", "-C", str(repository)]
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "Everything"]):
        subprocess.run([*git, *command], check=True)
    address = "https://git.example/carmodel.git"
    uri = new_database(folder)
    variables = environment(
        commands, GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0=f"url.file://{repository}.insteadOf",
        GIT_CONFIG_VALUE_0=address, MLFLOW_TRACKING_URI=uri, TMPDIR=str(folder),
    )  # fmt: skip
    given = [f"-P{name}={value}" for name, value in TINY_PREPROCESS.items()]
    command = ["mlflow", "run", address, "-e", "preprocess", "--env-manager", "local", *given]
    succeeded(subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False))
    (run,) = mlflow.MlflowClient(uri).search_runs(["0"])
    assert run.data.tags["mlflow.project.entryPoint"] == "preprocess"
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize("terminal", [True, False], ids=["a-terminal", "another-process"])
def test_an_interrupted_main_leaves_no_run_running_and_prints_how_to_resume(tmp_path: Path, terminal: bool) -> None:
    """A terminal sends SIGINT to main and its steps, too; another process sends it to `mlflow run` alone."""
    # Forks would not be in the process group that a terminal interrupts.
    project = Local(tmp_path / "project", INTERPRETER)
    command = ["mlflow", "run", ".", "--env-manager", "local", "-P", "set=preprocess.sample_photos=5000"]
    how = {"cwd": project.folder, "env": project.environment, "stdout": subprocess.PIPE, "text": True}
    started = subprocess.Popen(command, start_new_session=True, **how)
    while not list(project.folder.glob("sample/.*")):  # the step draws its photos
        assert started.poll() is None
        time.sleep(0.1)
    if terminal:
        os.killpg(started.pid, signal.SIGINT)
    else:
        started.send_signal(signal.SIGINT)
    printed, _ = started.communicate(timeout=60)  # drawing all photos would take longer
    assert {run.info.run_name: run.info.status for run in project.runs()} == dict.fromkeys(
        ("main", "preprocess"), "FAILED"
    )
    resume = "mlflow run . --env-manager local -P config=configs/demo.yaml -P set=preprocess.sample_photos=5000"
    assert printed.splitlines()[-1] == f"main: interrupted; to resume: {resume}"
