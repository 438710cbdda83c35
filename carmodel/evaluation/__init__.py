"""Measure a model on the test store: metrics, figures and the report."""
