"""The classifier as an MLflow model: photos in, class names and probabilities out, a row for a row."""

import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

# Registers the layer, so that a saved model with it loads.
import carmodel.model.scale  # noqa: F401
from carmodel.data.images import ImageError, prepare, read_header
from carmodel.serving.calibration import apply_temperature
from carmodel.serving.forward import Forward
from carmodel.serving.memory import BYTES_A_PIXEL, Budget
from carmodel.serving.rows import BOX_COLUMNS, box_of, image_bytes
from carmodel.training.precision import fast_bfloat16

TOP_K = 5

AHEAD = 32
"""Rows of a request that are decoded, or about to be, before the network needs them."""

EMPTY: dict[str, object] = {
    "label": None, "class_id": None, "probability": None, "top_k": [], "certain": None, "error": None
}  # fmt: skip
"""The columns of an answer."""

logger = logging.getLogger(__name__)


class CarClassifier(PythonModel):
    """Name the car in each photo of a request.

    Needs of its MLflow context the artifacts ``model``, a ``.keras`` file (uint8 (B, H, W, 3) in, probabilities (B, C)
    out), and ``settings``, a JSON file with class_names, image_size, crop, margin, precision, the limits max_rows,
    max_bytes, max_pixels and max_decoded_bytes and, optionally, temperature and certain_threshold (see
    `carmodel.serving.calibration`). `carmodel.serving.packaging` provides both.

    Any number of threads may call `predict`: the network is never traced anew, decoding shares a pool of threads and a
    budget of memory, and nothing else is shared.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the network, trace it and run it, so that the first request does not wait for that.

        Raises:
            ValueError: the network has not as many outputs as there are class names.
        """
        settings = json.loads(Path(context.artifacts["settings"]).read_text())
        self.class_names: list[str] = settings["class_names"]
        self.image_size: int = settings["image_size"]
        self.crops: bool = settings["crop"] == "box"
        self.margin: float = settings["margin"]
        # Classifiers of earlier versions have neither of these two.
        self.temperature: float = settings.get("temperature", 1.0)
        self.certain_threshold: float | None = settings.get("certain_threshold")
        self.max_rows: int = settings["max_rows"]
        self.max_bytes: int = settings["max_bytes"]
        self.max_pixels: int = settings["max_pixels"]
        self._memory = Budget(settings["max_decoded_bytes"])
        self._pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")
        bfloat16 = settings["precision"] == "bfloat16" and bool(fast_bfloat16())
        if settings["precision"] == "bfloat16" and not bfloat16:
            logger.warning("packaged for bfloat16, which this processor does not compute: float32 is used")
        network = keras.saving.load_model(context.artifacts["model"], compile=False)
        if network.output_shape[-1] != len(self.class_names):
            raise ValueError(f"the network has {network.output_shape[-1]} outputs, not {len(self.class_names)}")
        self._forward = Forward(network, self.image_size, bfloat16)

    def predict(
        self,
        context: PythonModelContext | None,
        model_input: pd.DataFrame,
        params: dict[str, object] | None = None,
    ) -> pd.DataFrame:
        """Answer every row; a row that can't be answered gets its error, and the others are answered.

        Args:
            context: not used; MLflow passes it.
            model_input: `image` (Base64 text with or without a ``data:`` prefix, or bytes) and optionally `x1`, `y1`,
                `x2`, `y2`: all four whole numbers (0-based pixels of the photo as displayed, x2 and y2 exclusive) or
                all null. A network that was trained without cropping checks that they are numbers and does not use
                them. A frame of nothing but one list of photos counts as a row for each. Of columns of one name the
                first counts.
            params: `top_k`, how many classes to list, 5 unless given; less than 1 counts as 1, more than C as C.

        Returns:
            One row per row, with the same index and order: `label` str, `class_id` int, `probability` float
            (calibrated), `top_k` list of ``{"label", "class_id", "probability"}``, most probable first, `certain` bool
            (null if no threshold is known), `error` null. Where `error` is a text, the others are null and `top_k` is
            empty. The columns are of dtype object, so that JSON has null and not NaN.

        Raises:
            MlflowException: `model_input` has no `image` column, or `top_k` is not a whole number.
        """
        top_k = self._top_k(params or {})
        if not isinstance(model_input, pd.DataFrame) or "image" not in model_input.columns:
            raise MlflowException.invalid_parameter_value("the request needs a column 'image' with Base64 photos")
        model_input = model_input.loc[:, ~model_input.columns.duplicated()]
        if self._is_column(model_input):
            model_input = model_input.explode("image", ignore_index=True)
        rows = self._rows(model_input)
        refused = f"more than {self.max_rows} rows in a request; send the others in another one"
        answers: list[dict[str, object]] = [{"error": refused}] * len(rows)
        for i, outcome in self._outcomes(rows[: self.max_rows]):
            answers[i] = {"error": outcome} if isinstance(outcome, str) else self._answer(outcome, top_k)
        complete = [EMPTY | answer for answer in answers]
        return pd.DataFrame(
            {name: pd.Series([row[name] for row in complete], model_input.index, object) for name in EMPTY}
        )

    def _top_k(self, params: dict[str, object]) -> int:
        top_k = params.get("top_k")
        if top_k is None:
            top_k = TOP_K
        if not isinstance(top_k, int | np.integer) or isinstance(top_k, bool):
            raise MlflowException.invalid_parameter_value(f"top_k must be a whole number, not a {type(top_k).__name__}")
        return int(min(max(top_k, 1), len(self.class_names)))

    @staticmethod
    def _is_column(frame: pd.DataFrame) -> bool:
        """Whether MLflow made a single row of ``{"inputs": {"image": [photo, photo]}}``."""
        return frame.columns.tolist() == ["image"] and len(frame) == 1 and isinstance(frame["image"].iloc[0], list)

    @staticmethod
    def _rows(frame: pd.DataFrame) -> list[tuple[object, ...]]:
        missing = [None] * len(frame)
        columns = [frame[name] if name in frame.columns else missing for name in ("image", *BOX_COLUMNS)]
        return list(zip(*columns, strict=True))

    def _outcomes(self, rows: Sequence[tuple[object, ...]]) -> Iterator[tuple[int, str | np.ndarray]]:
        """Yield the number of each row with its error or its probabilities (C,)."""
        batch: list[tuple[int, np.ndarray]] = []
        running: deque[tuple[Sequence[int], Future[np.ndarray]]] = deque()
        for i, outcome in enumerate(self._prepared(rows)):
            if isinstance(outcome, str):
                yield i, outcome
            else:
                batch.append((i, outcome))
            if batch and (len(batch) == self._forward.largest or i == len(rows) - 1):
                numbers, images = zip(*batch, strict=True)
                running.append((numbers, self._forward.start(np.stack(images))))
                batch = []
            while running and (len(running) > 2 * self._forward.workers or i == len(rows) - 1):
                numbers, answers = running.popleft()
                yield from zip(numbers, answers.result(), strict=True)

    def _prepared(self, rows: Sequence[tuple[object, ...]]) -> Iterator[np.ndarray | str]:
        """Yield each row prepared, in order; the pool goes on with the next ones while the caller works."""
        waiting: deque[Future[np.ndarray | str]] = deque()
        for row in rows:
            waiting.append(self._pool.submit(self._prepare, row))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _prepare(self, row: Sequence[object]) -> np.ndarray | str:
        """Turn a row into uint8 (H, W, 3), exactly as preprocess does, or into the text of its error."""
        try:
            data, box = image_bytes(row[0], self.max_bytes), box_of(row[1:])
            header = read_header(data, self.max_pixels)
            needed = BYTES_A_PIXEL * header.width * header.height
            if needed > self._memory.total:
                raise ImageError(f"{header.width} x {header.height} pixels take more memory than there is for decoding")
            with self._memory.hold(needed):
                return prepare(data, self.image_size, box if self.crops else None, self.margin, self.max_pixels)
        except ImageError as error:
            return str(error)
        except Exception as error:
            # One hostile file must not take the other rows down; its type is for us, its text may hold the payload.
            logger.error("a row failed with %s", type(error).__name__)
            return f"the photo could not be read ({type(error).__name__})"

    def _answer(self, probabilities: np.ndarray, top_k: int) -> dict[str, object]:
        probabilities = apply_temperature(probabilities, self.temperature)
        best = np.argsort(-probabilities, kind="stable")[:top_k].tolist()
        ranked = [{"label": self.class_names[i], "class_id": i, "probability": float(probabilities[i])} for i in best]
        threshold = self.certain_threshold
        certain = None if threshold is None else bool(probabilities[best[0]] > threshold)
        return ranked[0] | {"top_k": ranked, "certain": certain}
