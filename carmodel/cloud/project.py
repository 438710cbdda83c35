"""The project as it is sent to other machines: its sources, without runs, environments and history."""

import shutil
from pathlib import Path

from carmodel.tracking.digests import ROOT


def copy_project(folder: Path) -> Path:
    """Copy the project into a new folder, without hidden files and what ``.gitignore`` names; returns the folder.

    MLflow's Databricks backend packs the whole folder of a project, a virtual environment and all.
    """
    ignored = [line.strip().strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line.strip()]
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", *ignored))
    return folder
