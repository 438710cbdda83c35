"""The classifier contract: on the class, on the logged model in a fresh process, and over HTTP."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from carmodel.data.images import prepare
from carmodel.errors import InputError
from carmodel.parameters import PackagePyfunc
from tests.classified import (
    BOX,
    LIMITS,
    NO_BOX,
    check_answer,
    check_refused,
    expected,
    photo,
    text,
)
from tests.endpoint import Server
from tests.fuzz_endpoint import GOOD, fuzz
from tests.tiny import MARGIN, NAMES, SIZE, Endpoint, tiny_network
from tests.tracked import tracked_in

COLUMNS = ["label", "class_id", "probability", "top_k", "certain", "error"]


@pytest.fixture(scope="module")
def network() -> Any:
    """The network of the classifier, which the endpoint that all tests share has, too."""
    return tiny_network()


@pytest.fixture(scope="module")
def logged(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of the logged classifier, and the tracking store that holds it."""
    from carmodel.serving.packaging import log_classifier
    from carmodel.tracking.digests import ROOT

    folder = tmp_path_factory.mktemp("classifier")
    facts = {"class_names": NAMES, "image_size": SIZE, "crop": "box", "margin": MARGIN}
    photos = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 3), np.uint8)
    with tracked_in(folder):
        with mlflow.start_run():
            model = mlflow.tensorflow.log_model(
                network, name="model", metadata=facts, code_paths=[str(ROOT / "carmodel")], pip_requirements=["keras"]
            )
            bare = mlflow.tensorflow.log_model(network, name="bare", pip_requirements=["keras"])
            given = PackagePyfunc(model_uri=model.model_uri, **LIMITS)
            with pytest.raises(InputError, match="not a Keras model logged by train"):
                log_classifier(given.model_copy(update={"model_uri": bare.model_uri}), photos)
            info, _ = log_classifier(given, photos)
        yield info.model_uri


@pytest.fixture(scope="module")
def served(logged: str) -> mlflow.pyfunc.PyFuncModel:
    """The classifier as MLflow loads it, schema check included."""
    return mlflow.pyfunc.load_model(logged)


@pytest.fixture(scope="module")
def classifier(served: mlflow.pyfunc.PyFuncModel) -> Any:
    """The bare Python model inside."""
    return served.unwrap_python_model()


def test_every_spelling_of_a_photo_gets_the_answer_of_preprocess_and_network(served: Any, network: Any) -> None:
    data = photo(1)
    lines = base64.encodebytes(data).decode()
    frame = pd.DataFrame({"image": [text(data), f"data:image/jpeg;base64,{text(data)}", lines, data, bytearray(data)]})
    for row in served.predict(frame).to_dict("records"):
        check_answer(row, expected(network, data))


@pytest.mark.parametrize("dtype", ["int64", "int32", "Int64", "float64", "object"])
def test_boxes_of_every_number_type_crop_as_preprocess_does(served: Any, network: Any, dtype: str) -> None:
    data, box = photo(3), tuple(BOX.values())
    assert not np.allclose(expected(network, data, box), expected(network, data), atol=1e-4)
    rows = [{"image": text(data)} | BOX]
    if not dtype.startswith("int"):  # NumPy's integers have no null
        rows.append({"image": text(data)} | NO_BOX)
    answers = served.predict(pd.DataFrame(rows).astype(dict.fromkeys(BOX, dtype))).to_dict("records")
    for answer, its_box in zip(answers, (box, None), strict=False):
        check_answer(answer, expected(network, data, its_box))


def test_a_network_trained_without_cropping_gets_the_whole_photo(classifier: Any, network: Any) -> None:
    data = photo(3)
    frame = pd.DataFrame([{"image": text(data)} | BOX, {"image": text(data)} | BOX | {"x1": None}])
    classifier.crops = False
    try:
        whole, partial = classifier.predict(None, frame).to_dict("records")
    finally:
        classifier.crops = True
    check_answer(whole, expected(network, data))
    check_refused(partial, "x1 is missing")


