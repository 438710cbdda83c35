"""The figures, the evaluation of a model, and the report."""

import json
from collections.abc import Callable
from pathlib import Path

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from carmodel.data.store import Store
from carmodel.errors import InputError
from carmodel.evaluation import figures, metrics
from carmodel.evaluation.predictions import evaluate
from carmodel.evaluation.report import write_report
from carmodel.evaluation.tables import Material
from carmodel.mlflow_model import log_network
from carmodel.model.folding import in_float32
from carmodel.model.resnet import resnet
from carmodel.model.scale import Scale
from carmodel.parameters import Evaluate
from carmodel.tracking.artifacts import fetch
from carmodel.tracking.runs import step_run
from steps.evaluate import load, work
from tests.policy import mixed_bfloat16
from tests.stores import store_of
from tests.tracked import tracked_in

SIZE = 8
NAMES = ["red", "green", "blue"]


def drawn(figure: Figure) -> str:
    """Render the figure and return all its text."""
    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Six photos of one colour each; the last one's label is wrong."""
    path = tmp_path_factory.mktemp("store") / "test.h5"
    colours = np.array([0, 1, 2, 0, 1, 2])
    images = np.zeros((6, SIZE, SIZE, 3), np.uint8)
    images[np.arange(6), :, :, colours] = 255
    return store_of(path, images, [0, 1, 2, 0, 1, 0], NAMES, split="test")


@pytest.fixture(scope="module")
def colour_model() -> Callable:
    """Makes a network that names the brightest channel."""

    def make(classes: int = 3, size: int = SIZE, activation: str = "softmax") -> keras.Model:
        image = keras.Input((size, size, 3), dtype="uint8")
        mean = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 64)(image))
        dense = keras.layers.Dense(classes, activation=activation, kernel_initializer="identity")
        return keras.Model(image, dense(mean))

    return make


def test_training_curves_show_loss_accuracy_and_learning_rate() -> None:
    history = {"loss": [2.0, 1.0], "val_loss": [2.1, 1.5], "accuracy": [0.1, 0.6], "learning_rate": [0.1, 0.05]}
    text = drawn(figures.training_curves(history, "synthetic sample"))
    for words in ("Training", "synthetic sample", "loss", "accuracy", "learning rate", "validation"):
        assert words in text
    assert "learning rate" not in drawn(figures.training_curves({"loss": [1.0], "accuracy": [0.5]}))


@pytest.mark.parametrize(("classes", "named"), [(2, True), (8, True), (196, False)])
def test_a_confusion_matrix_names_its_classes_only_when_they_are_few(classes: int, named: bool) -> None:
    names = [f"Maker Model {i} Sedan 2012" for i in range(classes)]
    matrix = np.eye(classes, dtype=int) * 40
    matrix[0, 1] = 17
    figure = figures.confusion_matrix(matrix, names, "synthetic sample")
    text = drawn(figure)
    assert ("Maker Model 1 Sedan 2012" in text) == named == ("17" in text.split("\n"))
    assert "synthetic sample" in text
    assert max(figure.get_size_inches()) < 16


@pytest.mark.parametrize("count", [0, 1, 5, 16])
def test_mistakes_show_each_photo_with_truth_answer_and_probability(count: int) -> None:
    images = np.zeros((count, SIZE, SIZE, 3), np.uint8)
    text = drawn(figures.mistakes(images, ["Fiat"] * count, ["Audi"] * count, [0.914] * count, "synthetic sample"))
    assert text.count("true: Fiat\npredicted: Audi (91%)") == count
    assert ("no mistakes" in text) == (count == 0)


@pytest.mark.parametrize("classes", [3, 196])
def test_per_class_bars_show_the_worst_and_the_best(classes: int) -> None:
    rows = np.full(classes, 200)
    table = pd.DataFrame({"class": [f"class {i}" for i in range(classes)], "rows": rows, "correct": range(classes)})
    table["accuracy"] = table["correct"] / table["rows"]
    table.loc[1, "accuracy"] = np.nan
    text = drawn(figures.per_class_accuracy(table))
    assert "class 0 (200)" in text
    assert f"class {classes - 1} (200)" in text
    assert "class 1 (200)" not in text
    assert "class 100 (200)" not in text, "of many classes the middle is left out"


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_evaluation_is_the_same_for_any_batch_size(store: Store, colour_model: Callable, batch_size: int) -> None:
    evaluation = evaluate(colour_model(), store, batch_size, NAMES)
    assert evaluation.probabilities.dtype == np.float32
    assert evaluation.probabilities.argmax(axis=1).tolist() == [0, 1, 2, 0, 1, 2]
    assert metrics.summary(evaluation.labels, evaluation.probabilities)["top1"] == pytest.approx(5 / 6)


def test_photos_can_be_evaluated_at_another_size(store: Store) -> None:
    image = keras.Input((None, None, 3), dtype="uint8")
    area = keras.ops.mean(keras.ops.ones_like(image, dtype="float32"), axis=-1)
    area = keras.ops.sum(area, axis=(1, 2))[:, None] / 1024
    network = keras.Model(image, keras.ops.concatenate([area, 1 - area, 0 * area], axis=1))
    for flip in (False, True):
        answers = evaluate(network, store, 4, NAMES, image_size=16, flip=flip).probabilities
        np.testing.assert_allclose(answers[:, 0], 16 * 16 / 1024)


