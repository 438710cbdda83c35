"""MLflow's command line, on which `run -b azureml` works: `python -m carmodel.remote.azureml run . -b azureml …`.

azureml-mlflow's project backend asks a project for `conda_env_path`, which MLflow calls `env_config_path` since its version 2, so
with `mlflow run` itself it ends in an AttributeError. It also needs azureml-core, SDK v1 of Azure ML, which is out of support since
2026-06-30 (https://learn.microsoft.com/en-us/azure/machine-learning/v1/introduction); the way that lasts is a command job, see
`carmodel.remote.command_job`.
"""

from mlflow.cli import cli
from mlflow.projects._project_spec import Project


def name_environment() -> None:
    """Let a project answer by the name that azureml-mlflow asks for."""
    Project.conda_env_path = property(lambda project: project.env_config_path)


if __name__ == "__main__":
    name_environment()
    cli()