def test_index_and_order_are_kept(classifier: Any, network: Any) -> None:
    photos = [photo(i) for i in range(4)]
    frame = pd.DataFrame({"image": [text(data) for data in photos], "other": 1}, index=[7, 3, 3, "x"])
    frame.loc["x", "image"] = None
    out = classifier.predict(None, frame)
    assert out.index.tolist() == [7, 3, 3, "x"]
    assert out.columns.tolist() == COLUMNS
    for row, data in zip(out.to_dict("records")[:3], photos, strict=False):
        check_answer(row, expected(network, data))


def test_behind_mlflows_schema_the_order_is_kept_and_the_index_is_not(served: Any, network: Any) -> None:
    photos = [photo(i) for i in range(3)]
    frame = pd.DataFrame([{"image": text(data)} | BOX for data in photos], index=[2, 0, 1])
    out = served.predict(frame)
    assert out.index.tolist() == [0, 1, 2]
    for row, data in zip(out.to_dict("records"), photos, strict=True):
        check_answer(row, expected(network, data, tuple(BOX.values())))


def test_a_request_without_rows_has_an_answer_without_rows(classifier: Any) -> None:
    out = classifier.predict(None, pd.DataFrame({"image": []}))
    assert (len(out), out.columns.tolist()) == (0, COLUMNS)


@pytest.mark.parametrize(("top_k", "length"), [(None, 5), (1, 1), (3, 3), (8, 8), (99, 8), (0, 1), (-4, 1)])
def test_top_k_is_clipped_to_the_number_of_classes(served: Any, network: Any, top_k: int | None, length: int) -> None:
    data = photo(5)
    params = None if top_k is None else {"top_k": top_k}
    row = served.predict(pd.DataFrame({"image": [text(data)]}), params=params).iloc[0].to_dict()
    check_answer(row, expected(network, data), length)


@pytest.mark.parametrize("top_k", ["3", 2.5, True, [1]])
def test_a_top_k_that_is_no_whole_number_is_an_error(served: Any, classifier: Any, top_k: object) -> None:
    frame = pd.DataFrame({"image": [text(photo())]})
    for model in (
        lambda: classifier.predict(None, frame, {"top_k": top_k}),
        lambda: served.predict(frame, {"top_k": top_k}),
    ):
        with pytest.raises(MlflowException, match="top_k"):
            model()


def test_class_names_limits_and_the_trained_network_are_in_the_models_metadata(served: Any) -> None:
    metadata = dict(served.metadata.metadata)
    assert mlflow.tensorflow.load_model(metadata.pop("trained_model")).output_shape == (None, len(NAMES))
    assert metadata == {
        "class_names": NAMES,
        "image_size": SIZE,
        "crop": "box",
        "margin": MARGIN,
        "folded": True,
        "precision": "float32",
        "engine": "onnxruntime",
        "flip": False,
        "temperature": 1.0,
        "certain_threshold": None,
        **LIMITS,
    }
    inputs = {spec.name: spec.required for spec in served.metadata.signature.inputs}
    assert inputs == {"image": True, "x1": False, "y1": False, "x2": False, "y2": False}


def test_training_continues_from_the_unfolded_network_of_a_registered_classifier(logged: str, network: Any) -> None:
    from carmodel.mlflow_model import load_initial

    version = mlflow.register_model(logged, "continued").version
    mlflow.MlflowClient().set_registered_model_alias("continued", "champion", version)
    initial, names = load_initial("models:/continued@champion")
    assert names == NAMES
    assert [layer.name for layer in initial.layers] == [layer.name for layer in network.layers]


def test_photos_are_served_at_another_size_and_with_their_mirror_image(served: Any, network: Any) -> None:
    from carmodel.serving.packaging import log_classifier

    given = PackagePyfunc(model_uri=served.metadata.metadata["trained_model"], image_size=48, flip=True, **LIMITS)
    with mlflow.start_run():
        info, _ = log_classifier(given, np.zeros((1, SIZE, SIZE, 3), np.uint8))
    photo_bytes = photo(2)
    image = prepare(photo_bytes, 48, None, MARGIN)[None]
    average = (network.predict_on_batch(image) + network.predict_on_batch(image[:, :, ::-1]))[0] / 2
    (answer,) = (
        mlflow.pyfunc.load_model(info.model_uri)
        .predict(pd.DataFrame({"image": [text(photo_bytes)]}))
        .to_dict("records")
    )
    check_answer(answer, average)


