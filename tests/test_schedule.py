"""The learning rate over a run, and the optimizer that follows it."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carmodel.model.network import build
from carmodel.parameters import Train
from carmodel.training.optimizer import make_optimizer, rate_factors
from carmodel.training.schedule import stages, warmup_cosine


def rates(peak: float, epochs: int, warmup_epochs: float, steps_per_epoch: int) -> np.ndarray:
    schedule = warmup_cosine(peak, epochs, warmup_epochs, steps_per_epoch)
    return np.array([float(schedule(step)) for step in range(epochs * steps_per_epoch + 1)])


def test_the_rate_rises_by_equal_steps_to_the_peak_and_falls_as_a_cosine_to_zero() -> None:
    measured = rates(0.4, epochs=5, warmup_epochs=1, steps_per_epoch=4)
    np.testing.assert_allclose(measured[:5], [0.08, 0.16, 0.24, 0.32, 0.4], rtol=1e-5)
    np.testing.assert_allclose(measured[4:], 0.2 * (1 + np.cos(np.pi * np.arange(17) / 16)), atol=1e-7)


def test_without_warm_up_the_first_step_has_the_peak_rate() -> None:
    assert rates(0.4, 3, 0, 5)[0] == pytest.approx(0.4)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.floats(0, 5), st.integers(1, 4))
def test_every_step_has_a_rate_above_zero_and_at_most_the_peak(epochs: int, warmup: float, steps: int) -> None:
    measured = rates(0.1, epochs, warmup, steps)
    assert np.all(measured[:-1] > 0) and measured.max() <= 0.1 * (1 + 1e-6)
    assert measured[-1] == pytest.approx(0, abs=1e-7)


def test_epochs_are_a_number_or_a_schedule_of_sizes() -> None:
    assert stages("30", 224) == [(224, 30)]
    assert stages("128x4,160x4,192x2", 224) == [(128, 4), (160, 8), (192, 10)]
    for wrong in ("0", "128x0", "x4", "128x4,", "1.5", "128x4 160x4"):
        with pytest.raises(ValueError, match="epochs"):
            Train(epochs=wrong)
    assert Train(epochs=7).epochs == "7"


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_kernels_decay_at_their_own_rate_and_vectors_do_not(name: str) -> None:
    params = Train(depth=14, width=4, optimizer=name, learning_rate=0.5, weight_decay=0.1, warmup_epochs=0)
    model = build(params, ["a", "b", "c"])
    for variable in model.trainable_variables:
        variable.assign(keras.ops.ones_like(variable))
    optimizer = make_optimizer(
        params, model.trainable_variables, epochs=2, steps_per_epoch=10, factors={"stem_conv1/kernel": 0.2}
    )
    optimizer.apply([keras.ops.zeros_like(v) for v in model.trainable_variables], model.trainable_variables)
    after = {variable.path: float(keras.ops.max(variable)) for variable in model.trainable_variables}
    assert {path.rpartition("/")[2] for path in after} == {"kernel", "bias", "gamma", "beta"}
    for path, value in after.items():
        expected = 0.99 if path.startswith("stem") else 0.95
        assert value == pytest.approx(expected if path.endswith("kernel") else 1.0), path


def test_each_stage_learns_at_a_fraction_of_the_rate_of_the_one_above() -> None:
    network = build(Train(depth=14, width=4), ["a", "b"])
    factors = rate_factors(network, layer_decay=0.5)
    for layer, stages_below in {"stem_conv1": 5, "stage2_block1_conv1": 4, "stage4_block1_conv2": 2}.items():
        assert factors[f"{layer}/kernel"] == pytest.approx(0.5**stages_below)
    assert factors["stage5_block1_scale3/gamma"] == pytest.approx(0.5)
    assert "logits/kernel" not in factors
    assert rate_factors(network, layer_decay=1) == {}


@pytest.mark.parametrize(("backbone", "last"), [("EfficientNetV2B0", "top_conv"), ("MobileNetV3Small", "conv_1")])
def test_squeeze_and_excitation_belongs_to_the_stage_of_its_block(backbone: str, last: str) -> None:
    network = build(Train(backbone=backbone, weights="none"), ["a", "b"])
    factors = rate_factors(network, layer_decay=0.5)
    assert factors[f"{last}/kernel"] == pytest.approx(0.5)
    of_block = {path.partition("_")[0]: [] for path in factors if "_se_" in path}
    for path, factor in factors.items():
        if path.partition("_")[0] in of_block and ("_se_" in path or "dwconv2" in path):
            of_block[path.partition("_")[0]].append(factor)
    assert all(len(set(found)) == 1 for found in of_block.values())
    assert len(set(factors.values())) == 5


def test_the_optimizer_is_the_one_asked_for() -> None:
    network = build(Train(depth=14, width=4), ["a", "b"])
    sgd, adamw = (
        make_optimizer(Train(optimizer=name, ema=0.9), network.trainable_variables, 1, 100) for name in ("sgd", "adamw")
    )
    assert isinstance(sgd, keras.optimizers.SGD) and sgd.nesterov and sgd.momentum == 0.9
    assert isinstance(adamw, keras.optimizers.Adam) and adamw.use_ema and adamw.ema_momentum == 0.9


@pytest.mark.parametrize(("steps", "momentum"), [(5, 0), (20, 0.5), (1000, 0.99), (1001, 0.99)])
def test_the_moving_average_of_a_short_training_forgets_its_first_weights(steps: int, momentum: float) -> None:
    network = build(Train(depth=14, width=4), ["a", "b"])
    optimizer = make_optimizer(Train(ema=0.99), network.trainable_variables, 1, steps)
    assert optimizer.use_ema and optimizer.ema_momentum == pytest.approx(momentum)
