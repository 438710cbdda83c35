"""Draw the figures of a training and of a test, without pyplot, which would keep global state.

`subtitle` is the second title of a figure, for example "synthetic sample" if the photos are drawn.
"""

from collections.abc import Mapping, Sequence
from textwrap import wrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

FEW_CLASSES = 20
"""Up to this number of classes, the confusion matrix shows names and numbers."""

TITLE_WIDTH = 36
"""Characters per line above a wrongly classified photo."""

BARS = 20
"""Number of worst and of best classes in the figure of accuracy by class."""


def training_curves(history: Mapping[str, Sequence[float]], subtitle: str = "") -> Figure:
    """Draw loss, accuracy and, if known, the learning rate by epoch.

    Args:
        history: Keras's ``History.history``, one number per epoch for each of loss, val_loss, accuracy, learning_rate …
        subtitle: second title.
    """
    panels = [
        ("loss", [name for name in ("loss", "val_loss") if name in history]),
        ("accuracy", [name for name in ("accuracy", "val_accuracy") if name in history]),
        ("learning rate", [name for name in ("learning_rate", "lr") if name in history]),
    ]
    panels = [panel for panel in panels if panel[1]]
    figure = _figure("Training", subtitle, (5.0 * max(1, len(panels)), 4.0))
    for place, (title, names) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for name in names:
            values = history[name]
            marker = "o" if len(values) == 1 else ""
            axes.plot(np.arange(1, len(values) + 1), values, marker=marker, label=_legend(name))
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend()
    return figure


def confusion_matrix(matrix: np.ndarray, class_names: Sequence[str], subtitle: str = "") -> Figure:
    """Draw a confusion matrix, int (C, C), coloured by the fraction of the true class."""
    few = len(class_names) <= FEW_CLASSES
    side = 4.0 + 0.45 * len(class_names) if few else 10.0
    figure = _figure("Confusion matrix", subtitle, (side + 1.5, side))
    axes = figure.add_subplot()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    picture = axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
    figure.colorbar(picture, ax=axes, label="fraction of the true class", shrink=0.8)
    if few:
        places = range(len(class_names))
        axes.set_xticks(places, class_names, rotation=45, ha="right")
        axes.set_yticks(places, class_names)
        for row, column in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour)
    names = "" if few else " (class number)"
    axes.set(xlabel=f"predicted{names}", ylabel=f"true{names}")
    return figure


def mistakes(
    images: np.ndarray, true: Sequence[str], predicted: Sequence[str], probability: Sequence[float], subtitle: str = ""
) -> Figure:
    """Draw wrongly classified photos, uint8 (n, H, W, 3), with true class, predicted class and probability."""
    columns = min(4, max(1, len(images)))
    lines = -(-len(images) // columns)
    figure = _figure("Worst mistakes", subtitle, (3.4 * columns + 0.6, 3.7 * max(1, lines) + 0.6))
    if len(images) == 0:
        figure.text(0.5, 0.4, "no mistakes", ha="center", va="center")
    for place, image in enumerate(images):
        axes = figure.add_subplot(lines, columns, place + 1)
        axes.imshow(image)
        axes.set_axis_off()
        sentences = f"true: {true[place]}", f"predicted: {predicted[place]} ({probability[place]:.0%})"
        # Matplotlib reserves no space for the lines that its own wrap=True adds.
        axes.set_title("\n".join(line for text in sentences for line in wrap(text, TITLE_WIDTH)), fontsize="small")
    return figure


def per_class_accuracy(table: pd.DataFrame, subtitle: str = "") -> Figure:
    """Draw the accuracy of the worst and the best classes as bars.

    Args:
        table: from `carmodel.evaluation.metrics.per_class`. Classes without rows are left out.
        subtitle: second title.
    """
    ordered = table.dropna(subset=["accuracy"]).sort_values("accuracy", kind="stable")
    if len(ordered) <= 2 * BARS:
        panels = [("all classes", ordered)]
    else:
        panels = [(f"{BARS} worst classes", ordered.head(BARS)), (f"{BARS} best classes", ordered.tail(BARS)[::-1])]
    height = 1.5 + 0.25 * max(len(part) for _, part in panels)
    figure = _figure("Accuracy by class", subtitle, (7.0 * len(panels), height))
    for place, (title, part) in enumerate(panels, start=1):
        _bars(figure.add_subplot(1, len(panels), place), title, part)
    return figure


def _bars(axes: Axes, title: str, table: pd.DataFrame) -> None:
    # By number, because two classes may have the same name.
    places = range(len(table))
    axes.barh(places, table["accuracy"])
    axes.set_yticks(places, [f"{name} ({rows})" for name, rows in zip(table["class"], table["rows"], strict=True)])
    axes.tick_params(axis="y", labelsize="small")
    axes.invert_yaxis()
    axes.set(title=title, xlabel="accuracy (photos in brackets)", xlim=(0.0, 1.0))
    axes.grid(axis="x", alpha=0.3)


def _legend(name: str) -> str:
    return "validation" if name.startswith("val_") else "training"


def _figure(title: str, subtitle: str, size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(f"{title}\n{subtitle}" if subtitle else title)
    return figure
