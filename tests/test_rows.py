"""Every kind of row: a photo of any kind gets its answer, anything else its own error, and the others theirs."""

import io
import json
from pathlib import Path
from typing import Any

import keras
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from carmodel.serving.calibration import apply_temperature
from carmodel.serving.classifier import CarClassifier
from tests.classified import (
    BOX,
    NO_BOX,
    check_answer,
    check_refused,
    encoded,
    expected,
    photo,
    small_classifier,
    text,
)
from tests.tiny import NAMES


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.open(io.BytesIO(photo())), "JPEG", exif=exif)


# tests/test_images.py has every format that is decoded.
PHOTOS = {"JPEG": photo(), "PNG": photo(kind=".png"), "turned by EXIF": turned(), "with a tail": photo() + b"trailing"}

BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"image": None}, "null"),
    ({"image": float("nan")}, "null"),
    ({"image": ""}, "empty"),
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
    ({"image": text(photo())} | BOX | {"x1": [1]}, "x1 is not a whole number"),
    ({"image": True}, "of type bool"),
    ({"image": text(photo(kind=".bmp") * 5)}, "more than 40,000 bytes"),
    ({"image": "A" * 1_000_000}, "more than 40,000 bytes"),
    ({"image": "data:" + "A" * 80_000}, "data: prefix without"),
]


@pytest.mark.parametrize("kind", PHOTOS)
def test_a_photo_of_any_kind_gets_the_answer_of_preprocess_and_network(
    classifier: CarClassifier, network: keras.Model, kind: str
) -> None:
    (row,) = classifier.predict(None, pd.DataFrame({"image": [text(PHOTOS[kind])]})).to_dict("records")
    check_answer(row, expected(network, PHOTOS[kind]))


@pytest.mark.parametrize(("bad", "words"), BAD_ROWS, ids=[str(i) for i in range(len(BAD_ROWS))])
def test_a_bad_row_gets_its_own_error_and_the_others_are_answered(
    classifier: CarClassifier, network: keras.Model, bad: dict[str, Any], words: str
) -> None:
    first, last = photo(1), photo(2)
    frame = pd.DataFrame([{"image": text(first)}, bad, {"image": text(last)}], dtype=object)
    rows = classifier.predict(None, frame).to_dict("records")
    check_answer(rows[0], expected(network, first))
    check_refused(rows[1], words)
    check_answer(rows[2], expected(network, last))


def test_a_classifier_packaged_for_bfloat16_answers_on_any_processor(network: keras.Model, tmp_path: Path) -> None:
    classifier = small_classifier(network, tmp_path, precision="bfloat16")
    (row,) = classifier.predict(None, pd.DataFrame({"image": [text(photo(1))]})).to_dict("records")
    assert row["error"] is None
    assert row["probability"] == pytest.approx(expected(network, photo(1)).max(), abs=0.05)


def test_of_two_columns_of_one_name_the_first_counts(classifier: CarClassifier, network: keras.Model) -> None:
    frame = pd.DataFrame([[text(photo(1)), "broken!"]], columns=["image", "image"])
    (row,) = classifier.predict(None, frame).to_dict("records")
    check_answer(row, expected(network, photo(1)))


def test_no_error_repeats_what_was_sent_or_shows_a_stack(classifier: CarClassifier) -> None:
    marked = [b"SECRETPAYLOAD" * 9, photo()[:200] + b"SECRETPAYLOAD" * 9, b"\x89PNG\r\n\x1a\n" + b"SECRETPAYLOAD" * 9]
    cells = [text(data) for data in marked] + ["SECRETPAYLOAD!", "https://SECRETPAYLOAD", "data:SECRETPAYLOAD,x"]
    frame = pd.DataFrame(
        [{"image": cell} | NO_BOX for cell in cells] + [{"image": text(photo())} | BOX | {"x1": "SECRETPAYLOAD"}]
    )
    for row in classifier.predict(None, frame).to_dict("records"):
        assert row["error"]
        assert not any(words in row["error"] for words in ("SECRET", "U0VDUkVU", "Traceback", 'File "', "0x"))


def test_rows_in_many_batches_keep_their_places_up_to_the_limit(
    classifier: CarClassifier, network: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "max_rows", 150)
    cells = [text(photo(i)) if i % 3 else "bad!" for i in range(152)]
    rows = classifier.predict(None, pd.DataFrame({"image": cells})).to_dict("records")
    for i, row in enumerate(rows):
        if i >= 150:
            check_refused(row, "more than 150 rows")
        elif i % 3:
            check_answer(row, expected(network, photo(i)))
        else:
            check_refused(row, "Base64")


cells = st.one_of(
    st.none(),
    st.text(max_size=30),
    st.binary(max_size=60),
    st.floats(),
    st.integers(),
    st.booleans(),
    st.just(text(photo(9))),
)


sides = st.one_of(st.none(), st.integers(), st.integers(-5, 70), st.floats(), st.text(max_size=30))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(cells, *[sides] * 4), max_size=6))
def test_any_row_gets_an_answer_or_a_short_error_in_json(classifier: Any, rows: list[tuple[object, ...]]) -> None:
    frame = pd.DataFrame(rows, columns=["image", *BOX], dtype=object)
    answers = json.loads(json.dumps(classifier.predict(None, frame).to_dict("records"), allow_nan=False))
    for answer, (cell, *_) in zip(answers, rows, strict=True):
        assert (answer["error"] is None) == (answer["label"] in NAMES) == (len(answer["top_k"]) == 5)
        assert len(answer["error"] or "") < 120
        assert not (isinstance(cell, str) and len(cell) > 8 and cell in (answer["error"] or ""))


def test_an_answer_is_certain_above_the_threshold_of_its_calibrated_probability(
    network: keras.Model, tmp_path: Path
) -> None:
    frame = pd.DataFrame({"image": [text(photo(1)), text(b"no photo")]})
    warm = small_classifier(network, tmp_path, temperature=3.0, certain_threshold=0.0)
    good, bad = warm.predict(None, frame).to_dict("records")
    check_answer(good, apply_temperature(expected(network, photo(1)), 3.0))
    assert (good["certain"], bad["certain"]) == (True, None)
    strict = small_classifier(network, tmp_path, temperature=3.0, certain_threshold=good["probability"])
    assert strict.predict(None, frame).iloc[0]["certain"] is False


def test_a_classifier_without_threshold_answers_without_certainty(classifier: CarClassifier) -> None:
    assert classifier.predict(None, pd.DataFrame({"image": [text(photo())]})).iloc[0]["certain"] is None
