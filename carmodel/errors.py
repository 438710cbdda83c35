"""The error for input that cannot be used. Its message names the file, row or parameter, and says what to do."""


class InputError(ValueError):
    """Input cannot be used. Steps print the message without a traceback."""