def test_a_network_trained_in_bfloat16_is_evaluated_in_float32_on_a_cpu(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with mixed_bfloat16():
        network = resnet(14, 3, width=4)
    with tracked_in(tmp_path):
        with mlflow.start_run():
            uri = log_network(network, store.take([0]), {"class_names": NAMES}, {}).model_uri
        settings = Evaluate(store_uri=str(store.paths[0].parent), model_uri=uri)
        with step_run("evaluate", settings) as step:
            work(settings, step)
        measured = mlflow.get_run(step.run_id).data.metrics["test_log_loss"]

    def log_loss(network: keras.Model) -> float:
        evaluation = evaluate(network, store, 6, NAMES)
        return metrics.summary(evaluation.labels, evaluation.probabilities)["log_loss"]

    assert measured == pytest.approx(log_loss(in_float32(network)), rel=1e-6)
    assert measured != pytest.approx(log_loss(network), rel=1e-5)


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """A model that is not functional, so Keras cannot copy it."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.convolution, self.norm = keras.layers.Conv2D(2, 3), keras.layers.BatchNormalization()

    def call(self, images: object) -> object:
        return self.norm(self.convolution(images))


def test_functional_models_are_folded_and_others_are_not_changed(store: Store, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    network, other = resnet(14, 3, width=4), Subclassed()
    other(np.zeros((1, SIZE, SIZE, 3), np.float32))
    with mixed_bfloat16():
        stack = keras.Sequential(
            [keras.Input((SIZE, SIZE, 3)), keras.layers.Conv2D(2, 3), keras.layers.BatchNormalization()]
        )
    with tracked_in(tmp_path), mlflow.start_run():
        ours = log_network(network, store.take([0]), {"class_names": NAMES}, {}).model_uri
        theirs = [
            mlflow.tensorflow.log_model(model, name="other", metadata={"class_names": NAMES}).model_uri
            for model in (other, stack)
        ]
        (folded, names), *unchanged = map(load, [ours, *theirs])
    kinds = {type(layer) for layer in folded.layers}
    assert names == NAMES and not {Scale, keras.layers.BatchNormalization} & kinds
    np.testing.assert_allclose(folded(store.take([0, 1])), network(store.take([0, 1])), atol=1e-5)
    assert [type(model) for model, _ in unchanged] == [Subclassed, keras.Sequential]


def test_a_model_with_a_function_that_only_mlflow_knows_is_not_changed(tmp_path: Path) -> None:
    def doubled(x: object) -> object:
        return 2 * x

    network = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            keras.layers.Conv2D(2, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Activation(doubled),
        ]
    )
    image = np.ones((1, SIZE, SIZE, 3), np.float32)
    with tracked_in(tmp_path), mlflow.start_run():
        known = {"custom_objects": {"doubled": doubled}}
        loaded, _ = load(mlflow.tensorflow.log_model(network, name="other", **known).model_uri)
    np.testing.assert_allclose(loaded(image), network(image), rtol=1e-5)


def test_evaluate_compares_two_models_on_the_same_photos(store: Store, colour_model: Callable, tmp_path: Path) -> None:
    good, poor = colour_model(), colour_model()
    poor.layers[-1].set_weights([np.eye(3)[[1, 0, 2]], np.zeros(3)])
    with tracked_in(tmp_path):
        with mlflow.start_run():
            new, old = (log_network(network, store.take([0]), {"class_names": NAMES}, {}) for network in (good, poor))
        folder = str(store.paths[0].parent)
        settings = Evaluate(store_uri=folder, model_uri=new.model_uri, compare_uri=old.model_uri)
        with step_run("evaluate", settings) as step:
            work(settings, step)
        measured = mlflow.get_run(step.run_id).data.metrics
        changed = pd.read_csv(fetch(step.outputs["report"]["uri"]) / "changed.csv")
    assert (measured["test_gained"], measured["test_lost"], measured["test_mcnemar_p"]) == (4, 0, 0.125)
    assert changed["change"].tolist() == ["gained"] * 4


def test_the_report_holds_numbers_tables_and_pictures(store: Store, colour_model: Callable, tmp_path: Path) -> None:
    network = colour_model()
    evaluation, material = evaluate(network, store, 4, NAMES), Material(network=(network, 0))
    numbers = write_report(tmp_path / "report", evaluation, store, subtitle="synthetic", material=material)
    files = {path.name: path for path in (tmp_path / "report").iterdir()}
    tables = {"per_class", "confusion_matrix", "predictions", "intervals", "confused_pairs", "calibration", "coverage"}
    pictures = {"confusion_matrix.png", "mistakes.png", "per_class.png"}
    assert set(files) == {f"{name}.csv" for name in (*tables, "near_identical")} | pictures | {
        "metrics.json",
        "index.html",
    }
    assert json.loads(files["metrics.json"].read_text()) == numbers
    predictions = pd.read_csv(files["predictions.csv"])
    assert predictions.columns.tolist() == ["source", "label", "predicted", "probability"]
    assert predictions["source"].tolist() == [f"{i}.jpg" for i in range(6)]
    assert predictions.iloc[5][["label", "predicted"]].tolist() == ["red", "blue"]
    matrix = pd.read_csv(files["confusion_matrix.csv"], index_col="true")
    assert matrix.columns.tolist() == matrix.index.tolist() == NAMES
    assert matrix.loc["red", "blue"] == 1
    assert files["index.html"].read_text().count("Where the network sees blue") == 2, (
        "of a right answer and a wrong one"
    )


@pytest.mark.parametrize(
    ("network", "names", "said"),
    [
        ({}, ["red", "grey", "blue"], "class 1 is 'grey' for the model and 'green' in the store"),
        ({"classes": 2}, NAMES[:2], "2 against 3"),
        ({"classes": 2}, None, "answers with 2 classes and the store has 3"),
        ({"size": 16}, NAMES, "image_size"),
        ({"activation": "linear"}, NAMES, "not probabilities"),
    ],
)
def test_a_model_that_does_not_fit_the_store_is_refused(
    store: Store, colour_model: Callable, network: dict, names: list[str] | None, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        evaluate(colour_model(**network), store, 4, names)
