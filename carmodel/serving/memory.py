"""A bound on the memory that decoding takes, whatever number of requests come at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock

BYTES_A_PIXEL = 24
"""Most that a photo's decoding holds at a time, for each of its pixels: the copies that Pillow makes of a WebP."""


class Budget:
    """A number of bytes that threads share: who wants more than is left waits.

    Args:
        total: bytes.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        self._turn = Lock()
        self._given_back = Condition()

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Have `amount` bytes for the time of a ``with`` block.

        Raises:
            ValueError: more than there are in all.
        """
        if amount > self.total:
            raise ValueError(f"{amount} bytes of {self.total}")
        # One waits and the others queue behind it, or small amounts would go before a large one for ever.
        with self._turn, self._given_back:
            self._given_back.wait_for(lambda: self._used + amount <= self.total)
            self._used += amount
        try:
            yield
        finally:
            with self._given_back:
                self._used -= amount
                self._given_back.notify_all()
