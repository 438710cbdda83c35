"""The benchmark's arithmetic and its files; no timing."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.parts import PARTS
from benchmarks.report import Part, markdown, page, read, read_all, summary, write
from benchmarks.turns import Competitor, Entry, Table, ratio, take_turns
from carmodel.tracking.digests import ROOT

SPEED = Table(
    "Loader",
    "images/s",
    [
        Entry("carmodel", "ours", 1, {"": [90.0, 200.0, 95.0]}),
        Entry("slow", "peer", 2, {"": [30.0, 100.0, 20.0]}, "It decodes JPEG."),
        Entry("missing", "peer", 1, {}, "not installed"),
        Entry("gather", "limit", 1, {"": [100.0, 250.0, 100.0]}),
    ],
    headline="Shuffled batches",
)


def test_a_ratio_compares_measurements_of_the_same_round() -> None:
    # The machine was twice as fast in the last round. The ratio of the medians would be 1.
    assert ratio([4.0, 2.0, 8.0], [2.0, 4.0, 4.0]) == 2.0
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])


def test_competitors_take_turns_in_alternating_order_after_a_warm_up() -> None:
    order: list[str] = []

    def work(name: str) -> float:
        order.append(name)
        return float(len(order))

    a, b = (Competitor(name, "ours", 1, {"": lambda name=name: work(name)}) for name in "ab")
    entries = take_turns([a, b], rounds=2)
    assert "".join(order) == "abbaab"
    assert [entry.values for entry in entries] == [{"": [4.0, 5.0]}, {"": [3.0, 6.0]}]


def test_a_table_has_median_spread_share_of_the_limit_and_advantage() -> None:
    text = markdown(SPEED)
    assert "| **carmodel** | 1 | 95 (90 to 200) | 0.90 |  |" in text
    assert "| slow | 2 | 30 (20 to 100) | 0.30 | 3.00× |" in text
    assert "| missing | 1 | not measured |  |  |" in text
    assert "- missing: not installed" in text


def test_fewer_seconds_are_better() -> None:
    table = replace(SPEED, unit="s")
    ours, slow, *_ = table.entries
    assert table.advantage("", slow, ours) == 3.0
    assert table.best_peer("") is slow
    assert "| **carmodel** | 1 | 95 (90 to 200) | 0.90× |  |" in markdown(table)


def test_the_summary_has_a_row_for_each_headline() -> None:
    rows = summary([Part("loader", "Loader", {}, [SPEED, replace(SPEED, headline="")])]).splitlines()
    assert rows[2:] == ["| Shuffled batches | 95 images/s | 30 (slow) | 3.00× | 0.90 |"]


def test_the_short_summary_has_one_row_per_part() -> None:
    part = Part("loader", "Loader", {}, [SPEED, replace(SPEED, headline="More")])
    assert len(summary([part]).splitlines()) == 4
    assert len(summary([part, part], short=True).splitlines()) == 4


def test_a_part_is_the_same_after_it_was_written_and_read(tmp_path: Path) -> None:
    part = Part("loader", "Loader", {"cores": "2"}, [SPEED])
    write(part, tmp_path)
    assert read(tmp_path / "loader.json") == part
    text = (tmp_path / "README.md").read_text()
    assert summary([part]) in text
    assert "![Bars of the tables below](loader.png)" in text
    assert (tmp_path / "loader.png").stat().st_size > 1000


def test_the_readme_has_the_figures_of_the_recorded_benchmark() -> None:
    folder = ROOT / "docs" / "benchmarks"
    parts = read_all(folder)
    assert [part.name for part in parts] == list(PARTS)
    assert (folder / "README.md").read_text() == page(parts)
    assert summary(parts, short=True) in (ROOT / "README.md").read_text()