@pytest.mark.slow
def test_a_process_that_has_only_the_logged_model_loads_it_and_answers(
    logged: str, commands: str, tmp_path: Path
) -> None:
    folder = mlflow.artifacts.download_artifacts(logged, dst_path=str(tmp_path))
    code = f"""
import sys, mlflow
assert not any("carmodel" in name for name in sys.modules)
model = mlflow.pyfunc.load_model({folder!r})
answers = model.predict(model.input_example, params={{"top_k": 2}})
assert answers["error"].isna().all() and answers["top_k"].map(len).tolist() == [2, 2], answers
assert sys.modules["carmodel"].__file__.startswith({folder!r})
"""
    command = [f"{commands}/python", "-c", code]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_a_classifier_needs_neither_tensorflow_nor_keras(logged: str, tmp_path: Path) -> None:
    folder = mlflow.artifacts.download_artifacts(logged, dst_path=str(tmp_path))
    required = {line.partition("==")[0] for line in Path(folder, "requirements.txt").read_text().splitlines()}
    assert "onnxruntime" in required
    missing = {"tensorflow", "keras", "h5py", "onnx", "tf2onnx"}
    assert not required & missing
    code = f"""
import sys, mlflow
sys.modules.update(dict.fromkeys({missing}))  # importing one of these raises an exception
model = mlflow.pyfunc.load_model({folder!r})
assert model.predict(model.input_example)["error"].isna().all()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def server(endpoint: Endpoint) -> Server:
    return Server(endpoint.address, endpoint.process.pid)


@pytest.mark.slow
def test_the_endpoint_answers_every_request_format_of_mlflow(endpoint: Endpoint, server: Server, network: Any) -> None:
    data, box = photo(7), tuple(BOX.values())
    whole, boxed = {"image": text(data)}, {"image": text(data)} | BOX
    mixed = [whole | NO_BOX, boxed, {"image": "broken!"} | BOX, boxed | {"y1": "a"}, {"image": None} | NO_BOX]
    split = {"columns": ["image", *BOX], "data": [list(row.values()) for row in mixed]}
    for name, body in {"dataframe_records": mixed, "dataframe_split": split, "inputs": mixed}.items():
        rows = server.predict({name: body, "params": {"top_k": 2}})
        check_answer(rows[0], expected(network, data), 2)
        check_answer(rows[1], expected(network, data, box), 2)
        for row, words in zip(rows[2:], ("Base64", "y1 is not", "null"), strict=True):
            check_refused(row, words)

    columns = {name: [None, value] for name, value in BOX.items()}
    for body, boxes in (
        ({"dataframe_split": {"columns": ["image"], "data": [[text(data)]]}}, [None]),
        ({"dataframe_records": [whole, boxed]}, [None, box]),
        ({"inputs": {"image": text(data)}}, [None]),
        ({"inputs": {"image": [text(data)] * 2}}, [None, None]),
        ({"inputs": {"image": [text(data)] * 2} | columns}, [None, box]),
    ):
        for row, its_box in zip(server.predict(body), boxes, strict=True):
            check_answer(row, expected(network, data, its_box))

    # The example as MLflow's page of the model shows it.
    rows = server.predict(json.loads((endpoint.model / "serving_input_example.json").read_text()))
    assert [(row["error"], len(row["top_k"])) for row in rows] == [(None, 3), (None, 3)]


@pytest.mark.slow
def test_mutated_requests_neither_crash_the_endpoint_nor_change_other_answers(server: Server) -> None:
    statuses, broken, _ = fuzz(server, 400, GOOD)
    assert broken == []
    assert set(statuses) == {200, 400}
