"""The classifier, a custom MLflow pyfunc: a DataFrame of Base64 photos in, class names and probabilities out."""

import json
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

from carmodel.data.images import ImageError, prepare, read_header
from carmodel.data.threads import cores
from carmodel.serving.calibration import apply_temperature
from carmodel.serving.forward import Forward, load_engine
from carmodel.serving.memory import BYTES_PER_PIXEL, Budget
from carmodel.serving.rows import BOX_COLUMNS, box_of, image_bytes

TOP_K = 5

AHEAD = 32
"""Number of rows that are decoded ahead of the network."""

EMPTY: dict[str, object] = {
    "label": None, "class_id": None, "probability": None, "top_k": [], "certain": None, "error": None
}  # fmt: skip
"""The columns of an answer."""

logger = logging.getLogger(__name__)


class CarClassifier(PythonModel):
    """Name the car in each photo of a request.

    The MLflow context has these artifacts, which `carmodel.serving.packaging` provides:

    - ``model``, a ``.keras`` file: uint8 (B, H, W, 3) in, probabilities (B, C) out.
    - ``onnx``, the same network for ONNX Runtime. It is optional; see `carmodel.serving.forward.load_engine`.
    - ``settings``, a JSON file with class_names, image_size, crop, margin, precision, the limits max_rows, max_bytes,
      max_pixels and max_decoded_bytes and, optionally, temperature and certain_threshold (see
      `carmodel.serving.calibration`).

    Many threads may call `predict` at once. They share a pool of decoding threads and a memory budget. The network is
    loaded once, and has run before the first request.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the network and run it once, so that the first request does not wait for this.

        Raises:
            ValueError: the network does not have one output per class name.
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
        self._pool = ThreadPoolExecutor(cores(), thread_name_prefix="decode")
        engine = load_engine(context.artifacts, self.image_size, settings["precision"])
        if engine.classes != len(self.class_names):
            raise ValueError(f"the network has {engine.classes} outputs for {len(self.class_names)} classes")
        self._forward = Forward(engine, self.image_size)

    def predict(
        self,
        context: PythonModelContext | None,
        model_input: pd.DataFrame,
        params: dict[str, object] | None = None,
    ) -> pd.DataFrame:
        """Answer every row. A row that is invalid gets an error, and the other rows get their answers.

        Args:
            context: unused. MLflow passes it.
            model_input: `image` (Base64 text with or without a ``data:`` prefix, or bytes) and optionally `x1`, `y1`,
                `x2`, `y2`: all four whole numbers (0-based pixels of the photo as displayed, x2 and y2 exclusive) or
                all null. If the network was trained on whole photos, the box is checked but not used. A frame whose
                only cell is a list of photos stands for one row per photo. If several columns have the same name, the
                first is used.
            params: `top_k`, the number of classes to list, 5 by default, clipped to 1 … C.

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
            raise MlflowException.invalid_parameter_value("the request has no column 'image' with Base64 photos")
        model_input = model_input.loc[:, ~model_input.columns.duplicated()]
        if self._is_column(model_input):
            model_input = model_input.explode("image", ignore_index=True)
        rows = self._rows(model_input)
        refused = f"more than {self.max_rows} rows in a request; send this row in another request"
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
        """Return whether MLflow converted ``{"inputs": {"image": [photo, photo]}}`` to a single row."""
        return frame.columns.tolist() == ["image"] and len(frame) == 1 and isinstance(frame["image"].iloc[0], list)

    @staticmethod
    def _rows(frame: pd.DataFrame) -> list[tuple[object, ...]]:
        missing = [None] * len(frame)
        columns = [frame[name] if name in frame.columns else missing for name in ("image", *BOX_COLUMNS)]
        return list(zip(*columns, strict=True))

    def _outcomes(self, rows: Sequence[tuple[object, ...]]) -> Iterator[tuple[int, str | np.ndarray]]:
        """Yield the number of each row with its error or its probabilities (C,), not in order."""
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
        """Yield each prepared row, in order. Meanwhile, the pool prepares the next ones."""
        waiting: deque[Future[np.ndarray | str]] = deque()
        for row in rows:
            waiting.append(self._pool.submit(self._prepare, row))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _prepare(self, row: Sequence[object]) -> np.ndarray | str:
        """Convert a row to uint8 (H, W, 3), exactly as preprocess does, or to its error message."""
        try:
            data, box = image_bytes(row[0], self.max_bytes), box_of(row[1:])
            header = read_header(data, self.max_pixels)
            needed = BYTES_PER_PIXEL * header.width * header.height
            if needed > self._memory.total:
                raise ImageError(f"{header.width} x {header.height} pixels need more memory than max_decoded_bytes")
            with self._memory.hold(needed):
                return prepare(data, self.image_size, box if self.crops else None, self.margin, self.max_pixels)
        except ImageError as error:
            return str(error)
        except Exception as error:
            # A hostile file must not fail the other rows. Only the error's type is logged: its text may repeat the photo.
            logger.error("a row failed with %s", type(error).__name__)
            return f"the photo could not be read ({type(error).__name__})"

    def _answer(self, probabilities: np.ndarray, top_k: int) -> dict[str, object]:
        probabilities = apply_temperature(probabilities, self.temperature)
        best = np.argsort(-probabilities, kind="stable")[:top_k].tolist()
        ranked = [{"label": self.class_names[i], "class_id": i, "probability": float(probabilities[i])} for i in best]
        threshold = self.certain_threshold
        certain = None if threshold is None else bool(probabilities[best[0]] > threshold)
        return ranked[0] | {"top_k": ranked, "certain": certain}
