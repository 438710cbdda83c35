"""What MLflow runs to make the classifier: a model from code, so that no pickled object is stored or loaded."""

from mlflow.models import set_model

from carmodel.serving.classifier import CarClassifier

set_model(CarClassifier())
