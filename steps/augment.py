"""Write augmented copies of the training rows (crop, pad, horizontal flip) to a store of their own."""

import time
from typing import TYPE_CHECKING

from carmodel.parameters import Augment
from carmodel.recipe import SettingsError, require
from carmodel.tracking.paths import local_path
from steps.command import run_step

if TYPE_CHECKING:
    from carmodel.tracking.runs import StepRun


def work(settings: Augment, step: "StepRun") -> None:
    """Log the output `augmented` (augmented.h5) and a picture of some rows before and after."""
    import mlflow

    from carmodel.data.augmentation import augment_store
    from carmodel.data.pictures import before_after
    from carmodel.data.store import open_store
    from carmodel.data.transform import load_transform
    from carmodel.tracking.artifacts import fetch
    from steps.engine import open_engine, output_folder, shared_with_executors

    if settings.copies == 0:
        raise SettingsError("augment.copies=0 makes no copies; main skips the step then")
    stores = fetch(require("augment", "store_uri", settings.store_uri, "preprocess"))
    transform = load_transform(settings.transform) if settings.transform else None
    package = settings.transform.partition(".")[0].partition(":")[0]
    packages = (package,) if package else ()
    with output_folder(settings, step, "augmented") as folder, open_engine(settings, packages) as engine:
        if local_path(settings.store_uri) is None:
            stores = shared_with_executors(stores, settings, folder.parent)
        train, augmented = stores / "train.h5", folder / "augmented.h5"
        began = time.perf_counter()
        strengths = settings.model_dump(include={"copies", "crop", "pad", "flip", "seed"})
        augment_store(train, augmented, **strengths, transform=transform, engine=engine)
        rows = len(open_store(augmented))
        rate = rows / (time.perf_counter() - began)
        size = sum(file.stat().st_size for file in folder.rglob("*.h5"))
        mlflow.log_metrics({"images_per_second": rate, "bytes": size})

        picture = step.folder / "before_after.png"
        before_after(train, augmented, picture, str(open_store(train).attrs["note"] or "Augmentation: before, after"))
        mlflow.log_artifact(str(picture))
        step.log_output(folder, "augmented")
    step.summarise(f"{rows} augmented rows, {rate:.0f} images/s, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    run_step("augment", Augment, work)
