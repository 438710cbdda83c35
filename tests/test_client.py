"""The client: every photo of a folder gets a line, through servers that are down, broken, slow or of another kind."""

import base64
import csv
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from carmodel.data.stanford_cars import read
from carmodel.serving.client import (
    BoxError,
    EndpointError,
    ask,
    classify_folder,
    connect,
    find_photos,
    note_on_unused,
    read_boxes,
    row_of,
)
from tests.tiny import free_port

Respond = Callable[[BaseHTTPRequestHandler, list[dict[str, Any]]], None]


def answers(rows: list[dict[str, Any]]) -> bytes:
    """Answers as the classifier gives them: here the label is the photo's text, and a photo of "bad" has an error."""
    said = []
    for row in rows:
        label = base64.b64decode(row["image"]).decode()
        good = {"label": label, "class_id": 3, "probability": 0.5, "top_k": [], "certain": True, "error": None}
        said.append(good | ({"label": None, "certain": None, "error": "damaged"} if label == "bad" else {}))
    return json.dumps({"predictions": said}).encode()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, length: int | None = None) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def server(*responses: Respond, port: int = 0) -> Iterator[tuple[str, list[int]]]:
    """A server that gives these responses in turn and then right answers; its address, and the rows of each request."""
    script, requests = iter(responses), list[int]()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["dataframe_records"]
            requests.append(len(rows))
            next(script, lambda handler, rows: send(handler, 200, answers(rows)))(self, rows)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", requests
        http.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name in ("a.jpg", "b.JPEG", "more/c.png", "d.webp", "bad.bmp"):
        (folder / name).write_text(Path(name).stem)
    (folder / "notes.txt").write_text("no photo")
    return folder


def lines_of(table: Path) -> dict[str, dict[str, str]]:
    with table.open(newline="") as stream:
        return {line.pop("file"): line for line in csv.DictReader(stream)}


def test_every_photo_at_any_depth_gets_a_line_and_an_error_is_counted(folder: Path, tmp_path: Path) -> None:
    with server() as (endpoint, requests):
        assert classify_folder(folder, tmp_path / "answers.csv", endpoint, batch=2) == 1
    assert requests == [2, 2, 1]
    lines = lines_of(tmp_path / "answers.csv")
    assert list(lines) == ["a.jpg", "b.JPEG", "bad.bmp", "d.webp", "more/c.png"]
    assert lines["more/c.png"] == {"label": "c", "class_id": "3", "probability": "0.5", "certain": "True", "error": ""}
    assert (lines["bad.bmp"]["label"], lines["bad.bmp"]["error"]) == ("", "damaged")


def cut_off(handler: BaseHTTPRequestHandler, rows: list[dict[str, Any]]) -> None:
    body = answers(rows)
    send(handler, 200, body[:20], length=len(body))
    handler.close_connection = True


def hang_up(handler: BaseHTTPRequestHandler, rows: list[dict[str, Any]]) -> None:
    handler.close_connection = True


@pytest.mark.parametrize(
    "fault", [lambda handler, rows: send(handler, 503, b""), cut_off, hang_up], ids=["503", "cut off", "hung up"]
)
def test_a_request_that_fails_is_sent_again(fault: Respond) -> None:
    with server(fault, fault) as (endpoint, requests):
        (answer,) = ask(connect(), endpoint, [row_of(b"car")])
    assert answer["label"] == "car"
    assert requests == [1, 1, 1]


def test_a_model_of_an_earlier_version_answers_without_certain(folder: Path, tmp_path: Path) -> None:
    def old(handler: BaseHTTPRequestHandler, rows: list[dict[str, Any]]) -> None:
        said = json.loads(answers(rows))["predictions"]
        for answer in said:
            del answer["certain"]
        send(handler, 200, json.dumps({"predictions": said}).encode())

    with server(old) as (endpoint, _):
        classify_folder(folder, tmp_path / "answers.csv", endpoint)
    assert {line["certain"] for line in lines_of(tmp_path / "answers.csv").values()} == {""}


def test_boxes_of_a_csv_file_go_into_the_rows(folder: Path, tmp_path: Path) -> None:
    (table := tmp_path / "boxes.csv").write_text("file,x1,y1,x2,y2\nmore/c.png,1,2,30,40\na.jpg,,,,\n")
    boxes = read_boxes(table, folder)
    assert boxes == {(folder / "more" / "c.png").resolve(): (1, 2, 30, 40)}
    (box,) = boxes.values()
    assert row_of(b"car", box) == {"image": "Y2Fy", "x1": 1, "y1": 2, "x2": 30, "y2": 40}


