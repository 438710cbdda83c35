"""Send a folder of photos to the endpoint and write its answers to a CSV file.

    carmodel-client photos answers.csv --endpoint http://localhost:5001

To use it on another machine, copy this file: it needs only urllib3 and tqdm, and SciPy for boxes from a devkit.
"""

import argparse
import base64
import csv
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from urllib3 import PoolManager, Retry, Timeout
from urllib3.exceptions import HTTPError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
CORNERS = ("x1", "y1", "x2", "y2")
REQUIRED = ("label", "class_id", "probability", "error")
COLUMNS = ("file", "label", "class_id", "probability", "certain", "error")

BATCH = 16
"""Photos per request: some megabytes, answered in seconds."""

FIRST_RETRIES = 2
"""Retries before the first answer: about a second, so that a wrong URL is reported at once."""

RETRIES = 20
"""Retries after the first answer: two and a half minutes, in which a server can restart."""

Box = tuple[int, int, int, int]


class EndpointError(RuntimeError):
    """The endpoint does not answer, or its answer is not the classifier's. The message never repeats a photo."""


class BoxError(ValueError):
    """The boxes cannot be read. The message names the file and the row."""


def connect(retries: int = RETRIES, connections: int = 1) -> PoolManager:
    """Return a connection pool that retries, after growing pauses, while the server is down, fails or is slow.

    Retries are safe, since the endpoint stores nothing.

    Args:
        retries: number of retries after a refused or broken connection, no answer within two minutes, status 429 (too
            many requests) or 5xx (a fault of the server).
        connections: threads that send requests at the same time.
    """
    policy = Retry(
        retries,
        allowed_methods=None,  # POST too
        status_forcelist=(429, 500, 502, 503, 504),
        backoff_factor=0.25,
        backoff_jitter=0.25,
        backoff_max=10.0,
    )
    return PoolManager(maxsize=connections, retries=policy, timeout=Timeout(connect=5.0, read=120.0))


def row_of(photo: bytes, box: Sequence[int] | None = None) -> dict[str, Any]:
    """Return a row of a request: the file as Base64, and the box (x1, y1, x2, y2) if there is one."""
    corners = {} if box is None else dict(zip(CORNERS, box, strict=True))
    return {"image": base64.b64encode(photo).decode()} | corners


def ask(http: PoolManager, endpoint: str, rows: Sequence[dict[str, Any]], top_k: int = 1) -> list[dict[str, Any]]:
    """Return the answer to each row: label, class_id, probability, top_k, error and, except for old models, certain.

    Args:
        http: from `connect`.
        endpoint: URL of the server, such as http://localhost:5001.
        rows: from `row_of`.
        top_k: number of classes that each answer lists.

    Raises:
        EndpointError: no answer after all retries, a refused request, or an answer that is not the classifier's.
    """
    body = {"dataframe_records": list(rows), "params": {"top_k": top_k}}
    try:
        response = http.request("POST", f"{endpoint.rstrip('/')}/invocations", json=body)
    except HTTPError as error:
        raise EndpointError(f"{endpoint} does not answer: {getattr(error, 'reason', None) or error}") from None
    # MLflow's text of a refusal may repeat the whole request, so only the status is reported.
    if response.status != 200:
        raise EndpointError(f"{endpoint} refuses the request with HTTP status {response.status}")
    try:
        answers = response.json()["predictions"]
        complete = len(answers) == len(rows) and all({*REQUIRED} <= set(answer) for answer in answers)
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise EndpointError(f"{endpoint} does not answer as the classifier does; is another model served there?")
    return answers


def read_boxes(source: Path, folder: Path) -> dict[Path, Box]:
    """Return the boxes of photos by their resolved path.

    Args:
        source: a CSV file with the columns file, x1, y1, x2, y2 (0-based pixels, x2 and y2 exclusive, file relative to
            `folder`), or a folder in the layout of Stanford Cars, with cars_train/, cars_test/ and devkit/.
        folder: the photos.

    Raises:
        BoxError: neither of the two, a corner that is not a whole number, a second box of a photo, or no box belongs to a
            photo of the folder.
    """
    if not source.exists():
        raise BoxError(f"{source} does not exist")
    try:
        boxes = _devkit_boxes(source) if source.is_dir() else _csv_boxes(source, folder)
    except (UnicodeDecodeError, csv.Error) as error:
        raise BoxError(f"{source} is not a CSV file in UTF-8 ({error}); save it as one") from None
    if boxes and boxes.keys().isdisjoint(photo.resolve() for photo in find_photos(folder)):
        raise BoxError(f"no box of {source} belongs to a photo in {folder}; the first is for {next(iter(boxes))}")
    return boxes


def note_on_unused(source: Path, boxes: dict[Path, Box], photos: Iterable[Path]) -> str:
    """Return a sentence if some boxes of a CSV file belong to none of the photos, or "".

    The layout of Stanford Cars also has the boxes of other folders.
    """
    unused = boxes.keys() - {photo.resolve() for photo in photos}
    if not unused or source.is_dir():
        return ""
    return f"{len(unused)} of {len(boxes)} boxes of {source} belong to no photo"


def _csv_boxes(table: Path, folder: Path) -> dict[Path, Box]:
    boxes: dict[Path, Box] = {}
    with table.open(newline="", encoding="utf-8-sig") as stream:
        lines = csv.DictReader(stream)
        if missing := [name for name in ("file", *CORNERS) if name not in (lines.fieldnames or ())]:
            raise BoxError(
                f"{table} has no column {', '.join(missing)}; it needs file,{','.join(CORNERS)}, separated by commas"
            )
        for line in lines:
            corners = [line[corner] for corner in CORNERS]
            if not any(corners):
                continue
            if not line["file"]:
                raise BoxError(f"{table}, line {lines.line_num}: the name of the photo is missing")
            try:
                x1, y1, x2, y2 = (int(corner) for corner in corners)
            except (ValueError, TypeError):
                raise BoxError(f"{table}, line {lines.line_num}: {', '.join(CORNERS)} must be whole numbers") from None
            photo = (folder / line["file"]).resolve()
            if photo in boxes:
                raise BoxError(f"{table}, line {lines.line_num}: {line['file']} has a second box")
            boxes[photo] = (x1, y1, x2, y2)
    return boxes


