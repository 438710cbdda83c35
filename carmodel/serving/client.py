"""Send a folder of photos to the endpoint and write its answers as a CSV.

    python -m carmodel.serving.client photos answers.csv --endpoint http://localhost:5001

This file needs nothing else of carmodel, only urllib3 and tqdm: copy it to where the photos are.
"""

import argparse
import base64
import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from urllib3 import PoolManager, Retry
from urllib3.exceptions import HTTPError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
COLUMNS = ("file", "label", "class_id", "probability", "error")
BATCH = 16
"""Photos a request: some megabytes, answered in seconds."""

RETRIES = 20
"""With pauses of up to ten seconds: two and a half minutes, in which a server starts again."""


class EndpointError(RuntimeError):
    """The endpoint does not answer, or not as the classifier does; the text holds nothing of what was sent."""


def connect(retries: int = RETRIES, connections: int = 1) -> PoolManager:
    """Return connections that ask again, after growing pauses, when the server is away, broken or slow.

    Asking again is safe, since the endpoint keeps nothing of a request.

    Args:
        retries: how often to ask again: after a refused or broken connection, no answer within two minutes, a status
            of 429 (wait) or of 5xx (the server's fault).
        connections: threads that will ask at the same time.
    """
    again = Retry(
        retries,
        allowed_methods=None,  # POST too
        status_forcelist=(429, 500, 502, 503, 504),
        backoff_factor=0.25,
        backoff_jitter=0.25,
        backoff_max=10.0,
    )
    return PoolManager(maxsize=connections, retries=again, timeout=120.0)


def row_of(photo: bytes, box: Sequence[int] | None = None) -> dict[str, Any]:
    """Return a request's row: the photo's file as Base64, and the box (x1, y1, x2, y2) where there is one."""
    corners = {} if box is None else dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))
    return {"image": base64.b64encode(photo).decode()} | corners


def ask(http: PoolManager, endpoint: str, rows: Sequence[dict[str, Any]], top_k: int = 1) -> list[dict[str, Any]]:
    """Return the endpoint's answer to each row: label, class_id, probability, top_k and error.

    Args:
        http: of `connect`.
        endpoint: the server's address, such as http://localhost:5001.
        rows: of `row_of`.
        top_k: how many classes each answer lists.

    Raises:
        EndpointError: no answer after all retries, a refused request, or an answer that is not the classifier's.
    """
    body = {"dataframe_records": list(rows), "params": {"top_k": top_k}}
    try:
        response = http.request("POST", f"{endpoint.rstrip('/')}/invocations", json=body)
    except HTTPError as error:
        raise EndpointError(f"{endpoint} does not answer: {getattr(error, 'reason', None) or error}") from None
    # MLflow's text of a refusal may repeat the whole request: its status has to do.
    if response.status != 200:
        raise EndpointError(f"{endpoint} refuses the request with HTTP status {response.status}")
    try:
        answers = response.json()["predictions"]
        whole = len(answers) == len(rows) and all({*COLUMNS[1:]} <= set(answer) for answer in answers)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise EndpointError(f"{endpoint} does not answer as the classifier does; is another model served there?")
    return answers


def classify_folder(folder: Path, table: Path, endpoint: str, batch: int = 16, retries: int = RETRIES) -> int:
    """Write a CSV with a line for each photo of a folder: file, label, class_id, probability, error.

    The table gets its name when it is whole.

    Args:
        folder: photos at any depth, by their suffix.
        table: the CSV to write.
        endpoint: the server's address.
        batch: photos a request.
        retries: see `connect`.

    Returns:
        How many photos got an error.

    Raises:
        EndpointError: see `ask`.
        OSError: there are no photos, one can't be read, or the table can't be written.
    """
    photos = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not photos:
        raise FileNotFoundError(f"{folder} has no photos ({', '.join(SUFFIXES)})")
    http = connect(retries)
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
                answers = ask(http, endpoint, [row_of(photo.read_bytes()) for photo in part])
                for photo, answer in zip(part, answers, strict=True):
                    lines.writerow({"file": photo.relative_to(folder).as_posix()} | answer)
                    errors += answer["error"] is not None
                bar.update(len(part))
        partial.replace(table)
    finally:
        partial.unlink(missing_ok=True)
    return errors


def main() -> None:
    """Read the command line and write the table; what can't be done ends with exit code 2 and a line that says why."""
    parser = argparse.ArgumentParser(description="Send a folder of photos to the endpoint; write its answers as a CSV.")
    parser.add_argument("folder", type=Path, help="photos, at any depth")
    parser.add_argument("table", type=Path, help="the CSV to write")
    parser.add_argument("--endpoint", default="http://localhost:5001", help="the server's address (%(default)s)")
    parser.add_argument("--batch", type=int, default=BATCH, help="photos a request (%(default)s)")
    parser.add_argument(
        "--retries", type=int, default=RETRIES, help="how often to ask again when there is no answer (%(default)s)"
    )
    given = parser.parse_args()
    if not given.folder.is_dir():
        parser.error(f"{given.folder} is no folder")
    if given.batch < 1:
        parser.error("--batch is at least 1")
    if not given.endpoint.startswith(("http://", "https://")):
        parser.error(f"--endpoint {given.endpoint} needs http:// or https:// before it")
    if not given.table.parent.is_dir():
        parser.error(f"{given.table.parent} is no folder to write to")
    try:
        errors = classify_folder(given.folder, given.table, given.endpoint, given.batch, given.retries)
    except (EndpointError, OSError) as error:
        parser.error(str(error))
    print(f"{given.table} is written; {errors} photos got an error")


if __name__ == "__main__":
    main()
