"""The forward pass: any number of photos, no tracing after the start, from many threads."""

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carmodel.serving.forward import Forward


class Tally(keras.layers.Layer):
    """Counts how often it is traced."""

    traced = 0

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        self.traced += 1
        return x


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((4, 4, 3), dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(Tally(name="tally")(image)))
    return keras.Model(image, keras.layers.Dense(5, activation="softmax")(x))


@pytest.fixture(scope="module")
def forward(network: keras.Model) -> Forward:
    return Forward(network, 4)


def photos(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 4, 4, 3), np.uint8)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(0, 100))
def test_any_number_of_photos_gets_the_network_s_answers(network: keras.Model, forward: Forward, rows: int) -> None:
    answers = forward(photos(rows))
    assert answers.shape == (rows, 5)
    if rows:
        np.testing.assert_allclose(answers, network(photos(rows)).numpy(), atol=1e-6)


def test_no_number_of_photos_traces_the_network_again(network: keras.Model, forward: Forward) -> None:
    before = network.get_layer("tally").traced
    for rows in (1, 2, 3, 31, 32, 33, 100):
        forward(photos(rows))
    assert network.get_layer("tally").traced == before


def test_threads_get_their_own_answers(network: keras.Model, forward: Forward) -> None:
    requests = [photos(1 + seed % 7, seed) for seed in range(60)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(forward, requests))
    for request, answer in zip(requests, answers, strict=True):
        np.testing.assert_allclose(answer, network(request).numpy(), atol=1e-6)
