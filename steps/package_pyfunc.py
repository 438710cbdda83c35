"""Package the network as a classifier of Base64 photos: log it, test it, register it, move the registry's aliases."""

import base64
import json
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from carmodel.errors import InputError
from carmodel.parameters import PackagePyfunc
from carmodel.recipe import require
from steps.command import run_step

if TYPE_CHECKING:
    from pathlib import Path

    from carmodel.data.store import Store
    from carmodel.tracking.runs import StepRun

CHECKED_PHOTOS = 256
"""Largest number of test photos that check folding and precision."""


def work(settings: PackagePyfunc, step: "StepRun") -> None:
    """Log the output `classifier`: a new version of the registered model, which has answered a request.

    Its probabilities are calibrated on the validation photos of train.h5, cropped and whole.
    """
    import mlflow

    import steps.quiet_tensorflow  # noqa: F401
    from carmodel.data.pictures import class_examples
    from carmodel.data.store import content_digest, evenly_spaced, open_store
    from carmodel.serving.about import EXAMPLES
    from carmodel.serving.calibration import calibrate_on_stores
    from carmodel.serving.packaging import ACCURACY, log_classifier
    from carmodel.serving.registry import promote, register
    from carmodel.tracking.artifacts import fetch
    from steps.conditions import conditions

    require("package_pyfunc", "model_uri", settings.model_uri, "train")
    store_uri = require("package_pyfunc", "store_uri", settings.store_uri, "preprocess")
    report = require("package_pyfunc", "evaluation_uri", settings.evaluation_uri, "evaluate")
    evaluation = fetch(report)
    measured = json.loads((evaluation / "metrics.json").read_text())
    accuracy = {name: measured[key] for name in ACCURACY if (key := name.removeprefix("test_")) in measured}
    stores = fetch(store_uri)
    store = open_store(stores / "test.h5")
    if note := difference(evaluation, conditions(settings, store)):
        print(f"package_pyfunc: {note}")

    photos = store.take(evenly_spaced(len(store), CHECKED_PHOTOS))
    info, inference = log_classifier(settings, photos, partial(calibrate_on_stores, stores), accuracy)
    for note in inference.notes:
        print(f"package_pyfunc: {note}")
    check_classifier(info.model_uri, store)
    name = settings.registered_model_name
    version = register(info.model_uri, name, measured["top1"], content_digest(store), report)
    promotion = promote(mlflow.MlflowClient(), name, version, settings.min_accuracy)

    if settings.example_pictures and (train := stores / "train.h5").is_file():
        (folder := step.folder / EXAMPLES).mkdir()
        class_examples(train, folder, settings.example_pictures)
        step.log_output(folder, EXAMPLES)
    step.add_output("classifier", f"models:/{name}/{version}")
    step.summarise(
        f"{name} version {version}: candidate{' and champion' if promotion.champion else ''}; {promotion.reason}; "
        f"{'folded' if inference.folded else 'not folded'}, {inference.precision}, "
        f"{'ONNX Runtime' if inference.onnx else 'TensorFlow'}"
    )


def difference(evaluation: "Path", used: Mapping[str, object]) -> str:
    """Return a sentence if `evaluate` used another image size or `flip` than the classifier, or "".

    Args:
        evaluation: the directory that `evaluate` logged. Those of earlier versions have no settings.json, or a shorter one.
        used: the `conditions` of this step.

    Raises:
        InputError: `evaluate` measured another model, or on other photos.
    """
    if not (file := evaluation / "settings.json").is_file():
        return ""
    measured = json.loads(file.read_text())
    wrong = [name for name in ("model", "test_store") if measured.get(name, used[name]) != used[name]]
    if wrong:
        raise InputError(
            f"evaluation_uri is the report on another model or on other photos: {_listed(measured, wrong)}, and this step "
            f"has {_listed(used, wrong)}; run evaluate with the same model_uri and store_uri"
        )
    settings = ("image_size", "flip")
    if all(measured[name] == used[name] for name in settings):
        return ""
    return (
        f"the accuracy of this version is not that of the classifier: it was measured with {_listed(measured, settings)}, "
        f"and the classifier uses {_listed(used, settings)}; give evaluate and package_pyfunc the same values"
    )


def _listed(values: Mapping[str, object], names: Iterable[str]) -> str:
    texts = {name: value if isinstance(value := values[name], str) else json.dumps(value) for name in names}
    return ", ".join(f"{name}={text}" for name, text in texts.items())


def check_classifier(uri: str, store: "Store") -> None:
    """Load the logged classifier, and check that it classifies the first test photo, sent as clients send it.

    Raises:
        InputError: the answer is an error. The classifier is not registered then.
    """
    import cv2
    import mlflow
    import numpy as np
    import pandas as pd

    png = cv2.imencode(".png", cv2.cvtColor(store.take(np.array([0]))[0], cv2.COLOR_RGB2BGR))[1].tobytes()
    request = pd.DataFrame({"image": [base64.b64encode(png).decode()]})
    (answer,) = mlflow.pyfunc.load_model(uri).predict(request).to_dict("records")
    if answer["error"] is not None or answer["label"] not in store.class_names:
        raise InputError(
            f"the classifier was not registered, because it cannot classify the first photo of test.h5: {answer['error']}. "
            "Check the limits max_bytes, max_pixels and max_decoded_bytes"
        )


if __name__ == "__main__":
    run_step("package_pyfunc", PackagePyfunc, work)
