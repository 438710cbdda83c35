"""Mutated requests to a live server: ``python -m tests.fuzz_endpoint --requests 10000``; ends with 1 where a rule is broken.

The rules: the server lives; no answer is a 5xx; a request whose shape is right gets 200 and a row for a row; every good
row is answered as it is alone, whatever lies beside it; every other row has an answer or a short error that repeats
nothing; and the server's memory stays bounded.
"""

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from tests.classified import NO_BOX, photo, text
from tests.endpoint import Server
from tests.tiny import tiny_endpoint

KINDS = (".jpg", ".png", ".webp", ".bmp")
MARK = "SECRETPAYLOAD"
GROWTH = 300 * 2**20
"""Bytes by which the server may grow between the first tenth of the requests and the end."""

THREADS = 4
GOOD = [photo(seed, 64, 48, kind) for seed, kind in enumerate(KINDS * 4)]


@dataclass(frozen=True)
class Request:
    """A body, whether its shape is right, its number of rows, and which of them hold which good photo."""

    body: bytes
    valid: bool
    rows: int
    good: dict[int, int]


def photos_to_mutate(folder: str | None) -> list[bytes]:
    """Drawn photos of every format and, where there is a folder, some real ones."""
    real = sorted(Path(folder, "cars_test").iterdir())[:20] if folder else []
    return GOOD + [path.read_bytes() for path in real]


def mutate(data: bytes, numbers: random.Random) -> bytes:
    """Damage a file in one of the ways that files are damaged, or that attackers damage them."""
    data = bytearray(data)
    for _ in range(numbers.choice((1, 1, 2, 5, 20))):
        at = numbers.randrange(len(data) + 1)
        length = numbers.choice((1, 2, 4, 16, 200))
        match numbers.randrange(7):
            case 0:
                del data[at:]
            case 1:
                data[at : at + length] = numbers.randbytes(length)
            case 2:  # near the start lie the sizes
                data[min(at, 40) : min(at, 40) + 4] = numbers.choice((b"\xff" * 4, bytes(4), b"\x00\x00\xff\xff"))
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = data[:length]
            case 5:
                data[at:at] = numbers.randbytes(length)
            case _:
                data += MARK.encode()
    return bytes(data)


def bad_cell(seeds: list[bytes], numbers: random.Random) -> object:
    """An image cell that is no good photo, or seldom."""
    whole = text(numbers.choice(seeds))
    at = numbers.randrange(len(whole))
    damaged = text(mutate(numbers.choice(seeds), numbers))
    others = [
        None,
        5,
        -1.5,
        True,
        [],
        ["x"],
        {"a": 1},
        "",
        " ",
        MARK,
        f"https://{MARK}",
        "data:,",
        "ü" * 9,
        "\ud800",
        "\0",
    ]
    others += [text(b"<svg/>"), text(MARK.encode() * 20), whole[:at], whole[:at] + "!" + whole[at:], "A" * 100_000]
    return numbers.choice(others) if numbers.random() < 0.35 else damaged


def box(numbers: random.Random) -> dict[str, object]:
    """Mostly no box, sometimes a right one, sometimes anything."""
    if numbers.random() < 0.6:
        return dict(NO_BOX)
    if numbers.random() < 0.3:
        return {"x1": 2, "y1": 2, "x2": 40, "y2": 40}
    values = [None, 0, 5, 40, -3, 10**30, 2.5, "7", MARK, True, [1], {}, 1e300]
    return {name: numbers.choice(values) for name in NO_BOX}


def make(number: int, seeds: list[bytes]) -> Request:
    """Make request `number`: good rows among bad ones, in one of MLflow's shapes; every tenth in a wrong one."""
    numbers = random.Random(number)
    rows, good = [], {}
    for i in range(numbers.randint(1, 6)):
        if numbers.random() < 0.4:
            good[i] = numbers.randrange(len(GOOD))
            rows.append({"image": text(GOOD[good[i]])} | NO_BOX)
        else:
            rows.append({"image": bad_cell(seeds, numbers)} | box(numbers))
    split = {"columns": ["image", *NO_BOX], "data": [list(row.values()) for row in rows]}
    shape = numbers.choice(("dataframe_records", "dataframe_split", "inputs"))
    body: dict[str, Any] = {shape: split if shape == "dataframe_split" else rows}
    if numbers.random() < 0.3:
        body["params"] = {"top_k": numbers.choice((1, 3, 7, 10**6, -1))}
    if number % 10:
        return Request(json.dumps(body).encode(), True, len(rows), good)
    return Request(json.dumps(wrong_shape(body, rows, numbers)).encode()[: numbers.choice((10**9, 50))], False, 0, {})


