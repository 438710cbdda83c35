"""Import this module before TensorFlow: a step uses oneDNN, and does not show what the import prints."""

import logging
import os

# By default TensorFlow uses oneDNN only if the CPU has instructions for neural networks, but it is faster with AVX2 alone, too:
# training takes 0.7 of the time on two cores of an AMD EPYC. TensorFlow reads the variable when it is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import carmodel.quiet_tensorflow  # noqa: F401

# `evaluate` predicts with several networks and sizes, and TensorFlow warns each time about tracing a function again.
logging.getLogger("tensorflow").setLevel(logging.ERROR)
