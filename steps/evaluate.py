"""Measure a logged model on the test store: accuracies, confusion matrix, worst mistakes."""

import json
from functools import partial
from typing import TYPE_CHECKING

from carmodel.parameters import Evaluate
from carmodel.recipe import require
from steps.command import run_step

if TYPE_CHECKING:
    from carmodel.tracking.runs import StepRun


def work(settings: Evaluate, step: "StepRun") -> None:
    """Predict every test photo, log the output `report` and its numbers as metrics ``test_…``.

    If the photos are cropped to boxes, also predict them as whole photos, with the metrics ``test_whole_…``.
    """
    import mlflow

    import steps.quiet_tensorflow  # noqa: F401
    from carmodel.data.preprocessing import WHOLE
    from carmodel.data.store import open_store
    from carmodel.evaluation.report import evaluate, summary_of, write_report
    from carmodel.mlflow_model import load_network
    from carmodel.model.folding import in_float32
    from carmodel.tracking.artifacts import fetch
    from carmodel.training.precision import gpus

    stores = fetch(require("evaluate", "store_uri", settings.store_uri, "preprocess"))
    store = open_store(stores / "test.h5")
    network, metadata = load_network(require("evaluate", "model_uri", settings.model_uri, "train"))
    predict = partial(
        evaluate,
        # On a CPU, bfloat16 is slower and gives other predictions than the served model, which is in float32.
        network if gpus() else in_float32(network),
        batch_size=settings.batch_size,
        class_names=metadata.get("class_names"),
        image_size=settings.image_size,
        flip=settings.flip,
    )
    report = step.folder / "report"
    numbers = write_report(report, predict(store), store, settings.mistakes, str(store.attrs["note"]))
    if (file := stores / WHOLE["test"]).is_file():
        whole = summary_of(predict(open_store(file)))
        numbers |= {f"whole_{name}": value for name, value in whole.items()}
        (report / "metrics.json").write_text(json.dumps(numbers, indent=2) + "\n")
    mlflow.log_metrics({f"test_{name}": value for name, value in numbers.items()})
    step.log_output(report, "report")
    without_box = f", top-1 without boxes {numbers['whole_top1']:.4f}" if "whole_top1" in numbers else ""
    step.summarise(f"test top-1 {numbers['top1']:.4f}, top-5 {numbers['top5']:.4f} on {len(store)} photos{without_box}")


if __name__ == "__main__":
    run_step("evaluate", Evaluate, work)
