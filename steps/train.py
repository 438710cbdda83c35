"""Train the network on the stores, in this process or in several that train together."""

import os
from typing import TYPE_CHECKING

from carmodel.parameters import Train
from carmodel.recipe import require
from carmodel.training.gpu_slots import ONE_GPU, take_gpu
from steps.command import run_step

if TYPE_CHECKING:
    from carmodel.tracking.runs import StepRun


def work(settings: Train, step: "StepRun") -> None:
    """Train in this process, or start the ranks and log what they print. `steps.train_rank` logs the outputs."""
    require("train", "store_uri", settings.store_uri, "preprocess")
    if settings.processes <= 1 and not settings.hosts and settings.launcher != "spark":
        if ONE_GPU in os.environ:
            take_gpu()  # before TensorFlow is imported
        from steps.train_rank import train

        train(settings, step)
        return
    import mlflow

    from carmodel.tracking.lineage import outputs_of
    from carmodel.training import launch, spark

    logs = step.folder / "ranks"
    function, arguments = "steps.train_rank:train_rank", (settings.model_dump_json(), step.run_id)
    environment = {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    try:
        if settings.launcher == "spark":
            spark.run(function, arguments, settings.processes, logs, environment, master=settings.spark_master)
        else:
            hosts = launch.check(settings.processes, settings.hosts)
            launch.run(function, arguments, hosts, logs, environment)
    finally:
        if logs.exists():
            mlflow.log_artifacts(str(logs), logs.name)
    step.outputs.update(outputs_of(mlflow.get_run(step.run_id)))


if __name__ == "__main__":
    run_step("train", Train, work)
