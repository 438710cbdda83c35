"""A plain classifier, as in MLflow's example for images: decode in a loop, then call `predict` once. MLflow runs this file."""

import base64
import io
from typing import Any

import keras
import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext
from PIL import Image

import carmodel.model.scale  # noqa: F401 (registers the layer)


class PlainClassifier(PythonModel):
    """Answer with the probability of each class. The context has a ``.keras`` file, ``model``, and image_size."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the network."""
        self.network = keras.saving.load_model(context.artifacts["model"], compile=False)

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Return the best class and the probability of each class."""
        side = context.model_config["image_size"]
        photos = []
        for text in model_input["image"]:
            photo = Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")
            photos.append(np.asarray(photo.resize((side, side)), np.uint8))
        probabilities = self.network.predict(np.stack(photos), verbose=0)
        columns = [f"p({i})" for i in range(probabilities.shape[1])]
        return pd.DataFrame(probabilities, columns=columns).assign(class_id=probabilities.argmax(1))


mlflow.models.set_model(PlainClassifier())
