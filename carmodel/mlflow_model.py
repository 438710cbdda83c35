"""Log a Keras model as an MLflow model with its custom objects and source code, and load it with its class names."""

import json
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME, ModelInfo
from mlflow.types.schema import Schema, TensorSpec

from carmodel.errors import InputError
from carmodel.model.backbone import load_network as load_keras_file
from carmodel.model.scale import Scale
from carmodel.service_errors import download_errors, is_unsupported
from carmodel.tracking.artifacts import fetch
from carmodel.tracking.digests import ROOT
from carmodel.tracking.paths import PRETRAINED, initial_file

REQUIREMENTS = ("mlflow", "tensorflow", "keras", "numpy", "pydantic")
"""Packages that a process needs to load and run the network."""


class TensorflowAndKeras:
    """MLflow flavor of a model that `mlflow.tensorflow`, `mlflow.pyfunc` and `mlflow.keras` can all load.

    `mlflow.tensorflow` pickles custom objects and adds ``code_paths`` to the path. `mlflow.keras` does neither, but reads the
    same ``.keras`` file once it is named in the MLmodel file (docs/training.md, "Load a trained model").
    """

    @staticmethod
    def save_model(path: str, mlflow_model: Model, **kwargs: Any) -> None:
        """Save with `mlflow.tensorflow`, then add the keras flavor."""
        mlflow.tensorflow.save_model(path=path, mlflow_model=mlflow_model, **kwargs)
        # `mlflow.tensorflow` prefers a keras flavor to its own, so this flavor has the entries of both.
        mlflow_model.add_flavor(
            "keras",
            **mlflow_model.flavors["tensorflow"],
            keras_backend=keras.backend.backend(),
            save_exported_model=False,
        )
        mlflow_model.save(str(Path(path, MLMODEL_FILE_NAME)))


def pinned(*packages: str) -> list[str]:
    """Return pip requirements for packages, with the installed versions."""
    return [f"{package}=={version(package)}" for package in packages]


def log_network(
    network: keras.Model, example: np.ndarray, metadata: dict[str, Any], params: dict[str, Any]
) -> ModelInfo:
    """Log the network to the active run as "model".

    Args:
        network: uint8 (B, H, W, 3) in, probabilities (B, classes) out.
        example: uint8 (B, H, W, 3), the input example.
        metadata: class_names, image_size, crop and margin, which serving needs.
        params: shown with the logged model.
    """
    image = TensorSpec(np.dtype("uint8"), (-1, -1, -1, 3))
    probabilities = TensorSpec(np.dtype("float32"), (-1, network.output_shape[-1]))
    return log_model(
        "model",
        TensorflowAndKeras,
        model=network,
        custom_objects={"Scale": Scale},
        code_paths=[str(ROOT / "carmodel")],
        signature=ModelSignature(Schema([image]), Schema([probabilities])),
        input_example=example,
        pip_requirements=pinned(*REQUIREMENTS),
        metadata=metadata,
        params=params,
    )


def log_model(
    name: str, flavor: Any, metadata: dict[str, Any], params: dict[str, Any] | None = None, **saved: Any
) -> ModelInfo:
    """Log a model to the active run: as an MLflow logged model, or as artifacts of the run if the service has no such models.

    Azure ML does not support the logged models of MLflow 3 (https://github.com/Azure/azure-sdk-for-python/issues/44896). It
    answers with status 404 before anything is written.

    Args:
        name: name of the model, and of the directory in the run.
        flavor: its ``save_model(path, mlflow_model, **saved)`` writes the model.
        metadata: saved in the model.
        params: shown with the logged model.
        saved: further arguments of `save_model`.

    Returns:
        The model's description. Its `model_uri` is ``models:/m-…`` or ``runs:/RUN/NAME``.
    """
    try:
        return Model.log(artifact_path=None, name=name, flavor=flavor, metadata=metadata, params=params, **saved)
    except MlflowException as error:
        if not is_unsupported(error):
            raise
    print(f"{name}: this tracking service has no logged models; the model is an artifact of the run")
    run = mlflow.active_run()
    assert run  # Model.log needs one too
    model = Model(artifact_path=name, run_id=run.info.run_id, metadata=metadata)
    with TemporaryDirectory(prefix="carmodel-") as scratch:
        flavor.save_model(path=str(folder := Path(scratch, name)), mlflow_model=model, **saved)
        mlflow.log_artifacts(str(folder), name)
    return model.get_model_info()


def load_network(uri: str, parameter: str = "model_uri") -> tuple[keras.Model, dict[str, Any]]:
    """Load a logged Keras model and its metadata (class_names, image_size …; empty for models of other projects).

    Args:
        uri: the model, or a classifier of this project. For a classifier, its network before folding is loaded.
        parameter: the parameter that names it, for the error.

    Raises:
        InputError: no such model, or not a Keras model.
    """
    folder = fetch(uri)
    try:
        metadata = _metadata(folder)
        if trained := metadata.get("trained_model"):
            return load_network(trained, parameter)
        return mlflow.tensorflow.load_model(str(folder)), metadata
    except InputError:
        raise
    except (OSError, KeyError, TypeError, ValueError, MlflowException) as error:
        raise InputError(f"{parameter}={uri!r} is not a logged Keras model that can be loaded: {error}") from None


def training_parameters(uri: str) -> dict[str, str]:
    """Return the parameters of the run that trained a model or a classifier; {} if they are not known here."""
    unknown: tuple[type[Exception], ...] = (*download_errors(), OSError)
    try:
        info = mlflow.models.get_model_info(uri)
        if trained := (info.metadata or {}).get("trained_model"):
            return training_parameters(trained)
        return dict(mlflow.get_run(info.run_id).data.params) if info.run_id else {}
    except unknown:
        return {}


def load_initial(init: str) -> tuple[keras.Model, list[str]]:
    """Load the network that a training continues from, and its class names.

    Args:
        init: "pretrained" (the network in ``pretrained/``), FILE.keras next to a FILE.json with class_names, or the URI of a
            logged or registered network or classifier. For a classifier, its network before folding is loaded.

    Raises:
        InputError: no such model, or it has no class names.
    """
    if file := initial_file(init):
        if not file.is_file():
            hint = " (pretrained/ is in a clone of the repository)" if file == PRETRAINED else ""
            raise InputError(f"init={init}: no such file: {file}{hint}")
        network, facts = load_keras_file(file), file.with_suffix(".json")
        if not facts.is_file():
            raise InputError(f"init={init}: {facts} is missing; it must have the names of the classes as class_names")
        try:
            class_names = json.loads(facts.read_text())["class_names"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"init={init}: {facts} has no class_names that can be read: {error!r}") from None
        return _with_names(init, network, class_names)
    network, metadata = load_network(init, "init")
    if "class_names" not in metadata:
        raise InputError(f"init={init}: the model's metadata has no class_names; give a model logged by train")
    return _with_names(init, network, metadata["class_names"])


def _with_names(init: str, network: keras.Model, class_names: list[str]) -> tuple[keras.Model, list[str]]:
    """Return a network and its class names, after checking that there is one for each of its outputs."""
    if len(class_names) != (outputs := network.output_shape[-1]):
        raise InputError(
            f"init={init}: there are {len(class_names)} class_names, and the network has {outputs} outputs"
        )
    return network, class_names


def _metadata(folder: Path) -> dict[str, Any]:
    return Model.load(str(folder)).metadata or {} if (folder / MLMODEL_FILE_NAME).is_file() else {}
