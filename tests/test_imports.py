"""Imports run one way, and each library is imported only where it is used."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A package or module of carmodel imports only from earlier layers, and from itself.
LAYERS = (
    {"errors", "quiet_tensorflow"},
    {"parameters"},
    {"data", "model", "parameter_table", "recipe", "service_errors"},
    {"training", "evaluation", "tracking"},
    {"mlflow_model"},
    {"serving"},
    {"cloud"},
    {"deploy"},
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
# Where each library may be imported: files, or packages with everything in them.
USERS = {
    "horovod": {"training/distributed.py", "training/rendezvous.py", "training/spark.py"},
    "onnxruntime": {"serving/onnx_engine.py"},
    "tf2onnx": {"serving/onnx_export.py"},
    "optuna": {"training/search.py", "training/search_results.py"},
    "pyspark": {"data/spark_engine.py", "data/spark_session.py", "serving/score_spark.py"},
    "azureml": {"cloud", "deploy"},
    "azure": {"cloud", "deploy"},
    "mlflow": {"cloud", "deploy", "serving", "tracking", "mlflow_model.py", "service_errors.py"},
    "tensorflow": {
        "evaluation/grad_cam.py",
        "quiet_tensorflow.py",
        "serving/onnx_export.py",
        "serving/tensorflow_engine.py",
        "training",
    },
}


def modules() -> Iterator[tuple[str, str, list[str]]]:
    """Yield the file, the top-level name, and the imports of each module of carmodel."""
    package = ROOT / "carmodel"
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package)
        names: list[str] = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file} has a relative import"
                names += [f"{node.module}.{alias.name}" for alias in node.names]
        yield str(file), file.with_suffix("").parts[0], names


def test_carmodel_imports_run_one_way() -> None:
    for file, name, imports in modules():
        for imported in imports:
            top, _, rest = imported.partition(".")
            other = rest.partition(".")[0]
            if top == "carmodel" and other not in ("", name):
                assert {name, other} <= LAYER.keys(), f"add {name} and {other} to LAYERS"
                assert LAYER[other] < LAYER[name], f"{file} imports {imported}"
            assert top != "steps", f"{file} imports {imported}"


@pytest.mark.parametrize("library", USERS)
def test_a_library_is_imported_only_where_it_is_used(library: str) -> None:
    for file, name, imports in modules():
        if any(imported.partition(".")[0] == library for imported in imports):
            assert {file, name} & USERS[library], f"{file} imports {library}"


def test_networks_use_public_keras_and_no_backend() -> None:
    for file, name, imports in modules():
        if name == "model":
            tops = {imported.partition(".")[0] for imported in imports}
            assert not tops & {"tensorflow", "jax", "torch"}, file
            assert not any(imported.startswith("keras.src") for imported in imports), file
