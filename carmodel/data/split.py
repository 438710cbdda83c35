"""Choose the validation part and the test part by the seed and the content of the photos, not by their order."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

TEST_FRACTION = 0.2  # for data sets without a labelled test set


def digest(data: bytes) -> bytes:
    """Return the BLAKE2b digest of a file's bytes, 16 bytes long."""
    return hashlib.blake2b(data, digest_size=16).digest()


def file_digest(path: str | Path) -> bytes:
    """Return the `digest` of a file."""
    return digest(Path(path).read_bytes())


def hold_out_test(photos: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Move a fifth of each class of a table of training photos, at least one photo, to the test set.

    The choice is made by `hold_out`. A file that cannot be read counts as different from all others.
    """
    digests = [_digest_of_content_or_name(*photo) for photo in zip(photos["path"], photos["source"], strict=True)]
    held = hold_out(photos["label"].to_numpy(), digests, TEST_FRACTION, seed, at_least=1)
    return photos.assign(split=np.where(held, "test", "train")).sort_values(["split", "source"], ignore_index=True)


def _digest_of_content_or_name(path: str, source: str) -> bytes:
    try:
        return file_digest(path)
    except OSError:  # decoding lists it as unreadable
        return digest(source.encode())


def hold_out(
    labels: Sequence[int] | np.ndarray,
    digests: Sequence[bytes] | np.ndarray,
    fraction: float,
    seed: int,
    *,
    at_least: int = 0,
    groups: Sequence[int] | np.ndarray | None = None,
) -> np.ndarray:
    """Choose a fraction of the photos of every class.

    The photos of a group are held out together or not at all. A group with two labels is never held out, since one of
    the labels is wrong. Every class keeps a photo. The choice depends on the seed and the photos' content alone.

    Args:
        labels: int (N,).
        digests: N digests of the photos' bytes.
        fraction: part of each class to hold out, rounded to whole photos.
        seed: another seed makes another choice.
        at_least: number of photos to hold out of each class that has more than that many.
        groups: int (N,), such as near-duplicates. By default, byte-identical photos form a group.

    Returns:
        bool (N,), true for the photos held out.
    """
    labels = np.asarray(labels)
    members: dict[object, list[int]] = defaultdict(list)
    for row, key in enumerate(digests if groups is None else groups):
        members[key].append(row)
    one_label = [rows for rows in members.values() if len(set(labels[rows])) == 1]
    salt = seed.to_bytes(8, "big")
    one_label.sort(key=lambda rows: digest(salt + min(digests[row] for row in rows)))
    classes, sizes = np.unique(labels, return_counts=True)
    target = np.maximum(np.round(fraction * sizes).astype(int), at_least)
    quota = dict(zip(classes.tolist(), np.minimum(target, sizes - 1).tolist(), strict=True))
    held = np.zeros(len(labels), np.bool_)
    for rows in one_label:
        label = int(labels[rows[0]])
        if len(rows) <= quota[label]:
            held[rows] = True
            quota[label] -= len(rows)
    return held
