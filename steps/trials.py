"""Run the trials of a search: each one is an MLflow run, whose child runs are the steps augment and train."""

import math
import os
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from threading import Event
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import ExecutionException
from optuna.trial import Trial, TrialState

from carmodel.data.threads import cores
from carmodel.parameters import Settings
from carmodel.recipe import SettingsError
from carmodel.tracking.processes import terminate_children
from carmodel.tracking.unfinished import process_tags
from carmodel.training.gpu_slots import ONE_GPU
from carmodel.training.search import STATES, Search, with_values
from steps.pipeline import Pipeline, uris

Running = dict[Future[TrialState | None], Trial]


class Trials:
    """Runs trials until the search has enough of them, or until its time is over.

    Only the calling thread starts and ends trials. Each trial has a thread that waits for its steps.

    Args:
        search: proposes the trials.
        pipeline: runs or reuses the steps.
        data: URI of the stores.
        parent: id of the run of the sweep.
        began: time of `time.monotonic` at which the sweep began.
    """

    def __init__(self, search: Search, pipeline: Pipeline, data: str, parent: str, began: float) -> None:
        self.search, self.pipeline, self.data, self.parent = search, pipeline, data, parent
        self.settings = search.recipe.sweep
        self.deadline = began + self.settings.minutes * 60 if self.settings.minutes else math.inf
        self.stopping = Event()

    def run(self) -> None:
        """Finish the trials that were stopped, then run new ones.

        Raises:
            InputError: the input of a step cannot be used.
            ExecutionException: the first trial failed, so others would probably fail, too.
        """
        stopped, running = self.search.unfinished(), Running()
        if self.settings.parallel > 1:  # each training uses its share of the cores, and one GPU
            os.environ[ONE_GPU] = "true"
            share = max(1, cores() // self.settings.parallel)
            os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(share))
            os.environ.setdefault("OMP_NUM_THREADS", str(share))
        with ThreadPoolExecutor(self.settings.parallel) as pool:
            try:
                while True:
                    while len(running) < self.settings.parallel and (trial := self.next(stopped)):
                        running[pool.submit(self.run_trial, trial, self.search.values(trial))] = trial
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        self.finish(running.pop(future), future)
            except BaseException:
                self.stopping.set()
                while any(not future.done() for future in running):
                    with suppress(KeyboardInterrupt):  # it is stopping already
                        terminate_children()
                        wait(running, timeout=1)
                raise

    def next(self, stopped: list[Trial]) -> Trial | None:
        """Return the next trial to run, or None if there is none, or no time for it."""
        if self.is_over():
            return None
        if stopped:
            trial = stopped.pop(0)
            print(f"sweep: trial {trial.number} continues", flush=True)
            return trial
        return self.search.ask() if self.search.started() < self.settings.trials else None

    def is_over(self) -> bool:
        """Return whether no further step may start."""
        return self.stopping.is_set() or time.monotonic() > self.deadline

    def finish(self, trial: Trial, future: Future[TrialState | None]) -> None:
        """Tell the study how a trial ended. A trial that ran out of time stays unfinished, and continues next time."""
        try:
            state = future.result()
        except (ExecutionException, SettingsError) as error:
            if trial.number == 0:  # it stays unfinished, too
                raise
            print(f"sweep: trial {trial.number}: {error}", flush=True)
            state = TrialState.FAIL
        if state == TrialState.COMPLETE:
            values = self.search.record(trial).intermediate_values
            self.search.study.tell(trial, values[max(values)])
        elif state is not None:
            self.search.study.tell(trial, state=state)
        print(f"sweep: trial {trial.number} is {STATES[state or TrialState.RUNNING]}", flush=True)

    def run_trial(self, trial: Trial, values: dict[str, Any]) -> TrialState | None:
        """Run the steps of a trial, with one complete training per rung.

        Returns:
            COMPLETE, PRUNED, or None if the time was over before the trial was complete.
        """
        shown = ", ".join(f"{name}={value}" for name, value in values.items())
        print(f"sweep: trial {trial.number}: {shown}", flush=True)
        recipe, schedules = with_values(self.search.recipe, values), self.settings.rungs
        with mlflow.start_run(
            experiment_id=self.pipeline.experiment_id,
            run_name=f"trial {trial.number}",
            parent_run_id=self.parent,
            tags={**process_tags(), "carmodel.study": self.settings.study},
        ) as run:
            trial.set_user_attr("run", run.info.run_id)
            mlflow.log_params(values)
            inputs = {"store_uri": self.data}
            if recipe.augment.copies:
                inputs["augmented_uri"] = uris(self.step("augment", recipe.augment, **inputs))["augmented"]
            for rung, epochs in enumerate(schedules or (recipe.train.epochs,)):
                if self.is_over():
                    return None
                training = self.step("train", recipe.train.model_copy(update={"epochs": epochs}), **inputs)
                accuracy = training.data.metrics["val_accuracy"]
                mlflow.log_metric("val_accuracy", accuracy, step=rung)
                self.search.report(trial, accuracy, rung, epochs)
                print(
                    f"sweep: trial {trial.number}: validation accuracy {accuracy:.4f} with epochs={epochs}", flush=True
                )
                # The first trial competes with the others, but has the recipe's own values, so it is never pruned.
                if rung + 1 < len(schedules) and trial.should_prune() and trial.number > 0:
                    return TrialState.PRUNED
        return TrialState.COMPLETE

    def step(self, name: str, settings: Settings, **inputs: str) -> Run:
        """Run or reuse a step, and return its run.

        Raises:
            ExecutionException: it failed, or the sweep is stopping.
        """
        if self.stopping.is_set():
            raise ExecutionException("the sweep is stopping")
        return self.pipeline.find_or_run(name, settings, **inputs)
