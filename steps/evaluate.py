"""Measure a logged model on the test store, and write a report as one HTML page with its tables and pictures."""

import json
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from carmodel.parameters import Evaluate
from carmodel.recipe import require
from steps.command import run_step

if TYPE_CHECKING:
    import keras

    from carmodel.tracking.runs import StepRun


def work(settings: Evaluate, step: "StepRun") -> None:
    """Predict every test photo, log the output `report` and its numbers as metrics ``test_…``.

    If the photos are cropped to boxes, also predict them as whole photos, with the metrics ``test_whole_…``.
    """
    import mlflow

    import steps.quiet_tensorflow  # noqa: F401
    from carmodel.data.preprocessing import WHOLE, read_boxes
    from carmodel.data.store import open_store
    from carmodel.evaluation.predictions import evaluate, predictor
    from carmodel.evaluation.report import write_report
    from carmodel.evaluation.tables import Material
    from carmodel.evaluation.wilson import wilson_interval
    from carmodel.mlflow_model import training_parameters
    from carmodel.serving.calibration import temperature_on_stores
    from carmodel.tracking.artifacts import fetch
    from steps.conditions import conditions

    stores = fetch(require("evaluate", "store_uri", settings.store_uri, "preprocess"))
    store = open_store(stores / "test.h5")
    train = open_store(file) if (file := stores / "train.h5").is_file() else None
    whole = open_store(file) if (file := stores / WHOLE["test"]).is_file() else None
    predict = partial(evaluate, batch_size=settings.batch_size, image_size=settings.image_size, flip=settings.flip)

    network, names = load(require("evaluate", "model_uri", settings.model_uri, "train"))
    evaluation = predict(network, store, class_names=names)
    answer = predictor(network, settings.image_size, flip=settings.flip)
    temperature = temperature_on_stores(stores, answer, settings.batch_size)
    other = None
    if settings.compare_uri:
        other_network, other_names = load(settings.compare_uri, "compare_uri")
        other = predict(other_network, store, class_names=other_names), settings.compare_uri
    material = Material(
        model=settings.model_uri,
        calibrated=evaluation.calibrated(temperature) if temperature else None,
        temperature=temperature or 1.0,
        whole=predict(network, whole, class_names=names) if whole else None,
        boxes=read_boxes(stores),
        network=(network, settings.image_size),
        train=train,
        other=other,
        recipe={
            "the training": training_parameters(settings.model_uri),
            "this test": settings.model_dump(mode="json"),
        },
    )
    report = step.folder / "report"
    numbers = write_report(report, evaluation, store, settings.mistakes, str(store.attrs["note"]), material=material)
    (report / "settings.json").write_text(json.dumps(conditions(settings, store)) + "\n")
    mlflow.log_metrics({f"test_{name}": value for name, value in numbers.items()})
    step.log_output(report, "report")
    without_box = f", top-1 without boxes {numbers['whole_top1']:.4f}" if "whole_top1" in numbers else ""
    compared = f"; {numbers['gained']:.0f} photos gained, {numbers['lost']:.0f} lost" if other else ""
    low, high = wilson_interval(numbers["top1"], len(store))
    step.summarise(
        f"test top-1 {numbers['top1']:.4f} (95%: {low:.3f} to {high:.3f}), top-5 {numbers['top5']:.4f} on {len(store)} "
        f"photos{without_box}{compared}"
    )


def load(uri: str, parameter: str = "model_uri") -> "tuple[keras.Model, list[str] | None]":
    """Load the network that a parameter names, prepared for this device, and its class names (None for other projects)."""
    from carmodel.mlflow_model import load_network
    from carmodel.model.folding import fold, in_float32, is_functional
    from carmodel.training.precision import gpus

    network, metadata = load_network(uri, parameter)
    # Models of other projects need not be functional, and Keras cannot copy layers whose functions only MLflow knows.
    if not gpus() and is_functional(network):
        with suppress(TypeError, ValueError):
            # On a CPU, bfloat16 is slower and gives other predictions than the served model, which is in float32. Folding
            # is faster, and exact apart from rounding.
            network = fold(in_float32(network))
    return network, metadata.get("class_names")


if __name__ == "__main__":
    run_step("evaluate", Evaluate, work)
