"""Runs a step in a Databricks Spark job: `databricks_job.py TRACKING_URI STEP --name value …`, in the project's folder.

MLflow pastes this text into the job's file, splits the step's command at blanks and leaves its quotes in the pieces. The steps
that `main` starts on the driver are started by a shell, as commands of this file, and come as they are.
"""

import os
import runpy
import shlex
import sys
from pathlib import PurePath

words = sys.argv[1:]
if PurePath(sys.argv[0]).name != "databricks_job.py":
    words = shlex.split(" ".join(words))
uri, step, *arguments = words
os.environ["MLFLOW_TRACKING_URI"] = uri
sys.argv = [step, *arguments]
sys.path.insert(0, os.getcwd())  # noqa: PTH109
runpy.run_module(f"steps.{step}", run_name="__main__")
