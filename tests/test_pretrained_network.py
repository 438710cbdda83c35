"""The pretrained weights: as good as their card says, and packaged so that they answer."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from carmodel.data import stanford_cars
from carmodel.errors import InputError
from carmodel.mlflow_model import load_initial
from carmodel.serving import pretrained_files
from carmodel.serving.pretrained import package_pretrained
from carmodel.tracking.digests import ROOT
from carmodel.tracking.paths import PRETRAINED
from tests.classified import photo
from tests.tracked import tracked_in

FACTS = json.loads(PRETRAINED.with_suffix(".json").read_text())
PHOTOS = 200


def test_the_card_and_the_facts_give_the_same_figures() -> None:
    card = (PRETRAINED.parent / "README.md").read_text()
    assert f"**{FACTS['test_top1']:.3f}**" in card and f"**{FACTS['test_top5']:.3f}**" in card


def test_all_files_together_are_small_enough_for_a_clone() -> None:
    assert sum(file.stat().st_size for file in PRETRAINED.parent.iterdir()) <= 24 * 2**20


def test_on_200_real_photos_the_packaged_classifier_is_as_good_as_its_card_says(photos: Path, tmp_path: Path) -> None:
    table = stanford_cars.read(photos, seed=0)
    test = table.photos[table.photos["split"] == "test"].sort_values("source").iloc[::10].head(PHOTOS)
    assert len(test) == PHOTOS
    request = test[["x1", "y1", "x2", "y2"]].assign(
        image=[base64.b64encode(Path(path).read_bytes()).decode() for path in test["path"]]
    )
    with tracked_in(tmp_path):
        answers = mlflow.pyfunc.load_model(package_pretrained()).predict(request)
    right = answers["label"].to_numpy() == np.array(table.class_names)[test["label"]]
    assert right.mean() == pytest.approx(FACTS["test_top1"], abs=0.05)


def test_only_a_classifier_that_was_measured_replaces_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"NETWORK": PRETRAINED.read_bytes(), "FACTS": PRETRAINED.with_suffix(".json").read_bytes()}
    (file := tmp_path / "new" / "network.keras").parent.mkdir()
    with tracked_in(tmp_path):
        uri = package_pretrained()
        monkeypatch.setattr(pretrained_files, "PRETRAINED", file)
        trained = (mlflow.models.get_model_info(uri).metadata or {})["trained_model"]
        with pytest.raises(InputError, match="its metadata lack .*test_top1"):
            pretrained_files.export(trained)
        assert list(file.parent.iterdir()) == []
        pretrained_files.export(uri)
    assert json.loads(file.with_suffix(".json").read_text()) == json.loads(files["FACTS"])
    assert len(file.read_bytes()) == pytest.approx(len(files["NETWORK"]), rel=0.01)


def test_a_keras_file_without_its_class_names_cannot_start_a_training(tmp_path: Path) -> None:
    (file := tmp_path / "network.keras").write_bytes(PRETRAINED.read_bytes())
    with pytest.raises(InputError, match=r"network\.json is missing"):
        load_initial(str(file))
    file.with_suffix(".json").write_text(json.dumps({"class_names": FACTS["class_names"]}))
    assert load_initial(str(file))[1] == FACTS["class_names"]
    for text, said in (
        (json.dumps({"class_names": ["a", "b"]}), "there are 2 class_names, and the network has 196 outputs"),
        ("{}", r"network\.json has no class_names"),
        ("no JSON", r"network\.json has no class_names"),
    ):
        file.with_suffix(".json").write_text(text)
        with pytest.raises(InputError, match=said):
            load_initial(str(file))


def test_it_is_packaged_once_and_answers(tmp_path: Path) -> None:
    with tracked_in(tmp_path):
        uri = package_pretrained()
        assert uri == "models:/carmodel-pretrained@champion"
        request = pd.DataFrame({"image": [base64.b64encode(photo()).decode()]})
        (answer,) = mlflow.pyfunc.load_model(uri).predict(request).to_dict("records")
        assert answer["error"] is None and answer["label"] in FACTS["class_names"]
        assert package_pretrained() == uri
        assert len(mlflow.MlflowClient().search_model_versions("name = 'carmodel-pretrained'")) == 1
        # `make serve` finds it within seconds, because it does not import TensorFlow.
        code = (
            "import sys; from carmodel.serving.pretrained import package_pretrained; print(package_pretrained()); "
            "sys.exit('tensorflow' in sys.modules)"
        )
        found = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (found.returncode, found.stdout.strip()) == (0, uri), found.stderr
