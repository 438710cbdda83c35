"""The classifier as a logged MLflow model: signature, example, requirements, and all that it needs to run elsewhere."""

import base64
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import mlflow
import numpy as np
import pandas as pd
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Object, ParamSchema, ParamSpec, Property, Schema

from carmodel.errors import InputError
from carmodel.logged_model import pinned
from carmodel.serving import served
from carmodel.serving.classifier import TOP_K
from carmodel.serving.rows import BOX_COLUMNS
from carmodel.tracking import ROOT, fetch

SERVED = Path(served.__file__)
REQUIREMENTS = ("mlflow", "tensorflow", "keras", "numpy", "pandas", "opencv-python-headless", "pillow")
METADATA = ("class_names", "image_size", "crop", "margin")


def signature() -> ModelSignature:
    """Return the schema of request and response; see `carmodel.serving.classifier.CarClassifier.predict`.

    The columns that come in are declared as of any type. Typed ones would make MLflow refuse a whole request for one
    row: a `long` column may hold no null, and a `double` one no text and, in a pandas frame, no int64. So the
    classifier checks each row itself. The price, in MLflow 3.15: `mlflow.pyfunc` numbers the rows of a frame from 0 on
    before the classifier sees them, so there the answers come in the frame's order but without its index.
    """
    candidate = Object(
        [
            Property("label", DataType.string),
            Property("class_id", DataType.long),
            Property("probability", DataType.double),
        ]
    )
    return ModelSignature(
        inputs=Schema(
            [ColSpec(AnyType(), "image"), *(ColSpec(AnyType(), name, required=False) for name in BOX_COLUMNS)]
        ),
        outputs=Schema(
            [
                ColSpec(DataType.string, "label", required=False),
                ColSpec(DataType.long, "class_id", required=False),
                ColSpec(DataType.double, "probability", required=False),
                ColSpec(Array(candidate), "top_k"),
                ColSpec(DataType.string, "error", required=False),
            ]
        ),
        params=ParamSchema([ParamSpec("top_k", DataType.long, TOP_K)]),
    )


def input_example() -> tuple[pd.DataFrame, dict[str, int]]:
    """Return a request that works when posted: a small drawn picture without and with a box, and `top_k`."""
    picture = np.full((32, 48, 3), 200, np.uint8)
    cv2.rectangle(picture, (6, 12), (41, 22), (40, 40, 180), cv2.FILLED)
    for wheel in (14, 33):
        cv2.circle(picture, (wheel, 23), 4, (20, 20, 20), cv2.FILLED)
    encoded, data = cv2.imencode(".png", picture)
    if not encoded:
        raise RuntimeError("OpenCV could not encode the example picture as PNG")
    text = base64.b64encode(data.tobytes()).decode()
    boxes = dict(zip(BOX_COLUMNS, ([None, 6], [None, 12], [None, 42], [None, 28]), strict=True))
    return pd.DataFrame({"image": [text, text], **boxes}, dtype=object), {"top_k": 3}


def log_classifier(model_uri: str, max_pixels: int, max_rows: int, name: str = "classifier") -> ModelInfo:
    """Log the classifier of a Keras model in the active run.

    Args:
        model_uri: a Keras model logged with `mlflow.tensorflow`, with the metadata class_names, image_size, crop and
            margin: any URI that MLflow can download, or its folder.
        max_pixels: photos with more pixels are refused before they are decoded.
        max_rows: rows answered per request; the others get an error.
        name: the logged model's name.

    Raises:
        InputError: `model_uri` is no such model.
    """
    folder = fetch(model_uri)
    network = folder / "data" / "model.keras"
    facts = Model.load(folder).metadata or {} if (folder / "MLmodel").is_file() else {}
    if not network.is_file() or any(fact not in facts for fact in METADATA):
        raise InputError(
            f"{model_uri} is not a Keras model logged by train: it needs data/model.keras and the metadata "
            f"{', '.join(METADATA)}"
        )
    facts = {fact: facts[fact] for fact in METADATA}
    with TemporaryDirectory(prefix="carmodel-") as scratch:
        # An artifact, since MLflow would log a `model_config` as parameters of the run, where 196 names are too long.
        settings = Path(scratch, "classifier.json")
        settings.write_text(json.dumps(facts | {"max_pixels": max_pixels, "max_rows": max_rows}, indent=2) + "\n")
        return mlflow.pyfunc.log_model(
            name=name,
            python_model=SERVED,
            artifacts={"model": str(network), "settings": str(settings)},
            code_paths=[str(ROOT / "carmodel")],
            signature=signature(),
            input_example=input_example(),
            pip_requirements=pinned(*REQUIREMENTS),
            metadata=facts,
        )
