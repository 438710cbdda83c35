"""The classifier of Base64 photos: its MLflow package, the model registry, the web page and the client."""
