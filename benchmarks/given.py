"""What the command line gives to every part."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Given:
    """The settings of all parts.

    Attributes:
        data_uri: directory of photos that preprocess can read. Empty: drawn photos.
        quick: use few photos and rounds, only to see that everything works.
        folder: an empty directory for files of the part.
        peers: the Python interpreter of the environment of `benchmarks/peers.txt`.
    """

    data_uri: str
    quick: bool
    folder: Path
    peers: Path

    def rounds(self, number: int = 5) -> int:
        """Return the number of rounds to measure."""
        return 1 if self.quick else number

    def size(self, number: int, quick: int) -> int:
        """Return a number of photos, rows or steps."""
        return quick if self.quick else number
