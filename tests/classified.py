"""A small classifier with random weights, made without MLflow's store, and photos to send to it."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
from mlflow.pyfunc import PythonModelContext
from PIL import Image

from carmodel.data.images import prepare
from carmodel.model.folding import fold
from carmodel.serving.classifier import CarClassifier
from carmodel.serving.onnx_export import to_onnx
from tests.tiny import MARGIN, NAMES, SIZE, tiny_network

BOX = {"x1": 10, "y1": 8, "x2": 50, "y2": 40}
NO_BOX = dict.fromkeys(BOX)
LIMITS = {"max_rows": 40, "max_bytes": 40_000, "max_pixels": 100_000, "max_decoded_bytes": 10_000_000}


def small_network() -> keras.Model:
    """A folded residual network whose random weights tell photos apart."""
    return fold(tiny_network())


def small_classifier(network: keras.Model, folder: Path, **changed: object) -> CarClassifier:
    """The classifier of a network as MLflow would load it, with changed settings; its files are left in `folder`."""
    network.save(folder / "model.keras")
    facts = {"class_names": NAMES, "image_size": SIZE, "crop": "box", "margin": MARGIN, "precision": "float32"}
    (folder / "classifier.json").write_text(json.dumps(facts | LIMITS | changed))
    files = {"model": "model.keras", "settings": "classifier.json"}
    if changed.get("precision") != "bfloat16":
        (folder / "model.onnx").write_bytes(to_onnx(network, SIZE))
        files["onnx"] = "model.onnx"
    artifacts = {name: str(folder / file) for name, file in files.items()}
    classifier = CarClassifier()
    classifier.load_context(PythonModelContext(artifacts, model_config={}))
    return classifier


def photo(seed: int = 0, width: int = 64, height: int = 48, kind: str = ".jpg") -> bytes:
    """A file of smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.imencode(kind, cv2.resize(coarse, (width, height)))[1].tobytes()


def text(data: bytes) -> str:
    """A file as clients send it."""
    return base64.b64encode(data).decode()


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    """A picture as a file of any format that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def expected(network: keras.Model, data: bytes, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """Probabilities (C,) by way of preprocess."""
    return network.predict_on_batch(prepare(data, SIZE, box, MARGIN)[None])[0]


def check_answer(row: dict[str, Any], probabilities: np.ndarray, top_k: int = 5) -> None:
    """The row holds these probabilities, as numbers, and no error."""
    best = np.argsort(-probabilities)[:top_k]
    assert row["error"] is None
    assert [item["class_id"] for item in row["top_k"]] == best.tolist()
    assert [item["label"] for item in row["top_k"]] == [NAMES[i] for i in best]
    np.testing.assert_allclose([item["probability"] for item in row["top_k"]], probabilities[best], atol=1e-5)
    assert {name: row[name] for name in ("label", "class_id", "probability")} == row["top_k"][0]
    assert (type(row["class_id"]), type(row["probability"])) == (int, float)


def check_refused(row: dict[str, Any], words: str) -> None:
    """The row holds a short error with these words, and nothing else."""
    assert words in row["error"]
    assert len(row["error"]) < 120
    empty = {"label": None, "class_id": None, "probability": None, "top_k": [], "certain": None}
    assert {name: row[name] for name in empty} == empty
