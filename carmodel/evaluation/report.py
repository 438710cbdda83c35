"""Write the report on a test: an HTML page, and its numbers, tables and pictures as files."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from carmodel.data.store import Store
from carmodel.evaluation import figures, metrics
from carmodel.evaluation.page import write_page
from carmodel.evaluation.predictions import Evaluation
from carmodel.evaluation.tables import Material, numbers_of, tables_of


def write_report(
    folder: Path,
    evaluation: Evaluation,
    store: Store,
    mistakes: int = 16,
    subtitle: str = "",
    *,
    material: Material | None = None,
) -> dict[str, float]:
    """Write the report into a folder and return the numbers of metrics.json.

    It consists of index.html, which shows everything, metrics.json, predictions.csv (source, label, predicted,
    probability), confusion_matrix.csv (rows true, columns predicted), the tables of `carmodel.evaluation.tables` as CSV
    files, confusion_matrix.png, per_class.png and mistakes.png.

    Args:
        folder: created if it does not exist.
        evaluation: predictions for `store`.
        store: the test store.
        mistakes: largest number of photos in mistakes.png.
        subtitle: second title of every figure, such as "synthetic sample".
        material: what the page shows besides.
    """
    folder.mkdir(parents=True, exist_ok=True)
    material = material or Material()
    labels, names = evaluation.labels, np.array(evaluation.class_names)
    numbers = numbers_of(evaluation, material)
    (folder / "metrics.json").write_text(json.dumps(numbers, indent=2) + "\n")

    tables = tables_of(evaluation, store, material)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    evaluation.table(store).to_csv(folder / "predictions.csv", index=False)
    figures.per_class_accuracy(tables["per_class"], subtitle).savefig(folder / "per_class.png")

    matrix = metrics.confusion_matrix(labels, evaluation.probabilities)
    pd.DataFrame(matrix, index=names, columns=names).to_csv(folder / "confusion_matrix.csv", index_label="true")
    figures.confusion_matrix(matrix, evaluation.class_names, subtitle).savefig(folder / "confusion_matrix.png")

    worst = metrics.worst_mistakes(labels, evaluation.probabilities, mistakes)
    answers, confidence = evaluation.answers[worst], evaluation.confidence[worst]
    picture = figures.mistakes(store.take(worst), names[labels[worst]], names[answers], confidence, subtitle)
    picture.savefig(folder / "mistakes.png")
    write_page(
        folder / "index.html",
        evaluation,
        store,
        numbers=numbers,
        tables=tables,
        mistakes=worst,
        subtitle=subtitle,
        material=material,
    )
    return numbers
