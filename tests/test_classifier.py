"""The classifier contract: on the class, on the logged model in a fresh process, and over HTTP."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import mlflow
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException

from carmodel.data.images import ImageError, prepare
from carmodel.errors import InputError
from carmodel.serving.rows import box_of, image_bytes
from tests.tracked import tracked_in

SIZE = 32
MARGIN = 0.1
MAX_PIXELS = 100_000
MAX_ROWS = 40
NAMES = [f"Maker Model {i}" for i in range(7)]
COLUMNS = ["label", "class_id", "probability", "top_k", "error"]
BOX = {"x1": 10, "y1": 8, "x2": 50, "y2": 40}
NO_BOX = dict.fromkeys(BOX)


def photo(seed: int = 0, width: int = 64, height: int = 48, kind: str = ".jpg") -> bytes:
    """A file of smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.imencode(kind, cv2.resize(coarse, (width, height)))[1].tobytes()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def network() -> Any:
    import keras

    from carmodel.model.resnet import resnet

    keras.utils.set_random_seed(3)
    return resnet(14, len(NAMES), SIZE, width=8)


@pytest.fixture(scope="module")
def logged(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of the logged classifier, and the tracking store that holds it."""
    from carmodel.serving.packaging import log_classifier
    from carmodel.tracking import ROOT

    folder = tmp_path_factory.mktemp("classifier")
    facts = {"class_names": NAMES, "image_size": SIZE, "crop": "box", "margin": MARGIN}
    with tracked_in(folder):
        experiment = mlflow.create_experiment("classifier", artifact_location=(folder / "artifacts").as_uri())
        with mlflow.start_run(experiment_id=experiment):
            model = mlflow.tensorflow.log_model(
                network, name="model", metadata=facts, code_paths=[str(ROOT / "carmodel")], pip_requirements=["keras"]
            )
            bare = mlflow.tensorflow.log_model(network, name="bare", pip_requirements=["keras"])
            with pytest.raises(InputError, match="not a Keras model logged by train"):
                log_classifier(bare.model_uri, MAX_PIXELS, MAX_ROWS)
            yield log_classifier(model.model_uri, MAX_PIXELS, MAX_ROWS).model_uri


@pytest.fixture(scope="module")
def served(logged: str) -> mlflow.pyfunc.PyFuncModel:
    """The classifier as MLflow loads it, schema check included."""
    return mlflow.pyfunc.load_model(logged)


@pytest.fixture(scope="module")
def classifier(served: mlflow.pyfunc.PyFuncModel) -> Any:
    """The bare Python model inside."""
    return served.unwrap_python_model()


def expected(network: Any, data: bytes, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """Probabilities (C,) by way of preprocess."""
    return network.predict_on_batch(prepare(data, SIZE, box, MARGIN)[None])[0]


def check_answer(row: dict[str, Any], probabilities: np.ndarray, top_k: int = 5) -> None:
    best = np.argsort(-probabilities)[:top_k]
    assert row["error"] is None
    assert [item["class_id"] for item in row["top_k"]] == best.tolist()
    assert [item["label"] for item in row["top_k"]] == [NAMES[i] for i in best]
    assert [item["probability"] for item in row["top_k"]] == pytest.approx(probabilities[best].tolist(), abs=1e-5)
    assert {name: row[name] for name in ("label", "class_id", "probability")} == row["top_k"][0]
    assert (type(row["class_id"]), type(row["probability"])) == (int, float)


def check_refused(row: dict[str, Any], words: str) -> None:
    assert words in row["error"]
    assert len(row["error"]) < 120
    assert (row["label"], row["class_id"], row["probability"], row["top_k"]) == (None, None, None, [])


BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"image": None}, "null"),
    ({"image": float("nan")}, "null"),
    ({"image": ""}, "empty"),
    ({"image": b""}, "empty"),
    ({"image": "data:image/jpeg;base64,"}, "empty"),
    ({"image": 5}, "of type int"),
    ({"image": ["x"]}, "of type list"),
    ({"image": "not base64!"}, "not valid Base64"),
    ({"image": text(photo())[:-3]}, "not valid Base64"),
    ({"image": "ümlaut=="}, "not valid Base64"),
    ({"image": "data:image/jpeg," + text(photo())}, "base64"),
    ({"image": "https://example.com/car.jpg"}, "never fetched"),
    ({"image": "file:///etc/hostname"}, "never fetched"),
    ({"image": text(b"plain words")}, "not a JPEG"),
    ({"image": text(b"<svg xmlns='http://www.w3.org/2000/svg'/>")}, "not a JPEG"),
    ({"image": text(photo(width=400, height=300))}, "pixels"),
    ({"image": text(photo()[:300])}, "damaged"),
    ({"image": text(photo())} | NO_BOX | {"x1": 3}, "y1 is missing"),
    ({"image": text(photo())} | BOX | {"x2": 10}, "no area"),
    ({"image": text(photo())} | BOX | {"x2": 65}, "frame"),
    ({"image": text(photo())} | BOX | {"x1": -1}, "frame"),
    ({"image": text(photo())} | BOX | {"y2": 20.5}, "y2 is not a whole number"),
    ({"image": text(photo())} | BOX | {"y2": "forty"}, "y2 is not a whole number"),
    ({"image": text(photo())} | BOX | {"y2": True}, "y2 is not a whole number"),
    ({"image": text(photo())} | BOX | {"y2": float("inf")}, "y2 is not a whole number"),
    ({"image": text(photo())} | BOX | {"y2": 10**30}, "y2 is out of range"),
]


def test_every_spelling_of_a_photo_gets_the_answer_of_preprocess_and_network(served: Any, network: Any) -> None:
    data = photo(1)
    lines = base64.encodebytes(data).decode()
    frame = pd.DataFrame({"image": [text(data), f"data:image/jpeg;base64,{text(data)}", lines, data, bytearray(data)]})
    for row in served.predict(frame).to_dict("records"):
        check_answer(row, expected(network, data))


@pytest.mark.parametrize("kind", [".jpg", ".png", ".webp", ".bmp"])
def test_every_format_is_read(served: Any, network: Any, kind: str) -> None:
    data = photo(2, kind=kind)
    check_answer(served.predict(pd.DataFrame({"image": [text(data)]})).iloc[0].to_dict(), expected(network, data))


def test_boxes_crop_as_preprocess_does_in_every_number_type(served: Any, network: Any) -> None:
    data, box = photo(3), tuple(BOX.values())
    assert not np.allclose(expected(network, data, box), expected(network, data), atol=1e-4)
    for dtype in ("int64", "int32", "Int64", "float64", "object"):
        frame = pd.DataFrame([{"image": text(data)} | BOX]).astype(dict.fromkeys(BOX, dtype))
        check_answer(served.predict(frame).iloc[0].to_dict(), expected(network, data, box))


@pytest.mark.parametrize("dtype", ["float64", "Int64", "object"])
def test_rows_with_and_without_box_mix(served: Any, network: Any, dtype: str) -> None:
    data = photo(3)
    frame = pd.DataFrame([{"image": text(data)} | NO_BOX, {"image": text(data)} | BOX])
    with_box, without = served.predict(frame.astype(dict.fromkeys(BOX, dtype))).to_dict("records")[::-1]
    check_answer(without, expected(network, data))
    check_answer(with_box, expected(network, data, tuple(BOX.values())))


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


@pytest.mark.parametrize(("bad", "words"), BAD_ROWS, ids=[str(i) for i in range(len(BAD_ROWS))])
def test_a_bad_row_gets_its_own_error_and_the_others_are_answered(
    served: Any, network: Any, bad: dict[str, Any], words: str
) -> None:
    first, last = photo(1), photo(2)
    frame = pd.DataFrame([{"image": text(first)}, bad, {"image": text(last)}], dtype=object)
    rows = served.predict(frame).to_dict("records")
    check_answer(rows[0], expected(network, first))
    check_refused(rows[1], words)
    check_answer(rows[2], expected(network, last))


def test_index_and_order_are_kept(classifier: Any, network: Any) -> None:
    photos = [photo(i) for i in range(4)]
    frame = pd.DataFrame({"image": [text(data) for data in photos], "other": 1}, index=[7, 3, 3, "x"])
    frame.loc["x", "image"] = None
    out = classifier.predict(None, frame)
    assert out.index.tolist() == [7, 3, 3, "x"]
    assert out.columns.tolist() == COLUMNS
    for row, data in zip(out.to_dict("records")[:3], photos, strict=False):
        check_answer(row, expected(network, data))


def test_behind_mlflows_schema_the_order_is_kept_and_the_rows_are_numbered_anew(served: Any, network: Any) -> None:
    photos = [photo(i) for i in range(3)]
    frame = pd.DataFrame([{"image": text(data)} | BOX for data in photos], index=[2, 0, 1])
    out = served.predict(frame)
    assert out.index.tolist() == [0, 1, 2]
    for row, data in zip(out.to_dict("records"), photos, strict=True):
        check_answer(row, expected(network, data, tuple(BOX.values())))


def test_a_request_without_rows_has_an_answer_without_rows(classifier: Any) -> None:
    out = classifier.predict(None, pd.DataFrame({"image": []}))
    assert (len(out), out.columns.tolist()) == (0, COLUMNS)


@pytest.mark.parametrize(("top_k", "length"), [(None, 5), (1, 1), (3, 3), (7, 7), (99, 7), (0, 1), (-4, 1)])
def test_top_k_is_clipped_to_the_classes_there_are(served: Any, network: Any, top_k: int | None, length: int) -> None:
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


def test_rows_beyond_the_limit_get_an_error_and_no_work(served: Any, network: Any) -> None:
    data = photo(6)
    rows = served.predict(pd.DataFrame({"image": [text(data)] * (MAX_ROWS + 2)})).to_dict("records")
    assert len(rows) == MAX_ROWS + 2
    for row in rows[:MAX_ROWS]:
        check_answer(row, expected(network, data))
    for row in rows[MAX_ROWS:]:
        check_refused(row, f"more than {MAX_ROWS} rows")


def test_any_number_of_rows_uses_the_traces_of_the_warm_up(classifier: Any) -> None:
    traces = classifier._network.predict_function.experimental_get_tracing_count()
    for rows in (1, 2, 3, 33, 5):
        classifier.predict(None, pd.DataFrame({"image": [photo(i) for i in range(rows)]}))
    assert classifier._network.predict_function.experimental_get_tracing_count() == traces


def test_concurrent_requests_get_their_own_answers(served: Any, network: Any) -> None:
    photos = [photo(i) for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda data: served.predict(pd.DataFrame({"image": [text(data)]})), photos))
    for data, answer in zip(photos, answers, strict=True):
        check_answer(answer.iloc[0].to_dict(), expected(network, data))


def test_class_names_and_image_size_are_in_the_models_metadata(served: Any) -> None:
    assert served.metadata.metadata == {"class_names": NAMES, "image_size": SIZE, "crop": "box", "margin": MARGIN}
    inputs = {spec.name: spec.required for spec in served.metadata.signature.inputs}
    assert inputs == {"image": True, "x1": False, "y1": False, "x2": False, "y2": False}


@pytest.mark.slow
def test_the_classifier_loads_and_answers_in_a_process_that_has_only_the_logged_model(
    logged: str, tmp_path: Path
) -> None:
    folder = mlflow.artifacts.download_artifacts(logged, dst_path=str(tmp_path))
    code = f"""
import sys, mlflow
assert not any("carmodel" in name for name in sys.modules)
model = mlflow.pyfunc.load_model({folder!r})
frame, params = model.input_example, {{"top_k": 2}}
answers = model.predict(frame, params=params)
assert answers["error"].isna().all() and answers["top_k"].map(len).tolist() == [2, 2], answers
assert sys.modules["carmodel"].__file__.startswith({folder!r})
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-2000:]


