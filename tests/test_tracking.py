"""Runs of steps: outputs by URI, lineage, and the cache's rules on a real SQLite store."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent

import mlflow
import pytest
from mlflow.entities import Run

from carmodel.errors import InputError
from carmodel.parameters import Augment, Evaluate, Preprocess, Train
from carmodel.tracking import artifacts, cache, digests, lineage, paths, runs
from tests.tracked import tracked_in


@pytest.fixture(scope="module", autouse=True)
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with tracked_in(tmp_path_factory.mktemp("tracking")):
        yield


@pytest.fixture(autouse=True)
def experiment(tmp_path: Path) -> str:
    """A new experiment for each test."""
    return mlflow.set_experiment(experiment_id=mlflow.create_experiment(tmp_path.name, str(tmp_path))).experiment_id


def run_once(settings: Augment, text: str = "made") -> runs.StepRun:
    with runs.step_run("augment", settings) as step:
        folder = step.folder / "out"
        folder.mkdir()
        (folder / "file.txt").write_text(text)
        step.log_output(folder, "augmented")
    return step


def find(settings: Augment) -> Run | None:
    experiment = mlflow.tracking.fluent._get_experiment_id()
    return cache.find_reusable(cache.cache_key("augment", settings), experiment)


def test_an_output_comes_back_by_its_uri_without_a_copy() -> None:
    step = run_once(Augment(seed=1))
    uri = step.outputs["augmented"]["uri"]
    assert (artifacts.fetch(uri) / "file.txt").read_text() == "made"
    assert artifacts.fetch(uri) == artifacts.fetch(uri)
    assert not step.folder.exists()


def test_the_same_parameters_find_the_finished_run_and_others_do_not() -> None:
    step = run_once(Augment(seed=1))
    assert find(Augment(seed=1)).info.run_id == step.run_id
    assert find(Augment(seed=2)) is None


def test_a_failed_run_is_not_reused() -> None:
    with pytest.raises(RuntimeError), runs.step_run("augment", Augment()):
        raise RuntimeError
    assert find(Augment()) is None


def test_a_run_without_its_artifacts_is_not_reused() -> None:
    uri = run_once(Augment()).outputs["augmented"]["uri"]
    (artifacts.fetch(uri) / "file.txt").unlink()
    assert find(Augment()) is None
    shutil.rmtree(artifacts.fetch(run_once(Augment()).outputs["augmented"]["uri"]))
    assert find(Augment()) is None


def test_a_run_without_its_picture_is_not_reused() -> None:
    with runs.step_run("augment", Augment(seed=9)):
        mlflow.log_text("a picture", "picture.png")
    run = find(Augment(seed=9))
    assert run is not None
    (artifacts.fetch(run.info.artifact_uri) / "picture.png").unlink()
    assert find(Augment(seed=9)) is None


def test_a_step_that_logs_no_artifact_of_its_own_is_reused() -> None:
    with runs.step_run("augment", Augment(seed=11)) as step:
        pass
    assert find(Augment(seed=11)).info.run_id == step.run_id


def test_links_back_to_their_folder_are_followed_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "all").symlink_to(tmp_path / "data")
        (tmp_path / "data" / name / "photo.jpg").write_bytes(b"photo")
    assert digests.digest_of_path(tmp_path / "data")


def test_the_next_command_carries_the_outputs_and_the_inputs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    settings = Train(store_uri="runs:/1/data")
    outputs = {"model": {"uri": "models:/m-1", "digest": "", "listing": ""}}
    following = lineage.what_next("train", settings, outputs)
    assert (
        following == "mlflow run . -e evaluate --env-manager local -P store_uri=runs:/1/data -P model_uri=models:/m-1"
    )


def test_a_recipe_without_copies_goes_from_preprocess_to_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    outputs = {"data": {"uri": "runs:/1/data", "digest": "", "listing": ""}}
    for given, following in (({"config": "laptop"}, "train"), ({"config": "demo"}, "augment"), ({}, "augment")):
        assert f"-e {following} " in lineage.what_next("preprocess", Preprocess(), outputs, given)


def test_a_printed_command_runs_in_the_experiment_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {name: mlflow.set_experiment(name).experiment_id for name in ("usual", "other")}
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "usual")
    for name, said in (("usual", False), ("other", True)):
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", ids[name])
        assert (f"--experiment-id {ids[name]}" in lineage.command("main", {})) == said


def test_a_download_is_deleted_with_the_process() -> None:
    program = """
        from pathlib import Path
        from carmodel.tracking import artifacts

        def download(uri: str, dst_path: str) -> str:
            (file := Path(dst_path, "photo.txt")).write_text(uri)
            return str(file)

        artifacts.download_artifacts = download
        path = artifacts.fetch("s3://bucket/photo.txt")
        assert path.read_text() == "s3://bucket/photo.txt"
        print(path)
    """
    with TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(digests.ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", dedent(program)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    path = Path(done.stdout.strip())
    assert path.name == "photo.txt" and not path.parent.exists()


def test_the_key_follows_relative_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "ROOT", tmp_path)
    (package := tmp_path / "package" / "inner").mkdir(parents=True)
    for file, text in (
        ("__init__.py", "from .ops import change"),
        ("ops.py", "from .. import above"),
        ("../__init__.py", ""),
        ("../above.py", ""),
    ):
        (package / file).write_text(text)
    found = digests.sources_of(package / "__init__.py")
    assert {"ops.py", "above.py"} < {file.name for file in found}


def test_what_a_link_leads_to_belongs_to_the_input(tmp_path: Path) -> None:
    for name in ("real", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "real" / "photo.jpg").write_bytes(b"one")
    (tmp_path / "data" / "class").symlink_to(tmp_path / "real")
    before = cache.cache_key("preprocess", Preprocess(data_uri=f"file://{tmp_path}/data"))
    (tmp_path / "real" / "photo.jpg").write_bytes(b"two")
    assert cache.cache_key("preprocess", Preprocess(data_uri=f"file://{tmp_path}/data")) != before


def test_the_key_follows_the_contents_of_an_input_not_its_address(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "photo.jpg").write_bytes(b"same")
    keys = [cache.cache_key("preprocess", Preprocess(data_uri=str(tmp_path / name))) for name in ("a", "b")]
    assert keys[0] == keys[1]
    (tmp_path / "b" / "photo.jpg").write_bytes(b"others")
    assert cache.cache_key("preprocess", Preprocess(data_uri=str(tmp_path / "b"))) != keys[0]


def test_the_classes_beside_an_initial_network_count(tmp_path: Path) -> None:
    (file := tmp_path / "network.keras").write_bytes(b"weights")
    (classes := tmp_path / "network.json").write_text('{"class_names": ["a", "b"]}')
    before = cache.cache_key("train", Train(init=str(file)))
    classes.write_text('{"class_names": ["b", "a"]}')
    assert cache.cache_key("train", Train(init=str(file))) != before


def test_the_latest_version_of_a_model_is_another_input_after_each_registration() -> None:
    client = mlflow.MlflowClient()
    client.create_registered_model("cars")
    keys = []
    for _ in range(2):
        client.create_model_version("cars", "runs:/1/model")
        keys.append(cache.cache_key("train", Train(init="models:/cars/latest")))
    assert keys[0] != keys[1] == cache.cache_key("train", Train(init="models:/cars/2"))


@pytest.mark.parametrize("init", ["pretrained", "{}", "file:{}"])
def test_an_initial_network_and_its_classes_count_but_not_the_notes_beside_it(
    init: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "PRETRAINED", network := tmp_path / "stanford_cars.keras")
    init = init.format(network)
    network.write_bytes(b"weights")
    digests = [cache.digest_of_init(init)]
    network.with_suffix(".json").write_text("classes")
    digests.append(cache.digest_of_init(init))
    network.write_bytes(b"other weights")
    digests.append(cache.digest_of_init(init))
    assert len(set(digests)) == 3
    (tmp_path / "README.md").write_text("a card")
    assert cache.digest_of_init(init) == digests[-1]


def test_a_folder_with_the_name_of_a_value_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Train(backbone="resnet", weights="imagenet")
    before = cache.input_digests(settings)
    for name in ("resnet", "imagenet"):
        (tmp_path / name).mkdir()
    assert cache.input_digests(settings) == before


def test_bytecode_that_python_writes_beside_the_code_of_a_model_does_not_count(tmp_path: Path) -> None:
    (code := tmp_path / "model" / "code").mkdir(parents=True)
    (code / "layer.py").write_text("x = 1")
    before = artifacts.listing(tmp_path.as_uri()), digests.digest_of_path(tmp_path)
    (code / "__pycache__").mkdir()
    (code / "__pycache__" / "layer.cpython-311.pyc").write_bytes(b"bytecode")
    assert (artifacts.listing(tmp_path.as_uri()), digests.digest_of_path(tmp_path)) == before
    (code / "layer.py").write_text("x = 12")
    assert artifacts.listing(tmp_path.as_uri()) != before[0] and digests.digest_of_path(tmp_path) != before[1]


def test_a_run_made_again_with_the_same_bytes_gives_the_next_step_the_same_key() -> None:
    first, second = (run_once(Augment(seed=seed)).outputs["augmented"]["uri"] for seed in (1, 2))
    assert cache.cache_key("train", Train(augmented_uri=first)) == cache.cache_key("train", Train(augmented_uri=second))


def test_the_key_follows_the_sources_that_the_step_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "project"
    for folder in ("carmodel", "steps"):
        shutil.copytree(digests.ROOT / folder, copy / folder)
    shutil.copy(digests.ROOT / "requirements.lock", copy)
    for module in (cache, digests):
        monkeypatch.setattr(module, "ROOT", copy)
    keys = {step: cache.cache_key(step, settings) for step, settings in (("augment", Augment()), ("train", Train()))}
    scale = copy / "carmodel" / "model" / "scale.py"
    scale.write_text(scale.read_text() + "\n# changed\n")
    assert cache.cache_key("augment", Augment()) == keys["augment"]
    assert cache.cache_key("train", Train()) != keys["train"]
    (copy / "requirements.lock").write_text("")
    assert cache.cache_key("augment", Augment()) != keys["augment"]


def test_the_template_of_the_report_belongs_to_the_sources_of_evaluate() -> None:
    sources = digests.sources_of(digests.ROOT / "steps" / "evaluate.py")
    assert digests.ROOT / "carmodel" / "evaluation" / "static" / "report.html" in sources


def test_two_models_of_the_same_shape_are_two_inputs() -> None:
    keys = [cache.cache_key("evaluate", Evaluate(model_uri=f"models:/m-{name}")) for name in "ab"]
    assert keys[0] != keys[1]


def test_a_missing_input_is_named() -> None:
    with pytest.raises(InputError, match="no/such/folder"):
        artifacts.fetch("no/such/folder")
    for uri in ("runs:/0123/data", "models:/none@candidate", "s3://nowhere/photos", "http://localhost:1/photos"):
        with pytest.raises(InputError, match=uri):
            artifacts.fetch(uri)
        with pytest.raises(InputError, match=uri):
            cache.digest_of_input(uri)


def test_where_and_how_far_a_step_runs_is_not_part_of_the_key(tmp_path: Path) -> None:
    assert cache.cache_key("train", Train(resume="0123")) == cache.cache_key("train", Train())
    elsewhere = Preprocess(work_folder=str(tmp_path))
    assert cache.cache_key("preprocess", elsewhere) == cache.cache_key("preprocess", Preprocess())


def test_a_name_that_is_no_file_enters_the_key_unchanged() -> None:
    assert cache.digest_of_input("MobileNetV2") == "MobileNetV2"
    assert cache.cache_key("train", Train(backbone="MobileNetV2")) != cache.cache_key("train", Train())


def test_an_alias_counts_as_the_version_that_it_names(tmp_path: Path) -> None:
    client = mlflow.MlflowClient()
    client.create_registered_model(tmp_path.name)
    keys = []
    for version in ("1", "2", "1"):
        if len(keys) < 2:
            client.create_model_version(tmp_path.name, source=str(tmp_path))
        client.set_registered_model_alias(tmp_path.name, "champion", version)
        keys.append(cache.cache_key("train", Train(init=f"models:/{tmp_path.name}@champion")))
    assert keys[0] == keys[2] != keys[1]


def test_the_file_that_training_continues_from_counts_by_its_contents(tmp_path: Path) -> None:
    for parameter in ("init", "backbone"):
        keys = []
        for name, contents in (("a", b"one"), ("b", b"one"), ("c", b"two")):
            (file := tmp_path / f"{name}.keras").write_bytes(contents)
            keys.append(cache.cache_key("train", Train(**{parameter: str(file)})))
        assert keys[0] == keys[1] != keys[2], parameter
