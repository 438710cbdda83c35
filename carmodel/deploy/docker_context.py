"""The folder that a container's image is made from: what MLflow writes for a model, and the model's URI as a label."""

import json
import re
import shutil
from pathlib import Path

from mlflow.models.flavor_backend_registry import get_flavor_backend

from carmodel.deploy.failure import explained
from carmodel.deploy.wanted import DeployError, Say, Wanted
from carmodel.errors import InputError

LABEL = "carmodel.model"
"""Of the image, and so of its containers."""
TAIL = """
# The server needs no root, but must read the model, whatever the umask was that wrote it.
RUN useradd --create-home serving && chown -R serving /var/log/nginx /var/lib/nginx
RUN find /opt/ml ! -perm -o=r -exec chmod a+rX {{}} +
USER serving
# MLflow starts a worker a core, each with a network of its own and the model's limits for itself alone.
ENV MLFLOW_MODELS_WORKERS=1
LABEL {label}={uri}
"""


def require_context(wanted: Wanted, say: Say) -> None:
    """Have MLflow write the context, beside its place, and move it there when it is whole.

    Raises:
        InputError: the folder holds something else.
        DeployError: there is no such model, or the folder can't be written; nothing half-made is left.
    """
    if model_in(wanted.folder) == wanted.model_uri:
        say(f"the context of {wanted.model_uri} is in {wanted.folder} already")
        return
    require_ours(wanted.folder)
    say(f"writing the context of {wanted.model_uri} into {wanted.folder}")
    partial = partial_of(wanted.folder)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        with explained(wanted, f"fetching {wanted.model_uri}"):
            backend = get_flavor_backend(wanted.model_uri, docker_build=True, env_manager=None)
            backend.generate_dockerfile(wanted.model_uri, str(partial))
        with (partial / "Dockerfile").open("a") as file:
            file.write(TAIL.format(label=LABEL, uri=json.dumps(wanted.model_uri)))
        shutil.rmtree(wanted.folder, ignore_errors=True)
        partial.rename(wanted.folder)
    except OSError as error:
        raise DeployError(f"the context can't be written: {error}\n  to go on, run this again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def partial_of(folder: Path) -> Path:
    """Where the context is until it is whole."""
    return folder.with_name(f"{folder.name}.partial")


def model_in(folder: Path) -> str:
    """URI of the model that the folder is the context of; empty where it is none of ours."""
    file = folder / "Dockerfile"
    found = re.search(rf'^LABEL {re.escape(LABEL)}="(.+)"$', file.read_text(), re.M) if file.is_file() else None
    return found[1] if found else ""


def require_ours(folder: Path) -> None:
    """Check that nothing of anybody else is in the folder.

    Raises:
        InputError: there is.
    """
    if folder.exists() and not model_in(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"folder={folder} holds something else than a context of this step; choose another one")