cells = st.one_of(
    st.none(),
    st.text(max_size=30),
    st.binary(max_size=60),
    st.floats(),
    st.integers(),
    st.booleans(),
    st.just(text(photo(9))),
)


@settings(max_examples=150, deadline=None)
@given(value=cells)
def test_any_image_cell_becomes_bytes_or_an_error_that_does_not_repeat_it(value: object) -> None:
    try:
        assert isinstance(image_bytes(value), bytes)
    except ImageError as error:
        assert len(str(error)) < 120
        assert not (isinstance(value, str) and len(value) > 8 and value in str(error))


@settings(max_examples=150, deadline=None)
@given(values=st.lists(st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=30)), min_size=4, max_size=4))
def test_any_four_box_cells_become_a_box_none_or_an_error(values: list[object]) -> None:
    try:
        box = box_of(values)
    except ImageError as error:
        assert len(str(error)) < 120
    else:
        assert box is None or [type(side) for side in box] == [int] * 4


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.tuples(cells, *[st.one_of(st.none(), st.integers(-5, 70), st.floats())] * 4), max_size=6))
def test_any_request_gets_a_json_row_for_a_row(classifier: Any, rows: list[tuple[object, ...]]) -> None:
    frame = pd.DataFrame(rows, columns=["image", *BOX], dtype=object)
    out = classifier.predict(None, frame)
    assert len(out) == len(rows)
    for row in json.loads(json.dumps(out.to_dict("records"), allow_nan=False)):
        assert (row["error"] is None) == (row["label"] in NAMES) == (len(row["top_k"]) == 5)


