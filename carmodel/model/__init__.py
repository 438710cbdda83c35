"""Networks that turn uint8 photos into class probabilities. They use `keras` and `keras.ops` alone, so any backend works."""
