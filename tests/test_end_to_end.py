"""The public commands: `mlflow run` in a subprocess on a copy of the project, cached, loaded elsewhere, served."""

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.entities import Run

from carmodel.data import stanford_cars
from carmodel.data.store import open_store
from carmodel.mlflow_model import load_network
from carmodel.parameters import STEPS
from carmodel.tracking.artifacts import fetch
from carmodel.tracking.digests import ROOT
from carmodel.tracking.lineage import outputs_of
from tests.endpoint import serve
from tests.tracked import tracked_in

pytestmark = pytest.mark.slow

TINY = (
    "preprocess.sample_classes=3,preprocess.sample_photos=10,preprocess.image_size=32,preprocess.seed=5,"
    "train.width=4,train.epochs=1,package_pyfunc.registered_model_name=tiny"
)
MLFLOW = Path(sys.executable).with_name("mlflow")


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return kept | {"PATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}


class Project:
    """A copy of the project, with its own tracking store in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("carmodel", "steps", "configs", "pretrained"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("MLproject", "conda.yaml", "requirements.lock"):
            shutil.copy(ROOT / name, folder)

    def run(self, *parameters: str, entry: str = "main") -> subprocess.CompletedProcess[str]:
        given = [word for parameter in parameters for word in ("-P", parameter)]
        command = [str(MLFLOW), "run", ".", "-e", entry, "--env-manager", "local", *given]
        return subprocess.run(
            command, cwd=self.folder, env=environment(), capture_output=True, text=True, timeout=900, check=False
        )

    def main(self, *parameters: str) -> dict[str, str]:
        """What happened to each step, as the table says: ran or reused."""
        done = self.run(f"set={TINY}", *parameters)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        words = [line.split() for line in done.stdout.splitlines()]
        return {line[0]: line[1] for line in words if line and line[0] in STEPS and line[1] in ("ran", "reused")}

    def runs(self) -> list[Run]:
        client = mlflow.MlflowClient(f"sqlite:///{self.folder}/mlflow.db")
        return client.search_runs(["0"], order_by=["attributes.start_time ASC"])

    def newest(self, step: str) -> Run:
        return next(run for run in reversed(self.runs()) if run.info.run_name == step)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("end-to-end") / "project")


@pytest.fixture(scope="module")
def first(project: Project) -> dict[str, str]:
    return project.main()


@pytest.fixture
def tracked(project: Project) -> Iterator[None]:
    with tracked_in(project.folder):
        yield


def test_main_runs_every_step_once_as_its_child(project: Project, first: dict[str, str]) -> None:
    assert first == dict.fromkeys(STEPS, "ran")
    main, *steps = project.runs()
    assert [run.info.run_name for run in (main, *steps)] == ["main", *STEPS]
    assert {run.data.tags["mlflow.parentRunId"] for run in steps} == {main.info.run_id}
    assert {run.info.status for run in (main, *steps)} == {"FINISHED"}


def test_every_step_logs_its_parameters_outputs_metrics_and_pictures(project: Project, first: dict[str, str]) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{project.folder}/mlflow.db")
    pictures = {
        "preprocess": "contact_sheet.png",
        "augment": "before_after.png",
        "train": "training_curves.png",
        "evaluate": "report/mistakes.png",
        "package_pyfunc": "examples/0.jpg",
    }
    for step, settings in STEPS.items():
        run = project.newest(step)
        assert set(settings.model_fields) <= set(run.data.params), step
        assert run.data.metrics["seconds"] > 0
        assert outputs_of(run), step
        if step in pictures:
            folder = str(Path(pictures[step]).parent)
            assert pictures[step] in [file.path for file in client.list_artifacts(run.info.run_id, folder)]
    assert {"loss", "accuracy", "images_per_second"} <= set(project.newest("train").data.metrics)
    assert {"test_top1", "test_top5"} <= set(project.newest("evaluate").data.metrics)


@pytest.mark.usefixtures("tracked")
def test_the_model_loads_by_every_flavor_in_a_process_that_has_no_source_of_ours(
    project: Project, first: dict[str, str], tmp_path: Path
) -> None:
    uri = outputs_of(project.newest("train"))["model"]["uri"]
    program = f"""
import sys, mlflow, numpy as np
mlflow.set_tracking_uri("sqlite:///{project.folder}/mlflow.db")
images = np.zeros((2, 32, 32, 3), np.uint8)
assert "carmodel" not in sys.modules
loaded = sys.argv[1]
if loaded == "keras":
    folder = mlflow.artifacts.download_artifacts({uri!r})
    sys.path.insert(0, folder + "/code")
    import carmodel.model.scale
    answers = mlflow.keras.load_model(folder).predict(images, verbose=0)
else:
    answers = getattr(mlflow, loaded).load_model({uri!r}).predict(images)
assert answers.shape == (2, 3) and np.allclose(answers.sum(1), 1, atol=1e-5)
"""
    for flavor in ("tensorflow", "pyfunc", "keras"):
        done = subprocess.run(
            [sys.executable, "-c", program, flavor], cwd=tmp_path, env=environment(), capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{flavor}: {done.stderr[-2000:]}"


@pytest.mark.usefixtures("tracked")
def test_mlflow_s_server_gives_each_test_photo_the_probabilities_of_preprocess_and_network(
    project: Project, first: dict[str, str], tmp_path: Path
) -> None:
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
    for answer, probabilities in zip(answers, network.predict(store.take(np.arange(len(store)))), strict=True):
        assert answer["error"] is None
        assert answer["label"].startswith("Synthetic")
        served = {item["class_id"]: item["probability"] for item in answer["top_k"]}
        np.testing.assert_allclose([served[i] for i in range(3)], probabilities, atol=2e-5)
    assert bad["label"] is None
    assert bad["error"]
    facts = mlflow.models.get_model_info(f"models:/tiny/{candidate.version}").metadata
    assert (facts["class_names"], facts["folded"], facts["precision"]) == (store.class_names, True, "float32")
    assert project.newest("package_pyfunc").data.metrics["folding_max_change"] <= 1e-5


def test_a_build_context_for_docker_holds_the_classifier_and_its_versions(
    project: Project, first: dict[str, str], tmp_path: Path
) -> None:
    command = [str(MLFLOW), "models", "generate-dockerfile", "-m", "models:/tiny@candidate", "-d", str(tmp_path)]
    tracked = environment() | {"MLFLOW_TRACKING_URI": f"sqlite:///{project.folder}/mlflow.db"}
    done = subprocess.run(command, env=tracked, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "COPY model_dir" in (tmp_path / "Dockerfile").read_text()
    pinned = (tmp_path / "model_dir" / "requirements.txt").read_text().splitlines()
    assert {f"{name}=={version(name)}" for name in ("tensorflow", "keras", "opencv-python-headless")} <= set(pinned)
    assert (tmp_path / "model_dir" / "code" / "carmodel" / "serving" / "classifier.py").is_file()


def test_the_same_main_again_reuses_every_step(project: Project, first: dict[str, str]) -> None:
    assert project.main() == dict.fromkeys(STEPS, "reused")


def test_a_training_parameter_reruns_training_and_what_follows(project: Project, first: dict[str, str]) -> None:
    happened = project.main("learning_rate=0.01")
    assert happened == dict.fromkeys(STEPS, "ran") | {"preprocess": "reused", "augment": "reused"}


def test_a_changed_source_reruns_the_steps_that_import_it(project: Project, first: dict[str, str]) -> None:
    source = project.folder / "carmodel" / "serving" / "registry.py"
    before = source.read_text()
    source.write_text(before + "\n# changed\n")
    try:
        assert project.main() == dict.fromkeys(STEPS, "reused") | {"package_pyfunc": "ran"}
    finally:
        source.write_text(before)


@pytest.mark.usefixtures("tracked")
def test_deleted_artifacts_are_made_again_and_the_same_bytes_reuse_what_follows(
    project: Project, first: dict[str, str]
) -> None:
    run = project.newest("augment")
    shutil.rmtree(Path(run.info.artifact_uri.removeprefix("file://")) / "augmented")
    assert project.main() == dict.fromkeys(STEPS, "reused") | {"augment": "ran"}


def test_fresh_reuses_nothing(project: Project, first: dict[str, str]) -> None:
    happened = project.main("fresh=true", "copies=0")
    assert happened == {step: "ran" for step in STEPS if step != "augment"}


@pytest.mark.parametrize(
    ("entry", "parameter", "said"),
    [
        ("main", "epoch=3", "no parameter 'epoch'; did you mean `epochs`?"),
        ("main", "depth=18", "train.depth=18: input should be 14, 26, 50, 101 or 152"),
        ("main", "set=train.epoch=3", "train has no parameter 'epoch'"),
        ("main", "config=configs/none.yaml", "configs/demo.yaml"),
        ("train", "epochs=3", "train needs store_uri"),
        ("augment", "store_uri=no/such/folder", "no/such/folder: no such file or directory"),
    ],
)
def test_a_wrong_parameter_ends_the_run_with_what_exists(
    project: Project, entry: str, parameter: str, said: str
) -> None:
    done = project.run(parameter, entry=entry)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_real_photos_go_through_the_whole_pipeline(project: Project, photos: Path) -> None:
    done = project.run(
        "config=configs/laptop.yaml", f"data_uri={photos}", "classes=6", "image_size=96", "epochs=1",
        "learning_rate=1e-5", "ema=0", "registered_model_name=real",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert project.newest("evaluate").data.metrics["test_top1"] > 2 / 6