@pytest.fixture(scope="module")
def endpoint(logged: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real `mlflow models serve` process."""
    folder = tmp_path_factory.mktemp("serve")
    model = mlflow.artifacts.download_artifacts(logged, dst_path=str(folder))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model, "--env-manager", "local"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # The server is started by the name of its program, which lies beside this interpreter.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        cwd=folder,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/ping", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                time.sleep(0.5)
        else:
            pytest.fail(f"no answer in two minutes: {(folder / 'log').read_text()[-2000:]}")
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=30)
        log.close()


def post(address: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        # Strict, as other languages' parsers are: NaN is not JSON.
        return json.load(response, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["predictions"]


@pytest.mark.slow
def test_the_endpoint_keeps_the_contract_in_every_request_format(endpoint: str, network: Any, logged: str) -> None:
    data, box = photo(7), tuple(BOX.values())
    mixed = [
        {"image": text(data)} | NO_BOX,
        {"image": text(data)} | BOX,
        {"image": "broken!"} | BOX,
        {"image": text(data)} | BOX | {"y1": "a"},
        {"image": None} | NO_BOX,
        {"image": 17} | BOX,
    ]
    split = {"columns": ["image", *BOX], "data": [list(row.values()) for row in mixed]}
    bodies = {
        "dataframe_records": mixed,
        "dataframe_split": split,
        "inputs": mixed,
    }
    for name, body in bodies.items():
        rows = post(endpoint, {name: body, "params": {"top_k": 2}})
        assert len(rows) == len(mixed), name
        check_answer(rows[0], expected(network, data), 2)
        check_answer(rows[1], expected(network, data, box), 2)
        for row, words in zip(rows[2:], ("Base64", "y1 is not", "null", "of type int"), strict=True):
            check_refused(row, words)

    # Clients that send nothing but photos, by row and by column, and one whose rows lack the box here and there.
    check_answer(
        post(endpoint, {"dataframe_split": {"columns": ["image"], "data": [[text(data)]]}})[0], expected(network, data)
    )
    for row in post(endpoint, {"inputs": {"image": [text(data), text(data)]}}) + post(
        endpoint, {"inputs": {"image": text(data)}}
    ):
        check_answer(row, expected(network, data))
    columns = {name: [value, None] for name, value in BOX.items()}
    rows = post(endpoint, {"inputs": {"image": [text(data), text(data)]} | columns})
    check_answer(rows[0], expected(network, data, box))
    check_answer(rows[1], expected(network, data))
    rows = post(endpoint, {"dataframe_records": [{"image": text(data)}, {"image": text(data)} | BOX]})
    check_answer(rows[0], expected(network, data))
    check_answer(rows[1], expected(network, data, box))

    # The example as MLflow's page of the model shows it.
    folder = Path(mlflow.artifacts.download_artifacts(logged))
    rows = post(endpoint, json.loads((folder / "serving_input_example.json").read_text()))
    assert [(row["error"], len(row["top_k"])) for row in rows] == [(None, 3), (None, 3)]