def test_a_damaged_devkit_is_named(tmp_path: Path) -> None:
    (tmp_path / "devkit").mkdir()
    (tmp_path / "devkit" / "cars_train_annos.mat").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BoxError, match=r"cars_train_annos\.mat cannot be read: "):
        read_boxes(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,x1,y1,x2\n", "no column y2"),
        ("file;x1;y1;x2;y2\n", "separated by commas"),
        ("file,x1,y1,x2,y2\na.jpg,1,2,3,4\na.jpg,1,2,3,5\n", "line 3: a.jpg has a second box"),
        ("file,x1,y1,x2,y2\na.jpg,1,2,3,\n", "line 2"),
        ("x1,y1,x2,y2,file\n1,2,3,4\n", "line 2: the name of the photo is missing"),
        ("file,x1,y1,x2,y2\na.jpg,1,2,3,4.5\n", "whole numbers"),
    ],
)
def test_a_table_of_boxes_that_is_malformed_names_the_line(tmp_path: Path, text: str, words: str) -> None:
    (table := tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(BoxError, match=words):
        read_boxes(table, tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"file,x1,y1,x2,y2\nwrong/a.jpg,1,2,30,40\n", r"no box of .*boxes\.csv belongs to a photo in .*wrong/a\.jpg"),
        ("file,x1,y1,x2,y2\nä.jpg,1,2,30,40\n".encode("latin-1"), "is not a CSV file in UTF-8"),
    ],
)
def test_boxes_that_would_be_ignored_are_refused(folder: Path, tmp_path: Path, content: bytes, words: str) -> None:
    (table := tmp_path / "boxes.csv").write_bytes(content)
    with pytest.raises(BoxError, match=words):
        read_boxes(table, folder)


def test_boxes_of_a_csv_file_that_belong_to_no_photo_are_counted(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "boxes.csv"
    table.write_text("file,x1,y1,x2,y2\na.jpg,1,2,30,40\n")
    assert note_on_unused(table, read_boxes(table, folder), find_photos(folder)) == ""
    table.write_text("file,x1,y1,x2,y2\na.jpg,1,2,30,40\nother.jpg,1,2,30,40\n")
    assert "1 of 2 boxes of" in note_on_unused(table, read_boxes(table, folder), find_photos(folder))


def test_the_boxes_of_a_devkit_are_those_that_preprocess_reads(sample: Path) -> None:
    expected = {Path(row.path).resolve(): (row.x1, row.y1, row.x2, row.y2) for row in read(sample).photos.itertuples()}
    assert read_boxes(sample, sample / "cars_test") == expected


def test_an_endpoint_that_is_down_from_the_start_is_reported_within_seconds(folder: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(EndpointError, match="does not answer"):
        classify_folder(folder, tmp_path / "answers.csv", f"http://127.0.0.1:{free_port()}")
    assert time.monotonic() - began < 10


def test_the_client_waits_for_an_endpoint_that_was_up_before(folder: Path, tmp_path: Path) -> None:
    def down(handler: BaseHTTPRequestHandler, rows: list[dict[str, Any]]) -> None:
        send(handler, 503, b"")

    first: Respond = lambda handler, rows: send(handler, 200, answers(rows))  # noqa: E731
    with server(first, *[down] * 4) as (endpoint, requests):
        assert classify_folder(folder, tmp_path / "answers.csv", endpoint, batch=3) == 1
    assert requests == [3, 2, 2, 2, 2, 2]


def test_a_client_that_is_stopped_leaves_no_partial_file(folder: Path, tmp_path: Path) -> None:
    asked = threading.Event()

    def slow(handler: BaseHTTPRequestHandler, rows: list[dict[str, Any]]) -> None:
        asked.set()
        time.sleep(5)

    with server(slow) as (endpoint, _):
        command = [sys.executable, "-m", "carmodel.serving.client", folder, tmp_path / "answers.csv"]
        process = subprocess.Popen([*command, "--endpoint", endpoint], stderr=subprocess.DEVNULL)
        assert asked.wait(30)
        process.terminate()
        process.wait(10)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (400, b'{"error_code": "BAD_REQUEST", "message": "secret"}', "HTTP status 400"),
        (200, b'{"predictions": []}', "another model"),
        (200, b'{"predictions": [0.5]}', "another model"),
        (200, b"<html>", "another model"),
        (200, b"[]", "another model"),
    ],
)
def test_an_answer_that_is_not_the_classifiers_is_an_error_at_once(status: int, body: bytes, words: str) -> None:
    refusal = server(lambda handler, rows: send(handler, status, body))
    with refusal as (endpoint, requests), pytest.raises(EndpointError, match=words) as raised:
        ask(connect(), endpoint, [row_of(b"car")])
    assert requests == [1]
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{out}/none", "{out}/answers.csv"], "is not a folder"),
        (["{out}", "{out}/answers.csv"], "has no photos"),
        (["{photos}", "{out}/answers.csv", "--endpoint", "localhost:5001"], "must begin with http:// or https://"),
        (["{photos}", "{out}/answers.csv", "--endpoint", "http://127.0.0.1:9", "--retries", "1"], "does not answer"),
        (["{photos}", "{out}/nowhere/answers.csv"], "is not a folder to write to"),
        (["{photos}", "{out}"], "is a folder; give the name of a CSV file"),
        (["{photos}", "{out}/answers.csv", "--boxes", "{out}/none.csv"], "none.csv does not exist"),
    ],
)
def test_what_cannot_be_sent_is_reported_and_leaves_no_table(
    commands: str, folder: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (out := tmp_path / "out").mkdir()
    given = [word.format(photos=folder, out=out) for word in arguments]
    command = [f"{commands}/python", "-m", "carmodel.serving.client", *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(out.iterdir())
