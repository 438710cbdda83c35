"""Print one line per epoch and, on a terminal, show a bar while the epoch runs."""

import time
from typing import Any

import keras
from tqdm import tqdm


class Progress(keras.callbacks.Callback):
    """Print one line per epoch, of at most 100 columns, and show a bar on a terminal while the epoch runs.

    Args:
        epochs: number of epochs of all stages of the training.
    """

    # Keras need not wait for the loss of each step, since only the logs of an epoch are read.
    async_safe = True

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Start the clock and the bar."""
        self.began = time.perf_counter()
        title = f"epoch {epoch + 1}/{self.epochs}"
        self.bar: Any = tqdm(total=self.params["steps"], desc=title, unit="step", leave=False, ncols=80, disable=None)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Move the bar."""
        self.bar.update()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Replace the bar by the line of the epoch."""
        self.bar.close()
        print(line(epoch + 1, self.epochs, logs or {}, time.perf_counter() - self.began), flush=True)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Remove the bar of an epoch that was not finished."""
        self.bar.close()


def line(epoch: int, epochs: int, logs: dict[str, float], seconds: float) -> str:
    """Return the line of an epoch: its number, losses, accuracies, rate and duration. Ranks print ``[0]`` before it."""
    formats = {
        "loss": "loss {:.2f}",
        "accuracy": "accuracy {:.3f}",
        "val_loss": "val_loss {:.2f}",
        "val_accuracy": "val_accuracy {:.3f}",
        "images_per_second": "{:.0f} img/s",
    }
    parts = [text.format(logs[name]) for name, text in formats.items() if name in logs]
    return f"epoch {epoch}/{epochs}: {', '.join([*parts, f'{seconds:.0f} s'])}"
