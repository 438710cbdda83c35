"""Signals that reach a step while Python runs a callback."""

import os
import signal
import time

import pytest

from steps.command import errors_reported


class Finalized:
    """Sends signals to this process when it is deleted, where Python cannot raise an interrupt."""

    def __init__(self, *signals: signal.Signals) -> None:
        self.signals = signals

    def __del__(self) -> None:
        for number in self.signals:
            os.kill(os.getpid(), number)
            time.sleep(0)


@pytest.mark.parametrize("signals", [(signal.SIGINT,), (signal.SIGTERM, signal.SIGINT)])
def test_an_interrupt_that_a_finalizer_lost_is_repeated(signals: tuple[signal.Signals, ...]) -> None:
    with pytest.raises(SystemExit) as stopped, errors_reported("train"):
        Finalized(*signals)
        time.sleep(60)
    assert stopped.value.code == 128 + signal.SIGINT


def test_other_exceptions_of_finalizers_are_still_printed(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def __del__(self) -> None:
            raise ValueError("this is printed")

    with errors_reported("train"):
        Broken()
    assert "this is printed" in capsys.readouterr().err
