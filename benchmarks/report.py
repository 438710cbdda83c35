"""Write what was measured as JSON, Markdown and pictures: one file per part, and a page with a summary.

``python -m benchmarks.report docs/benchmarks`` prints the short summary, with one row per part.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks.turns import Entry, Table

INTRODUCTION = """# Benchmarks: results

`make bench` wrote this page. [Benchmarks](../benchmarks.md) describes it. More than 1× means that carmodel is faster, or
needs less. The last column compares carmodel with an upper limit: a rate of 0.5 reaches half of it, and a time of 2×
takes twice as long.

"""
COLORS = {"ours": "#1b6ca8", "peer": "#b8bec4", "limit": "#c0392b"}


@dataclass(frozen=True)
class Part:
    """What a part of the benchmark measured.

    Attributes:
        name: name of the part.
        title: what it measures.
        header: hardware, date, versions and data; see `benchmarks.hardware.describe`.
        tables: the measurements.
    """

    name: str
    title: str
    header: dict[str, str]
    tables: list[Table]


def write(part: Part, folder: Path) -> None:
    """Write the JSON and the picture of a part, and the page of all parts."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{part.name}.json").write_text(json.dumps(asdict(part), indent=1) + "\n")
    draw(part, folder / f"{part.name}.png")
    (folder / "README.md").write_text(page(read_all(folder)))


def read(file: Path) -> Part:
    """Read the JSON of a part."""
    content = json.loads(file.read_text())
    tables = [
        Table(**table | {"entries": [Entry(**entry) for entry in table["entries"]]}) for table in content["tables"]
    ]
    return Part(**content | {"tables": tables})


def read_all(folder: Path) -> list[Part]:
    """Read all parts in a folder, in the order of `benchmarks.parts.PARTS`."""
    from benchmarks.parts import PARTS

    return [read(file) for name in PARTS if (file := folder / f"{name}.json").is_file()]


def page(parts: Sequence[Part]) -> str:
    """Return the page of all parts, in Markdown."""
    return INTRODUCTION + summary(parts) + "\n" + "\n".join(map(section, parts))


def section(part: Part) -> str:
    """Return the section of a part: its header, picture and tables, in Markdown."""
    header = "\n".join(f"- {name}: {value}" for name, value in part.header.items())
    tables = "\n".join(map(markdown, part.tables))
    return f"## {part.title}\n\n{header}\n\n![Bars of the tables below]({part.name}.png)\n\n{tables}"


def markdown(table: Table) -> str:
    """Return a table with a row for each setting and competitor, in Markdown.

    A row has the median with the lowest and highest value, what fraction of the limit it reaches, and how many times as
    good this project is.
    """
    several = len(table.settings) > 1
    header = [
        "way",
        "threads",
        f"{table.unit}: median (lowest to highest)",
        "relative to the limit",
        "carmodel relative to it",
    ]
    rows = [["setting", *header] if several else header]
    rows.append(["---"] * len(rows[0]))
    for setting in table.settings:
        for entry in table.entries:
            if setting in entry.values:
                rows.append([setting] * several + _cells(table, setting, entry))
    for entry in table.entries:
        if not entry.values:
            rows.append([""] * several + [entry.name, str(entry.threads), "not measured", "", ""])
    notes = [f"{entry.name}: {entry.note}" for entry in table.entries if entry.note] + table.remarks
    lines = [f"### {table.title}", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
    return "\n".join(lines + [f"- {note}" for note in notes] + [""] * bool(notes))


def summary(parts: Sequence[Part], short: bool = False) -> str:
    """Return one table with this project, its best peer, and the limit.

    It has a row for each table that has a headline. If it is to be short, it has one row per part.
    """
    of_parts = [[table for table in part.tables if table.headline] for part in parts]
    rows = [
        "| | carmodel | fastest alternative | carmodel relative to it | relative to the limit |",
        "| --- | --- | --- | --- | --- |",
    ]
    for table in (table for tables in of_parts for table in (tables[:1] if short else tables)):
        setting = table.setting or table.settings[0]
        ours, peer = table.of("ours", setting)[0], table.best_peer(setting)
        other = f"{_number(median(peer.values[setting]))} ({peer.name})" if peer else "–"
        times = f"{table.advantage(setting, ours, peer):.2f}×" if peer else "–"
        own = f"{_number(median(ours.values[setting]))} {table.unit}"
        rows.append(f"| {table.headline} | {own} | {other} | {times} | {_of_limit(table, setting, ours) or '–'} |")
    return "\n".join(rows) + "\n"


def draw(part: Part, file: Path) -> None:
    """Draw each table as horizontal bars, with a line at the limit: in the setting of its headline, or in all settings."""
    from matplotlib.figure import Figure

    panels = [(table, setting) for table in part.tables for setting in table.settings if table.setting in ("", setting)]
    counts = [sum(setting in entry.values for entry in table.entries) for table, setting in panels]
    figure = Figure(figsize=(8, sum(0.32 * count + 0.75 for count in counts)), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=[count + 2 for count in counts])[:, 0]
    for axis, (table, setting) in zip(axes, panels, strict=True):
        entries = [entry for entry in table.entries if setting in entry.values][::-1]
        middles = [median(entry.values[setting]) for entry in entries]
        reach = [
            [middle - min(entry.values[setting]) for middle, entry in zip(middles, entries, strict=True)],
            [max(entry.values[setting]) - middle for middle, entry in zip(middles, entries, strict=True)],
        ]
        names = [entry.name for entry in entries]
        axis.barh(names, middles, xerr=reach, color=[COLORS[entry.role] for entry in entries])
        if limit := table.of("limit", setting):
            axis.axvline(median(limit[0].values[setting]), color=COLORS["limit"], linestyle="--", linewidth=1)
        title = f"{table.title}, {setting}" if len(table.settings) > 1 else table.title
        axis.set_title(title, loc="left", fontsize=9)
        axis.set_xlabel(table.unit, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110, metadata={"Software": None})


def _cells(table: Table, setting: str, entry: Entry) -> list[str]:
    values = entry.values[setting]
    spread = f"{_number(median(values))} ({_number(min(values))} to {_number(max(values))})"
    ours = table.of("ours", setting)
    times = f"{table.advantage(setting, ours[0], entry):.2f}×" if ours and entry.role == "peer" else ""
    name = f"**{entry.name}**" if entry.role == "ours" else entry.name
    return [name, str(entry.threads), spread, _of_limit(table, setting, entry), times]


def _of_limit(table: Table, setting: str, entry: Entry) -> str:
    limit = table.of("limit", setting)
    if not limit:
        return ""
    share = _ratio_to(table, setting, entry, limit[0])
    return "limit" if entry is limit[0] else share


def _ratio_to(table: Table, setting: str, entry: Entry, limit: Entry) -> str:
    """Return how a value compares with the limit: 0.97 of a rate, 1.20× the seconds."""
    if table.fewer_is_better:
        return f"{1 / table.advantage(setting, entry, limit):.2f}×"
    return f"{table.advantage(setting, entry, limit):.2f}"


def _number(value: float) -> str:
    """Return three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    print(summary(read_all(Path(sys.argv[1])), short=True), end="")
