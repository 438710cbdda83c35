"""How good a model is on the test store: numbers, pictures and the report that holds both."""
