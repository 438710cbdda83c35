"""Classify many photos, and write their answers to files of fixed size, so that a rerun continues where it stopped.

The photos are a table with the columns of `PHOTO_COLUMNS`. An engine is a function from a slice of this table to answers.
`local_engine` runs in this process. `carmodel.serving.score_spark` runs on a cluster. Both give the same answers.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from carmodel.errors import InputError
from carmodel.serving.client import SUFFIXES, BoxError, find_photos, note_on_unused, read_boxes
from carmodel.serving.rows import BOX_COLUMNS

LARGEST_CORNER = 1e9  # no photo has as many pixels
PHOTO_COLUMNS = ("file", "path", *BOX_COLUMNS)
"""`file` names the photo in the answers, `path` is where it is read, and the box is Int64, or null without a box."""

CANDIDATE = pa.struct([("label", pa.string()), ("class_id", pa.int64()), ("probability", pa.float64())])
ANSWERS = pa.schema(
    [
        ("file", pa.string()),
        ("label", pa.string()),
        ("class_id", pa.int64()),
        ("probability", pa.float64()),
        ("top_k", pa.list_(CANDIDATE)),
        ("certain", pa.bool_()),
        ("error", pa.string()),
    ]
)
"""The columns of the answers: the name of the photo, and the columns of the endpoint's answers."""

FACTS = "_score.json"
"""File beside the answers that says what they are answers to. Spark ignores names that begin with an underscore."""

Engine = Callable[[pd.DataFrame], pd.DataFrame]
"""Turn photos into answers without the column `file`, in the same order."""


def list_photos(source: Path, boxes: Path | None = None) -> pd.DataFrame:
    """Return the photos of a directory or of a CSV file.

    Args:
        source: a directory of photos at any depth, or a CSV file with the column file and optionally x1, y1, x2, y2
            (0-based pixels, x2 and y2 exclusive). The files of a CSV file are relative to its directory, or absolute.
        boxes: for a directory, see `carmodel.serving.client.read_boxes`.

    Returns:
        `PHOTO_COLUMNS`. A directory is sorted by name, and a CSV file keeps its order.

    Raises:
        InputError: there are no photos, or the source or the boxes cannot be read. The message names the file.
    """
    if source.is_file():
        try:
            table = pd.read_csv(source, dtype=str, keep_default_na=False)
        except (ValueError, OSError) as error:  # also pandas's errors of empty and ragged files
            raise InputError(f"photos={source} is not a CSV file in UTF-8: {error}") from None
        if not isinstance(table.index, pd.RangeIndex):
            raise InputError(
                f"photos={source} has rows with more values than columns; quote names that contain a comma"
            )
        return as_photos(table, str(source), source.parent)
    if not source.is_dir():
        raise InputError(f"photos={source}: no such directory or CSV file")
    files = find_photos(source)
    try:
        known = read_boxes(boxes, source) if boxes else {}
    except (BoxError, OSError) as error:
        raise InputError(f"boxes={boxes}: {error}") from None
    if boxes and (note := note_on_unused(boxes, known, files)):
        print(f"score: {note}")
    corners = [known.get(file.resolve(), (None,) * 4) for file in files]
    table = pd.DataFrame(corners, columns=BOX_COLUMNS, dtype=object)
    table["file"] = [file.relative_to(source).as_posix() for file in files]
    return as_photos(table, str(source), source)


def as_photos(table: pd.DataFrame, source: str, folder: Path) -> pd.DataFrame:
    """Return a table as photos, with checked boxes.

    Args:
        table: file, and optionally x1, y1, x2, y2. Empty text and null stand for no box.
        source: where the table comes from, for error messages.
        folder: what the files are relative to.

    Raises:
        InputError: the table is empty or has no column `file`, or a corner is not a whole number.
    """
    if "file" not in table:
        raise InputError(f"photos={source} has no column file; it has {', '.join(map(str, table.columns)) or 'none'}")
    if table.empty:
        raise InputError(f"photos={source} has no photos ({', '.join(SUFFIXES)})")
    names = table["file"].astype(str)
    # Arrow stores UTF-8 only, and a name on Linux may have any bytes.
    photos = pd.DataFrame({"file": [name.encode(errors="backslashreplace").decode() for name in names]})
    photos["path"] = [str((folder / file).absolute()) for file in names]
    for corner in BOX_COLUMNS:
        given = table[corner].replace("", None) if corner in table else pd.Series(None, table.index, object)
        number = pd.to_numeric(given, errors="coerce")
        wrong = (number.isna() & given.notna()) | (number % 1 > 0) | (number.abs() > LARGEST_CORNER)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise InputError(
                f"photos={source}: {corner} of {photos['file'].iloc[row]} is {given.iloc[row]!r}; give a whole number of "
                "pixels, or nothing"
            )
        photos[corner] = number.astype("Int64")
    return photos[list(PHOTO_COLUMNS)]


