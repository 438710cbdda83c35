"""Interrupts of a step: SIGINT, and SIGTERM, which `mlflow run` sends when it is interrupted."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PAUSE = 0.2
"""Seconds until a lost interrupt is repeated."""


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Raise `KeyboardInterrupt` for each of `SIGNALS`, and again if Python lost it inside a callback."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    hook, sys.unraisablehook = sys.unraisablehook, repeat_lost_interrupt
    for number, handler in handlers.items():
        if handler != signal.SIG_IGN:  # a shell's background jobs ignore SIGINT
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed_end() -> Iterator[None]:
    """Ignore further signals once the work was interrupted, so that the run is set to FAILED."""
    try:
        yield
    except KeyboardInterrupt:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise `KeyboardInterrupt`, but not inside `repeat_lost_interrupt`, where it would be lost too."""
    while frame:
        if frame.f_code is repeat_lost_interrupt.__code__:
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def repeat_lost_interrupt(lost: Any) -> None:
    """Send SIGTERM to this process if the exception that Python could not raise is an interrupt.

    Python ignores exceptions in finalizers and in callbacks of the garbage collector, of weak references and of ctypes.

    Args:
        lost: what `sys.unraisablehook` takes.
    """
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        return sys.__unraisablehook__(lost)
    again = Timer(PAUSE, os.kill, (os.getpid(), signal.SIGTERM))
    again.daemon = True
    return again.start()