def _devkit_boxes(folder: Path) -> dict[Path, Box]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise BoxError(f"boxes from {folder} need SciPy: pip install scipy") from None
    boxes = {}
    for split in ("train", "test"):
        for annotations in sorted(folder.glob(f"**/devkit/cars_{split}_annos.mat")):
            photos = folder / f"cars_{split}"
            nested = photos / photos.name  # as some archives unpack
            try:
                for row in loadmat(annotations, squeeze_me=True)["annotations"].reshape(-1):
                    x1, y1, x2, y2 = (int(row[f"bbox_{corner}"]) for corner in CORNERS)
                    path = (nested if nested.is_dir() else photos) / str(row["fname"])
                    boxes[path.resolve()] = (x1 - 1, y1 - 1, x2, y2)  # the devkit counts from 1 and includes x2 and y2
            except Exception as error:  # SciPy raises many types for a damaged file
                raise BoxError(f"{annotations} cannot be read: {error}") from None
    if not boxes:
        raise BoxError(f"{folder} has no devkit/cars_train_annos.mat or cars_test_annos.mat")
    return boxes


def find_photos(folder: Path) -> list[Path]:
    """Return the photos of a folder at any depth, sorted. Their suffixes are those of `SUFFIXES`."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


def classify_folder(
    folder: Path,
    table: Path,
    endpoint: str,
    *,
    batch: int = BATCH,
    retries: int = RETRIES,
    boxes: Mapping[Path, Box] | None = None,
) -> int:
    """Write a CSV file with a row for each photo of a folder: file, label, class_id, probability, certain, error.

    The file gets its name when it is complete.

    Args:
        folder: photos at any depth, recognised by their suffix.
        table: the CSV file to write.
        endpoint: URL of the server.
        batch: photos per request.
        retries: retries after the first answer, see `connect`. Before it, there are at most `FIRST_RETRIES`.
        boxes: from `read_boxes`.

    Returns:
        The number of photos with an error.

    Raises:
        EndpointError: see `ask`.
        OSError: there are no photos, one cannot be read, or the table cannot be written.
    """
    photos = find_photos(folder)
    if not photos:
        raise FileNotFoundError(f"{folder} has no photos ({', '.join(SUFFIXES)})")
    boxes = boxes or {}
    http = connect(min(FIRST_RETRIES, retries))
    errors = 0
    partial = table.with_name(f".{table.name}.{os.getpid()}.partial")
    try:
        with (
            partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
            tqdm(total=len(photos), unit="photo") as bar,
        ):
            lines = csv.DictWriter(stream, COLUMNS, extrasaction="ignore")
            lines.writeheader()
            for start in range(0, len(photos), batch):
                part = photos[start : start + batch]
                rows = [row_of(photo.read_bytes(), boxes.get(photo.resolve())) for photo in part]
                answers = ask(http, endpoint, rows)
                if start == 0:
                    http = connect(retries)
                for photo, answer in zip(part, answers, strict=True):
                    lines.writerow({"file": photo.relative_to(folder).as_posix()} | answer)
                    errors += answer["error"] is not None
                bar.update(len(part))
        partial.replace(table)
    finally:
        partial.unlink(missing_ok=True)
    return errors


def main() -> None:
    """Read the command line and write the table. If that is impossible, print why and exit with code 2."""
    parser = argparse.ArgumentParser(description="Send a folder of photos to the endpoint; write its answers to a CSV.")
    parser.add_argument("folder", type=Path, help="photos, at any depth")
    parser.add_argument("table", type=Path, help="the CSV file to write")
    parser.add_argument("--endpoint", default="http://localhost:5001", help="URL of the server (%(default)s)")
    parser.add_argument(
        "--boxes",
        type=Path,
        help="boxes around the cars: a CSV file with the columns file,x1,y1,x2,y2, or a folder in the layout of "
        "Stanford Cars (default: whole photos)",
    )
    parser.add_argument("--batch", type=int, default=BATCH, help="photos per request (%(default)s)")
    parser.add_argument(
        "--retries", type=int, default=RETRIES, help="retries while a server that has answered is down (%(default)s)"
    )
    given = parser.parse_args()
    if not given.folder.is_dir():
        parser.error(f"{given.folder} is not a folder")
    if given.batch < 1:
        parser.error("--batch must be at least 1")
    if not given.endpoint.startswith(("http://", "https://")):
        parser.error(f"--endpoint {given.endpoint} must begin with http:// or https://")
    if given.table.is_dir():
        parser.error(f"{given.table} is a folder; give the name of a CSV file")
    if not given.table.parent.is_dir():
        parser.error(f"{given.table.parent} is not a folder to write to")
    # So that the partial file is removed when the process is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        boxes = read_boxes(given.boxes, given.folder) if given.boxes else {}
        if boxes and (note := note_on_unused(given.boxes, boxes, find_photos(given.folder))):
            print(note)
        errors = classify_folder(
            given.folder, given.table, given.endpoint, batch=given.batch, retries=given.retries, boxes=boxes
        )
    except (EndpointError, BoxError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("\nstopped; nothing is written")
    print(f"{given.table} is written; photos with an error: {errors}")


if __name__ == "__main__":
    main()
