"""Import this module before TensorFlow: a step does not show what the import prints, nor warnings about traces."""

import logging

import carmodel.quiet_tensorflow  # noqa: F401

# `evaluate` predicts with several networks and sizes, and TensorFlow warns each time about tracing a function again.
logging.getLogger("tensorflow").setLevel(logging.ERROR)
