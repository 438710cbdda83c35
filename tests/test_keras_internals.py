"""The private interfaces of Keras still do what the project needs."""

import keras
import numpy as np
import pytest

from carmodel.model.keras_internals import change_gradients, has_changed_gradients, index_of, inputs_of_calls


def test_each_call_of_a_shared_layer_has_its_own_inputs() -> None:
    first, second = keras.Input((2,)), keras.Input((2,))
    shared = keras.layers.Dense(3)
    model = keras.Model([first, second], keras.layers.Add()([shared(first), shared(second)]))
    another = keras.Model(third := keras.Input((2,)), shared(third))
    (one,), (other,) = inputs_of_calls(shared, model)
    assert one is first and other is second
    assert [[id(tensor) for tensor in call] for call in inputs_of_calls(shared, another)] == [[id(third)]]


def test_update_step_can_find_which_variable_it_updates() -> None:
    seen: list[int] = []

    class Recorder(keras.optimizers.SGD):
        def update_step(self, gradient, variable, learning_rate) -> None:
            seen.append(index_of(self, variable))

    variables = [keras.Variable(np.ones(2, np.float32)) for _ in range(3)]
    optimizer = Recorder()
    optimizer.build(variables)
    optimizer.apply([keras.ops.ones(2)] * 3, variables)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("optimizer", [keras.optimizers.SGD, keras.optimizers.AdamW])
def test_gradients_are_changed_once_per_update_and_before_clipping(optimizer: type) -> None:
    calls: list[float] = []

    def halve(gradients):
        calls.append(float(gradients[0][0]))
        return [gradient / 2 for gradient in gradients]

    variable = keras.Variable(np.zeros(1, np.float32))
    sgd = optimizer(1.0, gradient_accumulation_steps=2, clipvalue=1.0)
    assert not has_changed_gradients(sgd)
    change_gradients(sgd, halve)
    assert has_changed_gradients(sgd)
    for gradient in (1.0, 5.0):
        sgd.apply([keras.ops.full((1,), gradient)], [variable])
    assert calls == [3.0], "the mean of two micro-batches, before it is clipped"
    if optimizer is keras.optimizers.SGD:
        assert variable.numpy() == pytest.approx(-1.0)


def test_an_optimizer_with_changed_gradients_is_saved_as_an_ordinary_one() -> None:
    sgd = keras.optimizers.SGD(0.5)
    change_gradients(sgd, lambda gradients: gradients)
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(sgd))
    assert type(copy) is keras.optimizers.SGD and not has_changed_gradients(copy)
