"""Convert photos and annotations to train.h5 and test.h5, or check stores that exist already."""

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from carmodel.parameters import Preprocess
from carmodel.tracking.digests import digest_of_sources
from carmodel.tracking.paths import local_path
from steps.command import run_step

if TYPE_CHECKING:
    from carmodel.data.data_report import Report
    from carmodel.tracking.runs import StepRun

SYNTHETIC = "built-in synthetic sample: drawn cars, no photos"


def work(settings: Preprocess, step: "StepRun") -> None:
    """Log the output `data` (train.h5, test.h5 and whole photos), the data report and a contact sheet."""
    import mlflow

    from carmodel.data.data_report import small_parts
    from carmodel.data.pictures import contact_sheet
    from carmodel.data.store import open_store
    from steps.engine import output_folder

    with output_folder(settings, step, "data") as data:
        report = make_stores(settings, data)
        for note in [*report["notes"], *small_parts(report)]:
            print(f"preprocess: {note}")
        (step.folder / "data_report.json").write_text(json.dumps(report, indent=2) + "\n")
        title = str(open_store(data / "train.h5").attrs["note"]) or settings.data_uri
        contact_sheet(data / "train.h5", step.folder / "contact_sheet.png", title)
        for name in ("data_report.json", "contact_sheet.png"):
            mlflow.log_artifact(str(step.folder / name))
        step.log_output(data, "data")
    train, test = report["splits"]["train"], report["splits"]["test"]
    step.summarise(
        f"{train['training']} training, {train['validation']} validation, {test['rows']} test rows; "
        f"{len(report['listed'])} photos left out"
    )


def make_stores(settings: Preprocess, data: Path) -> "Report":
    """Write the stores into the directory `data`, or copy existing ones, and return the data report."""
    import mlflow

    from carmodel.data.memory_map import copy_store
    from carmodel.data.preprocessing import BOXES, WHOLE, check_stores, write_stores
    from carmodel.data.sources import ReadyStores, open_folder
    from carmodel.tracking.artifacts import fetch
    from steps.engine import open_engine, shared_with_executors

    folder = fetch(settings.data_uri) if settings.data_uri else draw_sample(settings)
    if not settings.data_uri or local_path(settings.data_uri) is None:
        folder = shared_with_executors(folder, settings, data.parent)
    source = open_folder(folder, data.parent, settings.seed)
    if isinstance(source, ReadyStores):
        report = check_stores(source.folder)
        if unused := different(settings, source.folder):
            print(f"preprocess: {folder} contains stores, which stay as they are: {unused}")
        for name in ("train.h5", "test.h5", *WHOLE.values()):
            if (source.folder / name).is_file():
                copy_store(source.folder / name, data)
        if (source.folder / BOXES).is_file():
            shutil.copy(source.folder / BOXES, data)
        return report
    with open_engine(settings) as engine:
        began = time.perf_counter()
        report = write_stores(source, data, settings, "" if settings.data_uri else SYNTHETIC, engine)
        mlflow.log_metric("photos_per_second", report["photos"] / (time.perf_counter() - began))
    return report


def different(settings: Preprocess, stores: Path) -> str:
    """Return the parameters that existing stores do not have, with the values of both, or ""."""
    from carmodel.data.store import open_store

    made = open_store(stores / "train.h5").attrs
    asked = settings.model_dump(include={"image_size", "crop", "margin"})
    asked["crop"] = asked["crop"].replace("both", "box")  # as in the attribute of the stores
    return ", ".join(f"{name}={made[name]} and not {value}" for name, value in asked.items() if made[name] != value)


def draw_sample(settings: Preprocess) -> Path:
    """Draw the built-in sample into ``sample/`` of the working directory, unless this version of the code has drawn it."""
    from carmodel.data import sample

    folder = Path("sample", f"{settings.sample_classes}x{settings.sample_photos}-seed{settings.seed}")
    drawn_by, code = folder / "drawn_by.txt", digest_of_sources(Path(sample.__file__))
    if not drawn_by.is_file() or drawn_by.read_text() != code:
        print(f"preprocess: no data_uri: drawing the synthetic sample into {folder}/")
        shutil.rmtree(folder, ignore_errors=True)
        sample.draw(folder, settings.sample_classes, settings.sample_photos, settings.seed)
        drawn_by.write_text(code)
    return folder


if __name__ == "__main__":
    run_step("preprocess", Preprocess, work)
