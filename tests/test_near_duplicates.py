"""Near-duplicates: copies of a photo have similar hashes, other photos do not."""

from itertools import combinations

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from carmodel.data.images import prepare, resize
from carmodel.data.near_duplicates import HASH_BYTES, MAX_DISTANCE, group_duplicates, near_pairs, perceptual_hash


def flipped(bits: list[int]) -> bytes:
    """A hash in which only these bits are 0."""
    hash_bits = np.ones(8 * HASH_BYTES, np.uint8)
    hash_bits[bits] = 0
    return np.packbits(hash_bits).tobytes()


def test_a_changed_copy_has_a_near_hash_and_other_photos_do_not() -> None:
    hashes = []
    for seed in range(8):
        colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
        photo = cv2.resize(colours, (240, 180), interpolation=cv2.INTER_CUBIC)
        larger = cv2.resize(cv2.convertScaleAbs(photo, alpha=0.8), None, fx=1.4, fy=1.6)
        _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(larger, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 60])
        hashes += [perceptual_hash(resize(photo, 64, 64)), perceptual_hash(prepare(jpeg.tobytes(), 64))]
    assert list(zip(*near_pairs(hashes), strict=True)) == [(i, i + 1) for i in range(0, 16, 2)]


@given(st.lists(st.lists(st.integers(0, 255), max_size=60), max_size=12))
def test_pairs_within_the_distance_are_found(bits: list[list[int]]) -> None:
    near = [(a, b) for a, b in combinations(range(len(bits)), 2) if len(set(bits[a]) ^ set(bits[b])) <= MAX_DISTANCE]
    assert list(zip(*near_pairs([flipped(row) for row in bits]), strict=True)) == near


def test_different_photos_on_a_plain_background_are_not_near() -> None:
    hashes = []
    for seed in range(8):
        photo = np.full((180, 240, 3), 255, np.uint8)
        colours = np.random.default_rng(seed).integers(0, 200, (3, 4, 3), np.uint8)
        photo[60:120, 70:170] = cv2.resize(colours, (100, 60), interpolation=cv2.INTER_CUBIC)
        _, jpeg = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 60])
        hashes += [perceptual_hash(resize(photo, 64, 64)), perceptual_hash(prepare(jpeg.tobytes(), 64))]
    words = np.frombuffer(b"".join(hashes), np.uint8).reshape(16, HASH_BYTES)
    assert np.bitwise_count(words[0] ^ words[2]).sum() <= MAX_DISTANCE
    assert all(b == a + 1 and a % 2 == 0 for a, b in zip(*near_pairs(hashes), strict=True))


def test_an_opposite_hash_is_not_near() -> None:
    assert len(near_pairs([bytes(HASH_BYTES), b"\xff" * HASH_BYTES])[0]) == 0


def test_groups_join_equal_files_and_chains_of_near_photos() -> None:
    chain = [flipped(list(range(start, start + 14))) for start in (0, 14, 28)]
    groups = group_duplicates([b"a", b"b", b"c", b"d", b"e", b"e"], [*chain, flipped(list(range(99, 199))), *chain[:2]])
    assert groups[0] == groups[1] == groups[2] == groups[4]
    assert groups[4] == groups[5]
    assert groups[3] != groups[0]
    far = flipped(list(range(128, 228)))
    assert len(set(group_duplicates([b"a", b"a", b"b"], [bytes(HASH_BYTES), far, flipped(list(range(60)))]))) == 2
