"""Write the build context of a Docker image: the Dockerfile that MLflow generates, with additional lines."""

import json
from pathlib import Path

from mlflow.models.flavor_backend_registry import get_flavor_backend

LABEL = "carmodel.model"
"""Label of an image and of its containers: the URI of the model."""
SOURCE_LABEL = "carmodel.source"
"""Label of an image and of its containers: where the registry got the model from."""
_DOCKERFILE_TAIL = """
# The server needs no root, but it must read the model, whatever the umask of the machine that downloaded it.
RUN useradd --create-home serving && chown -R serving /var/log/nginx /var/lib/nginx
RUN find /opt/ml ! -perm -o=r -exec chmod a+rX {{}} +
USER serving
# MLflow starts one worker per core. Each would hold a network and have the model's memory limit for itself.
ENV MLFLOW_MODELS_WORKERS=1
LABEL {label}={uri}
LABEL {source_label}={source}
"""


def write_context(model_uri: str, source: str, folder: Path) -> None:
    """Download a model into a folder, generate MLflow's Dockerfile there, and append `_DOCKERFILE_TAIL` to it.

    Args:
        model_uri: URI of the model.
        source: where the registry got it from.
        folder: the build context.
    """
    backend = get_flavor_backend(model_uri, docker_build=True, env_manager=None)
    backend.generate_dockerfile(model_uri, str(folder))
    with (folder / "Dockerfile").open("a") as file:
        file.write(
            _DOCKERFILE_TAIL.format(
                label=LABEL,
                uri=json.dumps(model_uri),
                source_label=SOURCE_LABEL,
                source=json.dumps(source),
            )
        )
