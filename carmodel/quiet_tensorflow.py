"""Import this module before TensorFlow to hide what TensorFlow's C++ code prints while it is imported.

These messages, about plugins for cuDNN and cuBLAS that are registered twice, are harmless, and TensorFlow writes them before
it reads ``TF_CPP_MIN_LOG_LEVEL``. If the import fails, everything that was printed is shown.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile


@contextmanager
def stderr_hidden() -> Iterator[None]:
    """Redirect file descriptor 2, to which C++ code writes, to a temporary file. Show the file after an exception."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with TemporaryFile() as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except Exception:
            hidden.seek(0)
            os.write(terminal, hidden.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


with stderr_hidden():
    import tensorflow  # noqa: F401
