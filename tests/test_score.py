"""score: the answers of the endpoint for many photos, in files that a rerun completes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pandas as pd
import psutil
import pytest

from carmodel.errors import InputError
from carmodel.serving import about
from carmodel.serving.score import FACTS, Engine, claim, count_errors, list_photos, local_engine, score
from steps.score import pinned
from tests.classified import BOX, photo
from tests.project import ROOT, environment
from tests.spark_cluster import executors, needs_spark, wait_until
from tests.tiny import log_tiny, tiny_network
from tests.tracked import new_database, tracked_in

PHOTOS = 12
BROKEN = "03.jpg"
MAX_ROWS = 2


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A tracking URI, and a registered classifier in it."""
    folder = tmp_path_factory.mktemp("registry")
    uri = new_database(folder)
    mlflow.set_tracking_uri(uri)
    with mlflow.start_run():
        version = mlflow.register_model(log_tiny(tiny_network(), max_rows=MAX_ROWS), "cars").version
    mlflow.MlflowClient().set_registered_model_alias("cars", "champion", version)
    yield uri, f"models:/cars/{version}"


@pytest.fixture(scope="module")
def engine(home: tuple[str, str]) -> Engine:
    return local_engine(home[1], MAX_ROWS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos in two directories, of which one is broken, and a text."""
    (inner := tmp_path / "photos" / "inner").mkdir(parents=True)
    for i in range(PHOTOS):
        (inner if i % 2 else inner.parent).joinpath(f"{i:02}.jpg").write_bytes(photo(i))
    (inner / BROKEN).write_bytes(b"not a photo")
    (inner / "notes.txt").write_text("no photo either")
    return inner.parent


def scored(photos: pd.DataFrame, output: Path, engine: Engine, format: str = "parquet", rows: int = 5) -> int:
    return score(photos, output, lambda: engine, format=format, rows_per_file=rows)


def test_an_output_that_cannot_be_a_directory_is_refused(tmp_path: Path) -> None:
    (file := tmp_path / "answers").write_text("")
    with pytest.raises(InputError, match=r"output=.*answers.*: .*; name a directory that can be written"):
        claim(file, pd.DataFrame({"file": ["a.jpg"]}), {})


def read_answers(output: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(file) for file in sorted(output.glob("part-*"))], ignore_index=True)


@pytest.mark.parametrize("content", [b"", b"file\na.jpg,1,2\n", "file\nä.jpg\n".encode("latin-1")])
def test_a_list_of_photos_that_is_no_csv_file_is_named(tmp_path: Path, content: bytes) -> None:
    (table := tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"list\.csv"):
        list_photos(table)


def test_a_name_in_another_encoding_is_written_with_escapes(engine: Engine, folder: Path, tmp_path: Path) -> None:
    (folder / "00.jpg").rename(odd := Path(os.fsdecode(os.fsencode(folder) + b"/\xe4.jpg")))
    photos = list_photos(folder)
    scored(photos, tmp_path, engine)
    answers = read_answers(tmp_path).set_index("file")
    assert answers.loc["\\udce4.jpg", "error"] is None
    assert odd.exists() and len(answers) == PHOTOS


def test_the_answers_are_those_of_the_endpoint(
    home: tuple[str, str], engine: Engine, folder: Path, tmp_path: Path
) -> None:
    photos = list_photos(folder)
    assert scored(photos, tmp_path, engine) == PHOTOS
    answers = read_answers(tmp_path)
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.jpg"))
    assert answers["file"].tolist() == files
    request = pd.DataFrame({"image": [(folder / file).read_bytes() for file in files]}, dtype=object)
    classifier = mlflow.pyfunc.load_model(home[1])
    expected = pd.concat([classifier.predict(request.iloc[[row]]) for row in range(PHOTOS)])
    for row, wanted in zip(answers.to_dict("records"), expected.to_dict("records"), strict=True):
        assert list(row["top_k"]) == wanted["top_k"]
        if wanted["error"] is None:
            assert {name: row[name] for name in ("label", "class_id", "probability")} == wanted["top_k"][0]
        else:
            assert row["file"].endswith(BROKEN)
            assert row["error"] == wanted["error"]
            assert pd.isna([row["label"], row["class_id"], row["probability"], row["certain"]]).all()


def test_a_csv_file_can_name_photos_and_boxes(engine: Engine, folder: Path, tmp_path: Path) -> None:
    corners = ",".join(map(str, BOX.values()))
    (folder / "list.csv").write_text(f"file,x1,y1,x2,y2\n00.jpg,{corners}\n00.jpg,,,,\ngone.jpg,,,,\n")
    scored(list_photos(folder / "list.csv"), tmp_path, engine)
    boxed, whole, gone = read_answers(tmp_path).to_dict("records")
    assert boxed["probability"] != whole["probability"]
    assert gone["error"] == "the file cannot be read: No such file or directory"


def test_boxes_of_a_directory_come_from_a_file_beside_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("file,x1,y1,x2,y2\ninner/01.jpg,1,2,30,40\n")
    photos = list_photos(folder, tmp_path / "boxes.csv").set_index("file")
    assert photos.loc["inner/01.jpg", ["x1", "y1", "x2", "y2"]].tolist() == [1, 2, 30, 40]
    assert photos["x1"].isna().sum() == PHOTOS - 1


def test_a_rerun_classifies_only_what_is_missing(engine: Engine, folder: Path, tmp_path: Path) -> None:
    photos, before = list_photos(folder), tmp_path / "before"
    before.mkdir()
    scored(photos, before, engine)
    after = Path(shutil.copytree(before, tmp_path / "after"))
    (after / "part-00001.parquet").unlink()
    assert scored(photos, after, engine) == 5
    assert scored(photos, after, pytest.fail) == 0
    assert read_answers(after).equals(read_answers(before))


def test_answers_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    photos = list_photos(folder)
    claim(tmp_path / "out", photos, {"model": "models:/cars/1"})
    claim(tmp_path / "out", photos, {"model": "models:/cars/1"})
    with pytest.raises(InputError, match="has answers to something else: model was models:/cars/1"):
        claim(tmp_path / "out", photos, {"model": "models:/cars/2"})
    with pytest.raises(InputError, match="number of photos was 12"):
        claim(tmp_path / "out", photos.head(3), {"model": "models:/cars/1"})


def test_csv_has_the_candidates_as_json(engine: Engine, folder: Path, tmp_path: Path) -> None:
    scored(list_photos(folder), tmp_path, engine, "csv", PHOTOS)
    table = pd.read_csv(tmp_path / "part-00000.csv", dtype={"class_id": "Int64"}).set_index("file")
    first = json.loads(table.loc["00.jpg", "top_k"])[0]
    assert (first["label"], first["class_id"]) == (table.loc["00.jpg", "label"], table.loc["00.jpg", "class_id"])
    assert count_errors(tmp_path) == 1


def test_every_name_of_a_model_that_can_move_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(about, "about_model", lambda uri: {})
    monkeypatch.setattr(mlflow.models, "get_model_info", lambda uri: SimpleNamespace(metadata={"max_rows": 8}))
    with tracked_in(tmp_path):
        client = mlflow.MlflowClient()
        client.create_registered_model("cars")
        for _ in range(2):
            client.create_model_version("cars", tmp_path.as_uri())
        client.set_registered_model_alias("cars", "champion", "1")
        assert pinned("models:/cars@champion") == ("models:/cars/1", 8)
        assert pinned("models:/cars/latest") == ("models:/cars/2", 8)
        assert pinned("models:/cars/1") == ("models:/cars/1", 8)
        assert pinned("dbfs:/Users/jane@corp.com/model") == ("dbfs:/Users/jane@corp.com/model", 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\na.jpg\n", "has no column file; it has path"),
        ("file\n", "has no photos"),
        ("file,x1,y1,x2,y2\na.jpg,1,2,3,4\nb.jpg,1.5,2,3,4\n", "x1 of b.jpg is '1.5'; give a whole number"),
        ("file,x1\na.jpg,left\n", "x1 of a.jpg is 'left'"),
        ("file,x1\na.jpg,1e30\n", "x1 of a.jpg is '1e30'"),
    ],
)
def test_a_csv_file_that_cannot_be_used_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=rf"list\.csv.*{message}"):
        list_photos(tmp_path / "list.csv")


@needs_spark
def test_spark_gives_the_same_answers_though_an_executor_is_killed(
    home: tuple[str, str], engine: Engine, folder: Path, tmp_path: Path
) -> None:
    (here := tmp_path / "here").mkdir()
    scored(list_photos(folder), here, engine)
    there = tmp_path / "there"
    options = {
        "model_uri": "models:/cars@champion", "photos": folder, "output": there, "rows_per_file": 6, "engine": "spark",
    }  # fmt: skip
    # Not a preloaded interpreter, whose executors would not be descendants of this command.
    command = [sys.executable, "-m", "steps.score", *(f"--{name}={value}" for name, value in options.items())]
    arguments = "--master local-cluster[2,1,1024] --conf spark.ui.enabled=false pyspark-shell"
    own = environment(str(Path(sys.executable).parent), PYSPARK_SUBMIT_ARGS=arguments, MLFLOW_TRACKING_URI=home[0])
    with (tmp_path / "driver.log").open("wb") as log:
        driver = subprocess.Popen(command, cwd=ROOT, env=own, stdout=log, stderr=log)
        try:
            wait_until(lambda: (there / "part-00000.parquet").exists() or driver.poll() is not None, "a part", 180)
            assert driver.poll() is None, (tmp_path / "driver.log").read_text()[-3000:]
            victim, *_ = executors(psutil.Process(driver.pid))
            victim.kill()
            assert not (there / "part-00001.parquet").exists(), "the executor was killed too late"
            driver.wait(timeout=180)
        finally:
            driver.kill()
    assert driver.returncode == 0, (tmp_path / "driver.log").read_text()[-3000:]
    assert read_answers(there).equals(read_answers(here))
    assert json.loads((there / FACTS).read_text())["model"] == home[1]
