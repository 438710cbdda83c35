"""The classifier as a logged MLflow model: signature, example, requirements, and all that it needs to run elsewhere."""

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

from carmodel.data.images import resize
from carmodel.errors import InputError
from carmodel.mlflow_model import log_model, pinned
from carmodel.model.head import with_mirror_image
from carmodel.model.scale import Scale
from carmodel.parameters import PackagePyfunc
from carmodel.serving import model_code
from carmodel.serving.calibration import Calibration, Predict
from carmodel.serving.classifier import TOP_K
from carmodel.serving.forward import Forward
from carmodel.serving.inference_model import InferenceModel, build_inference_model
from carmodel.serving.rows import BOX_COLUMNS
from carmodel.tracking.artifacts import fetch
from carmodel.tracking.digests import ROOT

MODEL_CODE = Path(model_code.__file__)
REQUIREMENTS = ("mlflow", "tensorflow", "keras", "numpy", "pandas", "opencv-python-headless", "pillow")
METADATA = ("class_names", "image_size", "crop", "margin")
LIMITS = ("max_rows", "max_bytes", "max_pixels", "max_decoded_bytes")


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
                ColSpec(DataType.boolean, "certain", required=False),
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


def log_classifier(
    settings: PackagePyfunc,
    photos: np.ndarray,
    calibrate: Callable[[Predict], Calibration] = lambda _: Calibration(),
    accuracy: Mapping[str, float] | None = None,
) -> tuple[ModelInfo, InferenceModel]:
    """Log the classifier of a Keras model in the active run, with the measures of its network as metrics.

    Its metadata are class_names, image_size, crop and margin of the Keras model, `trained_model` (the URI of that
    model), `folded`, `precision` and `flip`, as they came out, the limits, `temperature`, `certain_threshold` and, where
    it was measured, `certain_coverage`.

    Args:
        settings: `model_uri` names a Keras model logged with `mlflow.tensorflow`, with the metadata class_names,
            image_size, crop and margin: any URI that MLflow can download, or its folder. `folded`, `precision` and the
            limits are used.
        photos: uint8 (N, H, W, 3), on which folding and precision are checked.
        calibrate: fits temperature and threshold to the network that is packaged.
        accuracy: measures on the test photos, kept as metadata: test_top1, test_rows and, for photos that are sent
            without a box, test_whole_top1.

    Raises:
        InputError: `model_uri` is no such model, or takes photos of another size.
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
        raise InputError(f"image_size={size}: the network takes photos of {trained.input_shape[1]} px alone")
    inference = build_inference_model(trained, resized(photos, size), settings.folded, settings.precision)
    final = with_mirror_image(inference.network) if settings.flip else inference.network
    forward = Forward(final, size, inference.precision == "bfloat16")
    calibration = calibrate(lambda images: forward(resized(images, size)))
    mlflow.log_metrics(inference.metrics | calibration.metrics)
    mlflow.log_params({"served_folded": inference.folded, "served_precision": inference.precision})
    metadata = {fact: facts[fact] for fact in METADATA} | settings.model_dump(include=set(LIMITS))
    metadata |= {"folded": inference.folded, "precision": inference.precision}
    metadata |= {"image_size": size, "flip": settings.flip}
    metadata |= {"temperature": calibration.temperature, "certain_threshold": calibration.threshold}
    if "certain_coverage" in calibration.metrics:
        metadata["certain_coverage"] = calibration.metrics["certain_coverage"]
    with TemporaryDirectory(prefix="carmodel-") as scratch:
        final.save(network := Path(scratch, "model.keras"))
        # An artifact, since MLflow would log a `model_config` as parameters of the run, where 196 names are too long.
        texts = Path(scratch, "classifier.json")
        texts.write_text(json.dumps(metadata, indent=2) + "\n")
        info = log_model(
            "classifier",
            mlflow.pyfunc,
            python_model=MODEL_CODE,
            artifacts={"model": str(network), "settings": str(texts)},
            code_paths=[str(ROOT / "carmodel")],
            signature=signature(),
            input_example=input_example(),
            pip_requirements=pinned(*REQUIREMENTS),
            metadata=metadata | {"trained_model": settings.model_uri, **(accuracy or {})},
        )
    return info, inference


def resized(photos: np.ndarray, size: int) -> np.ndarray:
    """Resize square photos, uint8 (N, H, H, 3), to uint8 (N, size, size, 3)."""
    return photos if photos.shape[1] == size else np.stack([resize(photo, size, size) for photo in photos])
