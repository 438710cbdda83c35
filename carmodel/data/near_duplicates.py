"""Find photos that show the same picture: scaled, compressed again or cropped a little differently.

The perceptual hash is a difference hash of 256 bits: N. Krawetz, "Kind of Like That", 2013,
https://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from carmodel.data.images import resize

SIDE = 16
HASH_BYTES = SIDE * SIDE // 8
# Among 10,182 photos of Stanford Cars, all 36 pairs up to a distance of 31 bits show the same picture, and 33 of them lie
# within 28 bits. From 32 bits on, some pairs are different photos of similar cars at the same angle.
MAX_DISTANCE = 28
# A pixel of a plain background gives a 0 in every hash. For two photos with fewer bits than this that are 1 in either hash,
# the distance must be smaller in proportion. In photos that fill their frame, about half of the 256 bits are 1.
MIN_INFORMATIVE = 128


def perceptual_hash(image: np.ndarray) -> bytes:
    """Return whether each pixel of a 16 x 16 grey thumbnail is darker than its right neighbour, as 32 bytes.

    Args:
        image: uint8 (H, W, 3) RGB.
    """
    grey = resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), SIDE + 1, SIDE)
    return np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes()


def group_duplicates(digests: Sequence[bytes], hashes: Sequence[bytes]) -> np.ndarray:
    """Group photos that are byte-identical or nearly identical, directly or through other photos of the group.

    Args:
        digests: N digests of the photos' files.
        hashes: N perceptual hashes.

    Returns:
        int (N,), the number of each photo's group, from 0.
    """
    rows = np.arange(len(digests))
    _, first, group = np.unique(np.array(digests, dtype=object), return_index=True, return_inverse=True)
    a, b = near_pairs(hashes)
    edges = np.concatenate([rows, a]), np.concatenate([first[group], b])
    graph = coo_array((np.ones(len(edges[0]), np.bool_), edges), shape=(len(rows), len(rows)))
    return connected_components(graph, directed=False)[1]


def near_pairs(hashes: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of rows (a < b) that show the same picture, as two arrays int (P,).

    Their hashes differ in at most `MAX_DISTANCE` bits, or fewer if the photos have a plain background.
    """
    words = np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, HASH_BYTES // 8).T.copy()
    pairs = [np.empty((2, 0), np.int64)]
    for row in range(len(hashes) - 1):
        distance = np.bitwise_count(words[:, row + 1 :] ^ words[:, row, None]).sum(axis=0, dtype=np.uint16)
        others = np.flatnonzero(distance <= MAX_DISTANCE) + row + 1
        pairs.append(np.stack([np.full(len(others), row), others]))
    a, b = np.concatenate(pairs, axis=1)
    distance, informative = (
        np.bitwise_count(bits).sum(axis=0, dtype=np.int64)
        for bits in (words[:, a] ^ words[:, b], words[:, a] | words[:, b])
    )
    same = distance * MIN_INFORMATIVE <= MAX_DISTANCE * np.minimum(informative, MIN_INFORMATIVE)
    return a[same], b[same]
