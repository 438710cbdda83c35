"""The script that MLflow runs to load the classifier (models from code). No object is pickled."""

from mlflow.models import set_model

from carmodel.serving.classifier import CarClassifier

set_model(CarClassifier())
