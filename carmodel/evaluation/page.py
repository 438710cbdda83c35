"""The report as one HTML page, which loads nothing from other files or hosts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from carmodel.data.images import resize_squares
from carmodel.data.store import Store, evenly_spaced
from carmodel.evaluation import metrics
from carmodel.evaluation.confusion import neighbour_order
from carmodel.evaluation.grad_cam import grad_cam
from carmodel.evaluation.predictions import Evaluation
from carmodel.evaluation.tables import Material
from carmodel.evaluation.thumbnails import thumbnail

STATIC = Path(__file__).with_name("static")

PAIRS = 8
"""Confused pairs that are shown with photos."""

PHOTOS_OF_A_PAIR = 2
"""Photos of each class that were taken for the other one."""

RIGHT = 8
"""Right answers that are shown with heat maps."""

SHOWN = 12
"""Longest list of other photos."""


def write_page(
    file: Path,
    evaluation: Evaluation,
    store: Store,
    *,
    numbers: Mapping[str, float],
    tables: Mapping[str, pd.DataFrame],
    mistakes: np.ndarray,
    subtitle: str,
    material: Material,
) -> None:
    """Write the page.

    Args:
        file: the HTML file.
        evaluation: predictions for `store`.
        store: the test store.
        numbers: from `carmodel.evaluation.tables.numbers_of`.
        tables: from `carmodel.evaluation.tables.tables_of`.
        mistakes: int (n,), rows of the mistakes to show.
        subtitle: second title, such as "synthetic sample".
        material: what else is shown.
    """
    stores = {"train": material.train, "test": store} if material.train else {"test": store}
    matrix = metrics.confusion_matrix(evaluation.labels, evaluation.probabilities)
    order = neighbour_order(evaluation.labels, evaluation.probabilities)
    pairs, twins = tables["confused_pairs"].head(PAIRS), tables["near_identical"].head(SHOWN)
    cards, right = cards_of(material.calibrated or evaluation, store, material), np.flatnonzero(evaluation.right)
    environment = Environment(
        loader=FileSystemLoader(STATIC),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    page = environment.get_template("report.html").render(
        material=material,
        note=subtitle,
        numbers=numbers,
        tables={name: table.to_dict("records") for name, table in tables.items()},
        names=[evaluation.class_names[label] for label in order],
        cells=cells(matrix[np.ix_(order, order)]),
        pairs=[pair | photos_of_pair(evaluation, store, pair["a"], pair["b"]) for pair in pairs.to_dict("records")],
        mistakes=cards(mistakes),
        right=cards(right[evenly_spaced(len(right), RIGHT)]) if material.network else [],
        twins=[
            pair | {f"photo_{x}": photo_of(stores[pair[f"split_{x}"]], pair[f"row_{x}"]) for x in "ab"}
            for pair in twins.to_dict("records")
        ],
        changed=changed_with_photos(tables["changed"], store) if "changed" in tables else [],
        data={split: facts(of_split) for split, of_split in stores.items()},
    )
    file.write_text(page, encoding="utf-8")


def cells(matrix: np.ndarray) -> list[dict[str, Any]]:
    """Return the cells with photos of a confusion matrix, int (C, C): x, y, photos, and their share of the row."""
    rows = matrix.sum(axis=1)
    return [
        {"x": int(x), "y": int(y), "photos": int(matrix[y, x]), "share": round(float(matrix[y, x] / rows[y]), 3)}
        for y, x in zip(*np.nonzero(matrix), strict=True)
    ]


def photo_of(store: Store, row: int) -> str:
    """Return a photo of a store as a ``data:`` URI."""
    return thumbnail(store.take(np.array([row]))[0])


def photos_of_pair(evaluation: Evaluation, store: Store, a: str, b: str) -> dict[str, Any]:
    """Return photos of two classes, as ``data:`` URIs: a typical one of each, and those that were taken for the other class.

    A typical photo is the one with the most confident right answer, or else the first one.
    """
    names = evaluation.class_names
    photos: dict[str, Any] = {}
    for side, of_class, other in (("a", names.index(a), names.index(b)), ("b", names.index(b), names.index(a))):
        rows = np.flatnonzero(evaluation.labels == of_class)
        typical = rows[evaluation.probabilities[rows, of_class].argsort()[::-1][:1]]
        mistaken = rows[evaluation.answers[rows] == other][:PHOTOS_OF_A_PAIR]
        photos[f"typical_{side}"] = [photo_of(store, row) for row in typical]
        photos[f"mistaken_{side}"] = [photo_of(store, row) for row in mistaken]
    return photos


def cards_of(evaluation: Evaluation, store: Store, material: Material) -> Callable[[np.ndarray], list[dict[str, Any]]]:
    """Return a function from rows to what the page shows of them: names, probabilities, photo and heat maps.

    The heat maps are those of the answer and, if it is wrong, of the label. They are empty without a network, or if it has
    no feature maps that all of its paths pass.
    """
    names = evaluation.class_names

    def heat(photos: np.ndarray, classes: np.ndarray) -> list[str]:
        if material.network is None:
            return [""] * len(photos)
        network, size = material.network
        try:
            maps = grad_cam(network, resize_squares(photos, size), classes)
        except ValueError:
            return [""] * len(photos)
        return [thumbnail(photo, of_photo) for photo, of_photo in zip(photos, maps, strict=True)]

    def cards(rows: np.ndarray) -> list[dict[str, Any]]:
        if len(rows) == 0:
            return []
        photos, labels, answers = store.take(rows), evaluation.labels[rows], evaluation.answers[rows]
        return [
            {
                "source": str(store.source[row]),
                "label": names[label],
                "answer": names[answer],
                "confidence": float(evaluation.probabilities[row, answer]),
                "confidence_in_label": float(evaluation.probabilities[row, label]),
                "photo": thumbnail(photo),
                "heat_of_answer": of_answer,
                "heat_of_label": of_label if label != answer else "",
            }
            for row, photo, label, answer, of_answer, of_label in zip(
                rows, photos, labels, answers, heat(photos, answers), heat(photos, labels), strict=True
            )
        ]

    return cards


def changed_with_photos(changed: pd.DataFrame, store: Store) -> list[dict[str, Any]]:
    """Return the rows of the table `changed`, the first ones of "lost" and of "gained" with their photo."""
    shown = {
        row for kind in ("lost", "gained") for row in changed.loc[changed["change"] == kind, "row"].head(SHOWN).tolist()
    }
    return [
        {str(name): value for name, value in item.items()}
        | {"photo": photo_of(store, item["row"]) if item["row"] in shown else ""}
        for item in changed.to_dict("records")
    ]


def facts(store: Store) -> dict[str, Any]:
    """Return what a page says about a store."""
    counts = np.bincount(store.labels, minlength=len(store.class_names))
    return {
        "photos": len(store),
        "validation": int(store.validation.sum()),
        "classes": len(store.class_names),
        "fewest": int(counts.min()),
        "most": int(counts.max()),
        "image_size": store.image_size,
        "crop": store.attrs["crop"],
        "margin": store.attrs["margin"],
    }
