"""The classifier that takes Base64 photos, its packaging as an MLflow model, and the registry's rules."""
