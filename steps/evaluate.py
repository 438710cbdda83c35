"""Measure a logged model on the test store: accuracies, confusion matrix, worst mistakes."""

import mlflow

from carmodel.data.store import open_store
from carmodel.evaluation.report import evaluate, write_report
from carmodel.mlflow_model import load_network
from carmodel.model.folding import in_float32
from carmodel.parameters import Evaluate
from carmodel.recipe import require
from carmodel.tracking.artifacts import fetch
from carmodel.tracking.runs import StepRun
from carmodel.training.precision import gpus
from steps.command import run_step


def work(settings: Evaluate, step: StepRun) -> None:
    """Predict every test photo; leaves the report and its numbers as metrics ``test_…``."""
    store = open_store(fetch(require("evaluate", "store_uri", settings.store_uri, "preprocess")) / "test.h5")
    network, metadata = load_network(require("evaluate", "model_uri", settings.model_uri, "train"))
    evaluation = evaluate(
        # A CPU is slower in bfloat16, and its answers would not be those that are served.
        network if gpus() else in_float32(network),
        store,
        settings.batch_size,
        metadata.get("class_names"),
        image_size=settings.image_size,
        flip=settings.flip,
    )
    report = step.folder / "report"
    numbers = write_report(report, evaluation, store, settings.mistakes, str(store.attrs["note"]))
    mlflow.log_metrics({f"test_{name}": value for name, value in numbers.items()})
    step.log_output(report, "report")
    step.summarise(f"test top-1 {numbers['top1']:.4f}, top-5 {numbers['top5']:.4f} on {len(store)} photos")


if __name__ == "__main__":
    run_step("evaluate", work)
