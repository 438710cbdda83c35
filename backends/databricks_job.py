"""Run a step in a Databricks Spark job: `databricks_job.py TRACKING_URI STEP --name value …`, in the project's directory.

MLflow copies this file into the file of the job. It splits the command of the step at blanks and keeps the quotes, so this
file joins the arguments and splits them again. A shell starts the steps that `main` runs on the driver, without that problem.
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
