"""Runs a step in a Databricks Spark job: `databricks_job.py TRACKING_URI STEP --name value …`, in the project's folder.

MLflow pastes this text into the job's file, splits the step's command at blanks and leaves its quotes in the pieces.
"""

import os
import runpy
import shlex
import sys

uri, step, *arguments = shlex.split(" ".join(sys.argv[1:]))
os.environ["MLFLOW_TRACKING_URI"] = uri
sys.argv = [step, *arguments]
sys.path.insert(0, os.getcwd())  # noqa: PTH109
runpy.run_module(f"steps.{step}", run_name="__main__")
