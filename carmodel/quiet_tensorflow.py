"""Import this module before TensorFlow: TensorFlow uses oneDNN, and what its C++ code prints during the import is hidden.

These messages, about plugins for cuDNN and cuBLAS that are registered twice, are harmless, and TensorFlow writes them before
it reads ``TF_CPP_MIN_LOG_LEVEL``. If the import fails, everything that was printed is shown.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile

# By default TensorFlow uses oneDNN only if the CPU has instructions for neural networks, but it is faster with AVX2 alone, too:
# training takes 0.7 of the time on two cores of an AMD EPYC. TensorFlow reads the variable when it is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


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