def wrong_shape(body: dict[str, Any], rows: list[dict[str, Any]], numbers: random.Random) -> object:
    """A request that is not one."""
    without = [{name: value for name, value in row.items() if name != "image"} for row in rows]
    return numbers.choice(
        (
            {},
            [],
            rows,
            body | {"instances": rows},
            body | {"params": MARK},
            body | {"params": {"top_k": MARK}},
            body | {"params": {"top_k": [1]}},
            body | {"params": {"other": 1}},
            {"dataframe_records": without},
            {"dataframe_records": {"a": MARK}},
            {"dataframe_records": [MARK, 3, None]},
            {"dataframe_records": [[[[]]]]},
            {"dataframe_split": {"columns": ["image"], "data": [[1, 2], [3]]}},
            {"dataframe_split": {"columns": ["image", "image"], "data": [[MARK, MARK]]}},
            {"dataframe_split": {"data": [[MARK]]}},
            {"dataframe_split": MARK},
            {"inputs": MARK},
            {"inputs": [MARK, MARK]},
            {"inputs": [[MARK], [3]]},
            {"inputs": {"image": {"image": MARK}}},
            {"inputs": {"image": [MARK], "x1": 3}},
            {"inputs": {"image": [MARK, MARK], "x1": [3]}},
            {"inputs": None},
            {"instances": rows},
            {"messages": MARK},
        )
    )


def faults(request: Request, status: int, answer: bytes, alone: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a sentence for each rule that an answer breaks."""
    if status >= 500:
        yield f"status {status}: {answer[:300]!r}"
    if not request.valid:
        return
    if status != 200:
        yield f"status {status} for a request of the right shape: {answer[:300]!r}"
        return
    rows = json.loads(answer)["predictions"]
    if len(rows) != request.rows:
        yield f"{len(rows)} rows for {request.rows}"
    for i, which in request.good.items():
        if not same(rows[i], alone[which]):
            yield f"a good row is answered {rows[i]}, alone {alone[which]}"
    for row in rows:
        if (row["error"] is None) == (row["label"] is None):
            yield f"neither answer nor error, or both: {row}"
        if row["error"] and (len(row["error"]) > 120 or MARK in row["error"] or "Traceback" in row["error"]):
            yield f"an error that repeats the payload: {row['error'][:300]}"


def same(row: dict[str, Any], alone: dict[str, Any]) -> bool:
    """Whether a row is answered as it is alone; sums in another order differ in the last digits."""
    return (
        row["error"] is None
        and row["class_id"] == alone["class_id"]
        and abs(row["probability"] - alone["probability"]) < 1e-5
    )


def fuzz(server: Server, requests: int, seeds: list[bytes]) -> tuple[Counter[int], list[str], list[int]]:
    """Send the requests: how often each status came, the broken rules, and the server's memory along the way."""
    alone = [server.predict({"inputs": [{"image": text(data)}]})[0] for data in GOOD]
    statuses: Counter[int] = Counter()
    broken: list[str] = []
    memory: list[int] = []

    def send(number: int) -> tuple[int, list[str]]:
        request = make(number, seeds)
        status, answer = server.post(request.body)
        return status, [f"request {number}: {fault}" for fault in faults(request, status, answer, alone)]

    with ThreadPoolExecutor(THREADS) as pool:
        sent = tqdm(pool.map(send, range(requests)), total=requests, unit=" requests", mininterval=2)
        for number, (status, faulty) in enumerate(sent):
            statuses[status] += 1
            broken += faulty
            if number % max(1, requests // 20) == 0:
                memory.append(server.memory())
    memory.append(server.memory())
    return statuses, broken, memory


def main() -> int:
    """Fuzz a server of a small network; print the figures and the first broken rules."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    arguments = parser.parse_args()
    seeds = photos_to_mutate(os.environ.get("CARMODEL_PHOTOS"))
    with TemporaryDirectory(prefix="carmodel-fuzz-") as scratch, tiny_endpoint(Path(scratch)) as endpoint:
        server = Server(endpoint.address, endpoint.process.pid)
        began = time.perf_counter()
        statuses, broken, memory = fuzz(server, arguments.requests, seeds)
        seconds = time.perf_counter() - began
    settled = memory[min(2, len(memory) - 1)]
    if memory[-1] - settled > GROWTH:
        broken.append(f"the server's memory grew from {settled:,} to {memory[-1]:,} bytes")
    print(
        f"{arguments.requests} requests in {seconds:.0f} s from {THREADS} threads; answers by status: "
        f"{dict(sorted(statuses.items()))}; memory of the server {memory[0] / 2**20:.0f} MB at first, "
        f"{max(memory) / 2**20:.0f} at most, {memory[-1] / 2**20:.0f} at the end; broken rules: {len(broken)}"
    )
    print(*broken[:20], sep="\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