def local_engine(model: str, batch: int) -> Engine:
    """Return an engine that classifies in this process.

    Args:
        model: URI of a classifier.
        batch: photos per call of the classifier.
    """
    classifier = mlflow.pyfunc.load_model(model)

    def classify(photos: pd.DataFrame) -> pd.DataFrame:
        answers = []
        with tqdm(total=len(photos), unit="photo", leave=False, disable=None) as bar:
            for start in range(0, len(photos), batch):
                part = photos.iloc[start : start + batch]
                files = [read(path) for path in part["path"]]
                boxes = pd.DataFrame(boxes_of(part), columns=BOX_COLUMNS, dtype=object)
                request = boxes.assign(image=pd.Series([data for data, _ in files], dtype=object))
                answers.append(with_read_errors(classifier.predict(request), [problem for _, problem in files]))
                bar.update(len(part))
        return pd.concat(answers, ignore_index=True)

    return classify


def read(path: str) -> tuple[bytes | None, str | None]:
    """Return the bytes of a file and null, or null and why it cannot be read."""
    try:
        return Path(path).read_bytes(), None
    except OSError as error:
        return None, f"the file cannot be read: {error.strerror}"


def boxes_of(photos: pd.DataFrame) -> list[tuple[int | None, ...]]:
    """Return the corners of each photo's box, or four nulls without a box."""
    return [
        tuple(None if pd.isna(corner) else int(corner) for corner in box)
        for box in photos[list(BOX_COLUMNS)].itertuples(index=False, name=None)
    ]


def with_read_errors(answers: pd.DataFrame, problems: list[str | None]) -> pd.DataFrame:
    """Return the answers, where a file that cannot be read has that as its error."""
    errors = [problem or error for problem, error in zip(problems, answers["error"], strict=True)]
    return answers.assign(error=pd.Series(errors, answers.index, object))


def score(photos: pd.DataFrame, output: Path, engine: Callable[[], Engine], *, format: str, rows_per_file: int) -> int:
    """Write the answers that `output` does not have yet, file by file. A file gets its name when it is complete.

    Args:
        photos: the photos.
        output: directory of the answers. `claim` has checked it.
        engine: makes the engine. It is not called if all files exist.
        format: parquet or csv.
        rows_per_file: photos per file.

    Returns:
        the number of photos that were classified now.
    """
    starts = range(0, len(photos), rows_per_file)
    files = {output / f"part-{number:05}.{format}": start for number, start in enumerate(starts)}
    missing = {file: start for file, start in files.items() if not file.exists()}
    if not missing:
        return 0
    classify, scored = engine(), 0
    for file, start in tqdm(missing.items(), desc="score", unit="file", disable=None):
        part = photos.iloc[start : start + rows_per_file]
        answers = classify(part)
        answers.insert(0, "file", part["file"].to_numpy())
        write(pa.Table.from_pandas(answers[ANSWERS.names], ANSWERS, preserve_index=False), file)
        scored += len(part)
    return scored


def claim(output: Path, photos: pd.DataFrame, facts: dict[str, Any]) -> None:
    """Create the directory of the answers, and note what they are answers to.

    Args:
        output: the directory.
        photos: the photos.
        facts: what else the answers depend on, such as the model.

    Raises:
        InputError: the directory has answers to something else. The message names what differs.
    """
    digest = hashlib.blake2b(photos.to_csv(index=False).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    facts = facts | {"number of photos": len(photos), "digest of photos and boxes": digest}
    file = output / FACTS
    if file.exists():
        before = json.loads(file.read_text())
        if changed := [f"{name} was {before.get(name)}" for name in facts if before.get(name) != facts[name]]:
            raise InputError(
                f"output={output} has answers to something else: {', '.join(changed)}. Name another directory, or delete it"
            )
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output={output}: {error.strerror}; name a directory that can be written") from None
    if list(output.glob("part-*")):
        raise InputError(f"output={output} has files of answers, but no {FACTS}. Name another directory, or delete it")
    replace(file, lambda partial: partial.write_text(json.dumps(facts, indent=1) + "\n"))


def write(answers: pa.Table, file: Path) -> None:
    """Write answers as Parquet or CSV, as the suffix of the file says. In CSV, `top_k` is JSON."""
    if file.suffix == ".parquet":
        replace(file, lambda partial: pq.write_table(answers, partial))
        return
    frame = answers.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}.get)
    frame["top_k"] = [json.dumps(row) for row in answers["top_k"].to_pylist()]
    replace(file, lambda partial: frame.to_csv(partial, index=False))


def replace(file: Path, write_to: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, and rename it."""
    partial = file.with_name(f".{file.name}.{uuid4().hex}.partial")  # another process may write the same file
    try:
        write_to(partial)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def count_errors(output: Path) -> int:
    """Return the number of photos with an error, in all files of answers."""
    errors = 0
    for file in output.glob("part-*"):
        if file.suffix == ".parquet":
            column = pq.read_table(file, columns=["error"])["error"]
            errors += len(column) - column.null_count
        else:
            errors += int(pd.read_csv(file, usecols=["error"])["error"].notna().sum())
    return errors
