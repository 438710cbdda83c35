"""Write augmented copies of the training rows (crop, pad, horizontal flip) beside the original store."""

import time

import mlflow

from carmodel.data.augmentation import augment_store
from carmodel.data.pictures import before_after
from carmodel.data.store import open_store
from carmodel.settings import Augment, SettingsError, require
from carmodel.tracking import StepRun, fetch
from steps.command import run_step


def work(settings: Augment, step: StepRun) -> None:
    """Leave the output `augmented` (augmented.h5) and a picture of some rows before and after."""
    if settings.copies == 0:
        raise SettingsError("copies=0 leaves nothing to do; main skips the step then")
    train = fetch(require("augment", "store_uri", settings.store_uri, "preprocess")) / "train.h5"
    folder = step.folder / "augmented"
    folder.mkdir()
    augmented = folder / "augmented.h5"
    began = time.perf_counter()
    augment_store(train, augmented, **settings.model_dump(exclude={"store_uri"}))
    rate = len(open_store(augmented)) / (time.perf_counter() - began)
    mlflow.log_metrics({"images_per_second": rate, "bytes": augmented.stat().st_size})

    picture = step.folder / "before_after.png"
    before_after(train, augmented, picture, str(open_store(train).attrs["note"] or "Augmentation: before, after"))
    mlflow.log_artifact(str(picture))
    step.log_output(folder, "augmented")
    step.summarise(f"{len(open_store(augmented))} augmented rows, {rate:.0f} images/s")


if __name__ == "__main__":
    run_step("augment", work)
