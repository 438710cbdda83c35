"""Turn photos and annotations into train.h5 and test.h5, or check stores that are there already."""

import json
import shutil
import time
from pathlib import Path

import mlflow

from carmodel.data import sample
from carmodel.data.memory_map import copy_store
from carmodel.data.pictures import contact_sheet
from carmodel.data.preprocessing import check_stores, write_stores
from carmodel.data.sources import ReadyStores, open_folder
from carmodel.data.store import open_store
from carmodel.parameters import Preprocess
from carmodel.tracking.artifacts import fetch
from carmodel.tracking.digests import digest_of_sources
from carmodel.tracking.paths import local_path
from carmodel.tracking.runs import StepRun
from steps.command import run_step
from steps.engine import engine_of, output_folder, seen_by_all

SYNTHETIC = "built-in synthetic sample: drawn cars, no photos"


def work(settings: Preprocess, step: StepRun) -> None:
    """Leave the output `data` (train.h5, test.h5), the data report and a contact sheet."""
    with output_folder(settings, step, "data") as data:
        write(settings, step, data)


def write(settings: Preprocess, step: StepRun, data: Path) -> None:
    """Fill the folder `data`, and log it."""
    folder = fetch(settings.data_uri) if settings.data_uri else draw_sample(settings)
    if not settings.data_uri or local_path(settings.data_uri) is None:
        folder = seen_by_all(folder, settings, data.parent)
    source = open_folder(folder, data.parent, settings.seed)
    if isinstance(source, ReadyStores):
        report = check_stores(source.folder)
        for name in ("train.h5", "test.h5"):
            copy_store(source.folder / name, data)
    else:
        with engine_of(settings) as engine:
            began = time.perf_counter()
            report = write_stores(source, data, settings, "" if settings.data_uri else SYNTHETIC, engine)
            mlflow.log_metric("photos_per_second", report["photos"] / (time.perf_counter() - began))
    for said in report["notes"]:
        print(f"preprocess: {said}")

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


def draw_sample(settings: Preprocess) -> Path:
    """The built-in sample, in ``sample/`` of the working directory; drawn unless this very code has drawn it already."""
    folder = Path("sample", f"{settings.sample_classes}x{settings.sample_photos}-seed{settings.seed}")
    drawn_by, code = folder / "drawn_by.txt", digest_of_sources(Path(sample.__file__))
    if not drawn_by.is_file() or drawn_by.read_text() != code:
        print(f"preprocess: no data_uri: drawing the synthetic sample into {folder}/")
        shutil.rmtree(folder, ignore_errors=True)
        sample.draw(folder, settings.sample_classes, settings.sample_photos, settings.seed)
        drawn_by.write_text(code)
    return folder


if __name__ == "__main__":
    run_step("preprocess", work)
