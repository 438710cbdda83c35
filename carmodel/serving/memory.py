"""Limit the memory for decoding the photos of all simultaneous requests."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock

BYTES_PER_PIXEL = 24
"""Largest memory per pixel while a photo is decoded. Pillow needs it for the copies of a WebP file."""


class Budget:
    """A number of bytes that threads share. A thread waits until enough is free.

    Args:
        total: bytes.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        self._turn = Lock()
        self._released = Condition()

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Reserve `amount` bytes within a ``with`` block.

        Raises:
            ValueError: `amount` is larger than the whole budget.
        """
        if amount > self.total:
            raise ValueError(f"{amount} bytes do not fit into {self.total}")
        # One thread waits and the others queue behind it. Otherwise small amounts could overtake a large one forever.
        with self._turn, self._released:
            self._released.wait_for(lambda: self._used + amount <= self.total)
            self._used += amount
        try:
            yield
        finally:
            with self._released:
                self._used -= amount
                self._released.notify_all()
