"""Networks that turn uint8 photos into class probabilities, written against `keras` and `keras.ops` alone."""
