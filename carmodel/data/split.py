"""Holding photos out, for validation or for the test: seeded, by content, independent of order."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

TEST_FRACTION = 0.2  # where a data set has no labelled test of its own


def digest(data: bytes) -> bytes:
    """BLAKE2b of a file's bytes, 16 bytes long."""
    return hashlib.blake2b(data, digest_size=16).digest()


def file_digest(path: str | Path) -> bytes:
    """`digest` of a file."""
    return digest(Path(path).read_bytes())


def hold_out_test(photos: pd.DataFrame, seed: int) -> pd.DataFrame:
    """MakeImages a fifth of each class (at least one photo) of a table of training photos its test, by `hold_out`.

    A file that cannot be read is a photo unlike all others.
    """
    digests = [_content_or_name(*photo) for photo in zip(photos["path"], photos["source"], strict=True)]
    held = hold_out(photos["label"].to_numpy(), digests, TEST_FRACTION, seed, at_least=1)
    return photos.assign(split=np.where(held, "test", "train")).sort_values(["split", "source"], ignore_index=True)


def _content_or_name(path: str, source: str) -> bytes:
    try:
        return file_digest(path)
    except OSError:  # the scan of the photos lists it as unreadable
        return digest(source.encode())


def hold_out(
    labels: Sequence[int] | np.ndarray,
    digests: Sequence[bytes] | np.ndarray,
    fraction: float,
    seed: int,
    at_least: int = 0,
) -> np.ndarray:
    """Choose the given part of every class.

    Byte-identical photos share a side, those that carry two different labels always stay, and every class keeps a
    photo. The choice depends on the seed and on the photos' bytes alone: it is the same in any order of the rows.

    Args:
        labels: int (N,).
        digests: N digests of the photos' bytes.
        fraction: part of each class to hold out, rounded to whole photos.
        seed: another seed, another choice.
        at_least: photos to hold out of each class that has more than that many.

    Returns:
        bool (N,), true where held out.
    """
    labels = np.asarray(labels)
    twins: dict[bytes, list[int]] = defaultdict(list)
    for row, key in enumerate(digests):
        twins[key].append(row)
    # Twins with two labels are left out of the choice: at least one of the labels is wrong.
    groups = [rows for rows in twins.values() if len(set(labels[rows])) == 1]
    salt = seed.to_bytes(8, "big")
    groups.sort(key=lambda rows: digest(salt + digests[rows[0]]))
    classes, sizes = np.unique(labels, return_counts=True)
    wanted = np.maximum(np.round(fraction * sizes).astype(int), at_least)
    quota = dict(zip(classes.tolist(), np.minimum(wanted, sizes - 1).tolist(), strict=True))
    held = np.zeros(len(labels), np.bool_)
    for rows in groups:
        label = int(labels[rows[0]])
        if len(rows) <= quota[label]:
            held[rows] = True
            quota[label] -= len(rows)
    return held
