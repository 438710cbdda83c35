"""The one error that means: what the user gave can't be used. Its message says which file, row or parameter, and what to do."""


class InputError(ValueError):
    """Bad input; steps print it without a traceback."""
