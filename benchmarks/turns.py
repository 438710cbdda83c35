"""Let competitors take turns, and compare them within each round.

The speed of a machine changes over time, for example with its temperature and its neighbours. Competitors that take turns
see the same changes, so the ratio of two measurements of the same round is more reliable than the ratio of two medians.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from tqdm import tqdm

Role = Literal["ours", "peer", "limit"]

Work = Callable[[], float]
"""Do some work once, and return the measurement in the unit of the table."""


@dataclass(frozen=True)
class Competitor:
    """A way to do some work.

    Attributes:
        name: what the tables call it.
        role: "ours", "peer", or "limit", which no way is expected to beat.
        threads: number of threads, or a text such as "2 × 1".
        works: the work in each setting, such as ``{"batch 1": …, "batch 8": …}``. Empty if it cannot be measured here.
        note: what is different about it, or why it cannot be measured.
    """

    name: str
    role: Role
    threads: int | str
    works: Mapping[str, Work]
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """The measurements of a competitor: one per round, for each setting. `Competitor` describes the other attributes."""

    name: str
    role: Role
    threads: int | str
    values: dict[str, list[float]]
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Measurements that belong together.

    Attributes:
        title: what was done.
        unit: of all values, such as "images/s". Fewer seconds or MB are better, and more of anything else.
        entries: the competitors.
        remarks: sentences below the table.
        headline: the name of its row in the summary. Empty if it has none.
        setting: the setting of that row. Empty for the only one.
    """

    title: str
    unit: str
    entries: list[Entry]
    remarks: list[str] = field(default_factory=list)
    headline: str = ""
    setting: str = ""

    @property
    def settings(self) -> list[str]:
        """Return the settings of all entries, in order."""
        return list(dict.fromkeys(setting for entry in self.entries for setting in entry.values))

    @property
    def fewer_is_better(self) -> bool:
        """Return whether a small value is good."""
        return self.unit in ("s", "MB")

    def of(self, role: Role, setting: str) -> list[Entry]:
        """Return the entries of a role that were measured in a setting."""
        return [entry for entry in self.entries if entry.role == role and setting in entry.values]

    def advantage(self, setting: str, entry: Entry, other: Entry) -> float:
        """Return how many times as good an entry is as another one."""
        pair = (other, entry) if self.fewer_is_better else (entry, other)
        return ratio(*(one.values[setting] for one in pair))

    def best_peer(self, setting: str) -> Entry | None:
        """Return the peer with the best median, or None if there is none."""
        peers = self.of("peer", setting)
        best = min if self.fewer_is_better else max
        return best(peers, key=lambda peer: median(peer.values[setting])) if peers else None


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median of the ratios within each round.

    Raises:
        ValueError: the two have different numbers of rounds.
    """
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


def take_turns(competitors: Sequence[Competitor], rounds: int, warm_up: int = 1) -> list[Entry]:
    """Let every competitor do its work in every round. The order is reversed in every second round.

    Args:
        competitors: those with the same setting work one after another.
        rounds: number of measured rounds.
        warm_up: number of rounds before them, which are not counted: they trace, compile, fill caches and start threads.
    """
    values: list[dict[str, list[float]]] = [{setting: [] for setting in one.works} for one in competitors]
    settings = dict.fromkeys(setting for one in competitors for setting in one.works)
    numbers = range(len(competitors))
    for turn in tqdm(range(warm_up + rounds), unit="round", leave=False, disable=None):
        for setting in settings:
            for number in numbers if turn % 2 == 0 else reversed(numbers):
                if setting in competitors[number].works:
                    value = competitors[number].works[setting]()
                    if turn >= warm_up:
                        values[number][setting].append(value)
    return [
        Entry(one.name, one.role, one.threads, measured, one.note)
        for one, measured in zip(competitors, values, strict=True)
    ]


def rate(rows: int, work: Callable[[], object]) -> Work:
    """Return a function that does the work and returns rows per second."""
    return lambda: rows / seconds(work)()


def seconds(work: Callable[[], object]) -> Work:
    """Return a function that does the work and returns its seconds."""

    def timed() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return timed
