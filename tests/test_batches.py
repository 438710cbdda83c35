"""The batches of one rank: which rows they contain, on any number of ranks and threads."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carmodel.data.store import Store
from carmodel.errors import InputError
from carmodel.parameters import Train
from carmodel.training.batches import Batches, permutation, shard
from carmodel.training.dataset import as_dataset
from carmodel.training.device_augmentation import COLUMNS, UNCHANGED, draw
from tests.stores import store_of

ROWS, CLASSES = 43, 3
DRAW = partial(draw, params=Train(random_crop=0.5, random_flip=True, mixup=0.4))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """43 rows of 16 px, every fifth for validation; all pixels of a row hold its number."""
    path = tmp_path_factory.mktemp("store") / "train.h5"
    rows = np.arange(ROWS)
    images = np.broadcast_to(rows[:, None, None, None], (ROWS, 16, 16, 3)).astype(np.uint8)
    return store_of(path, images, rows % CLASSES, ["a", "b", "c"], rows % 5 == 0)


@pytest.fixture
def training(store: Store) -> np.ndarray:
    return np.flatnonzero(~store.validation)


def rows_of(batches: Batches) -> list[int]:
    """The rows that an epoch shows, read off the pixels."""
    return [int(image[0, 0, 0]) for step in range(len(batches)) for image in batches[step][0]]


@given(st.integers(1, 200), st.integers(1, 5), st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_ranks_share_an_epoch_without_overlap_in_equal_shards(rows: int, ranks: int, seed: int, epoch: int) -> None:
    order = permutation(np.arange(rows), seed, epoch)
    assert sorted(order) == list(range(rows))
    shards = [shard(order, rank, ranks) for rank in range(ranks)]
    assert {len(each) for each in shards} == {rows // ranks}
    seen = np.concatenate(shards)
    assert len(set(seen.tolist())) == len(seen) > rows - ranks


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 8, 33, 34, 100])
def test_all_training_batches_have_one_size_on_all_ranks(
    store: Store, training: np.ndarray, ranks: int, batch_size: int
) -> None:
    share = len(training) // ranks
    size = min(batch_size, share)
    for rank in range(ranks):
        batches = Batches(store, training, batch_size, seed=1, rank=rank, ranks=ranks)
        assert [len(batches[step][1]) for step in range(len(batches))] == [size] * (share // size)


def test_two_ranks_of_half_the_batch_see_together_what_one_process_sees(store: Store) -> None:
    rows = np.arange(32)
    one = Batches(store, rows, 8, seed=5)
    two = [Batches(store, rows, 4, seed=5, rank=rank, ranks=2) for rank in range(2)]
    for step in range(len(one)):
        together = np.concatenate([batches[step][0] for batches in two])
        assert sorted(together[:, 0, 0, 0]) == sorted(one[step][0][:, 0, 0, 0])


def test_the_order_is_new_in_every_epoch_and_a_function_of_seed_and_epoch(store: Store, training: np.ndarray) -> None:
    batches, other = (Batches(store, training, 8, seed=seed) for seed in (3, 4))
    epochs = []
    for epoch in (0, 1, 2, 1):
        batches.begin(epoch)
        epochs.append(rows_of(batches))
        assert epochs[-1] == permutation(training, 3, epoch).tolist()[:32]
    assert epochs[1] == epochs[3] and epochs[0] != epochs[1] != epochs[2]
    assert rows_of(other) != epochs[0]


@pytest.mark.parametrize("workers", [1, 4])
def test_keras_shows_the_model_in_epoch_e_the_permutation_of_e(
    workers: int, store: Store, training: np.ndarray
) -> None:
    seen: dict[int, list[int]] = {}

    class Recorder(keras.Model):
        def train_step(self, data: tuple) -> dict[str, float]:
            seen[batches.epoch] += np.asarray(data[0])[:, 0, 0, 0].tolist()
            return {"loss": 0.0}

    def begin(epoch: int, logs: object) -> None:
        seen[epoch] = []
        batches.begin(epoch)

    batches = Batches(store, training, 8, seed=11, workers=workers, max_queue_size=3)
    model = Recorder()
    model.compile("sgd", "mse", run_eagerly=True)
    begin_epochs = keras.callbacks.LambdaCallback(on_epoch_begin=begin)
    model.fit(batches, epochs=5, initial_epoch=2, shuffle=False, verbose=0, callbacks=[begin_epochs])
    assert seen == {epoch: permutation(training, 11, epoch).tolist()[:32] for epoch in (2, 3, 4)}


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="other backends read Batches themselves")
def test_a_data_set_has_the_batches_of_each_epoch_and_does_not_tune_itself(store: Store, training: np.ndarray) -> None:
    batches = Batches(store, training, 8, seed=3, draw=DRAW)
    dataset = as_dataset(batches)
    assert dataset.options().autotune.enabled is False, "the end of an epoch would wait for the tuning thread"
    for epoch in (0, 4):
        batches.begin(epoch)
        for step, (inputs, labels) in enumerate(dataset.as_numpy_iterator()):
            expected, expected_labels = batches[step]
            np.testing.assert_array_equal(labels, expected_labels)
            for name in ("image", "numbers"):
                np.testing.assert_array_equal(inputs[name], expected[name])
        assert step + 1 == len(batches) == len(dataset)
    validation = Batches(store, training[:10], 8)
    assert [len(labels) for _, labels in as_dataset(validation)] == [8, 2]


def test_a_batch_is_the_same_on_any_thread(store: Store, training: np.ndarray) -> None:
    batches = Batches(store, training, 4, seed=2, draw=DRAW)
    batches.begin(6)
    alone = [batches[step] for step in range(len(batches))]
    with ThreadPoolExecutor(4) as pool:
        for (inputs, labels), (same, same_labels) in zip(alone, pool.map(batches.__getitem__, range(8)), strict=True):
            assert isinstance(inputs, dict) and isinstance(same, dict)
            assert np.array_equal(inputs["image"], same["image"]) and np.array_equal(inputs["numbers"], same["numbers"])
            assert np.array_equal(labels, same_labels)


def test_a_rows_numbers_are_the_same_on_every_number_of_ranks(store: Store, training: np.ndarray) -> None:
    def numbers_by_row(batches: Batches) -> dict[int, list[float]]:
        inputs = [batches[step][0] for step in range(len(batches))]
        return {int(i[0, 0, 0]): v.tolist() for x in inputs for i, v in zip(x["image"], x["numbers"], strict=True)}

    one = numbers_by_row(Batches(store, training, 8, seed=2, draw=DRAW))
    for rank in range(3):
        shared = numbers_by_row(Batches(store, training, 5, seed=2, draw=DRAW, rank=rank, ranks=3))
        assert shared == {row: one[row] for row in shared}


def test_images_stay_uint8_and_labels_are_one_hot(store: Store, training: np.ndarray) -> None:
    images, labels = Batches(store, training, 8, seed=0)[0]
    assert isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape == (8, 16, 16, 3)
    assert labels.dtype == np.float32
    assert np.array_equal(labels.argmax(axis=1), images[:, 0, 0, 0] % CLASSES) and np.all(labels.sum(axis=1) == 1)


def test_labels_are_mixed_as_the_numbers_say(store: Store, training: np.ndarray) -> None:
    inputs, labels = Batches(store, training, 8, seed=0, draw=DRAW)[0]
    assert isinstance(inputs, dict)
    share, rows = inputs["numbers"][:, COLUMNS.index("share")], inputs["image"][:, 0, 0, 0].astype(int)
    for i, row in enumerate(rows):
        expected = np.zeros(CLASSES)
        expected[row % CLASSES] += share[i]
        expected[rows[(i + 1) % len(rows)] % CLASSES] += 1 - share[i]
        np.testing.assert_allclose(labels[i], expected, atol=1e-6)


def test_without_a_seed_rows_come_in_order_and_are_not_augmented(store: Store) -> None:
    rows = np.flatnonzero(store.validation)
    plain, with_numbers = Batches(store, rows, 4), Batches(store, rows, 4, draw=DRAW)
    for batches in (plain, with_numbers):
        batches.begin(3)
    assert rows_of(plain) == rows.tolist()
    inputs, labels = with_numbers[0]
    assert isinstance(inputs, dict)
    assert np.array_equal(inputs["numbers"], np.tile(UNCHANGED, (4, 1))) and set(labels.ravel()) == {0, 1}


def test_fewer_rows_than_processes_is_an_error(store: Store) -> None:
    with pytest.raises(InputError, match="2 rows cannot be shared by 3 processes"):
        Batches(store, np.arange(2), 8, seed=0, ranks=3)
