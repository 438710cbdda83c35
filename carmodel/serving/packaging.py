"""Log the classifier as an MLflow model, with its signature, example, requirements and source code."""

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import keras
import mlflow
import numpy as np
import pandas as pd
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Object, ParamSchema, ParamSpec, Property, Schema

from carmodel.data.images import resize_squares
from carmodel.errors import InputError
from carmodel.mlflow_model import log_model, pinned
from carmodel.model.scale import Scale
from carmodel.parameters import PackagePyfunc
from carmodel.serving import model_code
from carmodel.serving.calibration import Calibration, Predict
from carmodel.serving.classifier import TOP_K
from carmodel.serving.inference_model import InferenceModel, build_inference_model
from carmodel.serving.rows import BOX_COLUMNS
from carmodel.tracking.artifacts import fetch
from carmodel.tracking.digests import ROOT

MODEL_CODE = Path(model_code.__file__)
REQUIREMENTS = ("mlflow", "numpy", "pandas", "opencv-python-headless", "pillow")
ENGINE_REQUIREMENTS = {"onnxruntime": ("onnxruntime",), "tensorflow": ("tensorflow", "keras")}
METADATA = ("class_names", "image_size", "crop", "margin")
ACCURACY = ("test_top1", "test_top5", "test_whole_top1", "test_rows")
"""Measures on the test photos that are metadata of a classifier, if they are known."""
LIMITS = ("max_rows", "max_bytes", "max_pixels", "max_decoded_bytes")


def signature() -> ModelSignature:
    """Return the schema of requests and answers; see `carmodel.serving.classifier.CarClassifier.predict`.

    The input columns have any type. With typed columns, MLflow would refuse a whole request because of one row: a `long`
    column cannot contain null, and a `double` column cannot contain text or, in a pandas frame, int64. Therefore the
    classifier checks each row itself. In MLflow 3.15 this has a drawback: `mlflow.pyfunc` replaces the index of a frame
    before it calls the classifier, so the answers have the order of the frame but not its index.
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
                ColSpec(DataType.boolean, "certain", required=False),
                ColSpec(DataType.string, "error", required=False),
            ]
        ),
        params=ParamSchema([ParamSpec("top_k", DataType.long, TOP_K)]),
    )


def input_example() -> tuple[pd.DataFrame, dict[str, int]]:
    """Return a valid request: a small drawn picture without and with a box, and `top_k`."""
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


def log_classifier(
    settings: PackagePyfunc,
    photos: np.ndarray,
    calibrate: Callable[[Predict], Calibration] = lambda _: Calibration(),
    accuracy: Mapping[str, float] | None = None,
) -> tuple[ModelInfo, InferenceModel]:
    """Log the classifier of a Keras model in the active run, with the measures of its network as metrics.

    Its metadata are class_names, crop and margin of the Keras model, `image_size` and `flip` as served, `trained_model`
    (the URI of the Keras model), `folded` and `precision` (whether the checks allowed them), `engine`, the limits,
    `temperature`, `certain_threshold` and, where it was measured, `certain_coverage`.

    Args:
        settings: `model_uri` is a directory or any URI that MLflow can download. It contains a Keras model that was
            logged with `mlflow.tensorflow`, with the metadata class_names, image_size, crop and margin. `image_size`,
            `flip`, `folded`, `precision` and the limits are used too.
        photos: uint8 (N, H, W, 3), on which folding and precision are checked.
        calibrate: fits temperature and threshold to the network that is packaged.
        accuracy: measures on the test photos, kept as metadata: test_top1, test_rows and, for photos that are sent
            without a box, test_whole_top1.

    Raises:
        InputError: `model_uri` is not such a model, or its network needs another image size.
    """
    folder = fetch(settings.model_uri)
    file = folder / "data" / "model.keras"
    facts = Model.load(folder).metadata or {} if (folder / "MLmodel").is_file() else {}
    if not file.is_file() or any(fact not in facts for fact in METADATA):
        raise InputError(
            f"{settings.model_uri} is not a Keras model logged by train: it needs data/model.keras and the metadata "
            f"{', '.join(METADATA)}"
        )
    trained = keras.saving.load_model(file, custom_objects={"Scale": Scale}, compile=False)
    size = settings.image_size or facts["image_size"]
    if any(side not in (None, size) for side in trained.input_shape[1:3]):
        raise InputError(
            f"image_size={size}: the network accepts only {trained.input_shape[1]} px; leave image_size out"
        )
    inference = build_inference_model(
        trained, resize_squares(photos, size), settings.folded, settings.precision, settings.flip
    )
    calibration = calibrate(lambda images: inference.forward(resize_squares(images, size)))
    mlflow.log_metrics(inference.metrics | calibration.metrics)
    mlflow.log_params({"served_folded": inference.folded, "served_precision": inference.precision})
    metadata = {fact: facts[fact] for fact in METADATA} | settings.model_dump(include={"flip", *LIMITS})
    metadata |= {"image_size": size, "folded": inference.folded, "precision": inference.precision}
    metadata["engine"] = inference.engine
    metadata |= {"temperature": calibration.temperature, "certain_threshold": calibration.threshold}
    if "certain_coverage" in calibration.metrics:
        metadata["certain_coverage"] = calibration.metrics["certain_coverage"]
    with TemporaryDirectory(prefix="carmodel-") as scratch:
        inference.network.save(network := Path(scratch, "model.keras"))
        artifacts = {"model": str(network)}
        if inference.onnx:
            (onnx := Path(scratch, "model.onnx")).write_bytes(inference.onnx)
            artifacts["onnx"] = str(onnx)
        # An artifact, because MLflow logs a `model_config` as parameters of the run, which cannot hold 196 names.
        texts = Path(scratch, "classifier.json")
        texts.write_text(json.dumps(metadata, indent=2) + "\n")
        info = log_model(
            "classifier",
            mlflow.pyfunc,
            python_model=MODEL_CODE,
            artifacts=artifacts | {"settings": str(texts)},
            code_paths=[str(ROOT / "carmodel")],
            signature=signature(),
            input_example=input_example(),
            pip_requirements=pinned(*REQUIREMENTS, *ENGINE_REQUIREMENTS[inference.engine]),
            metadata=metadata | {"trained_model": settings.model_uri, **(accuracy or {})},
        )
    return info, inference
