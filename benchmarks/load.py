"""Send requests from many clients to an endpoint, with valid and invalid rows: `make load`.

    python -m benchmarks.load --clients 16 --seconds 60

This serves the newest candidate of the registry with MLflow's server, and sends drawn photos and broken ones. Each answer
is compared with the answer to the same row in its own request. It prints latencies and rows per second. Then the server
is killed and restarted under load, and the clients' retries must succeed for every row.
"""

import argparse
import base64
import contextlib
import os
import platform
import random
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from itertools import chain
from tempfile import TemporaryFile
from typing import Any

import cv2
import mlflow
import numpy as np

from carmodel.data.drawing.bodies import BODIES
from carmodel.data.drawing.photo import draw_photo
from carmodel.serving.client import RETRIES, EndpointError, ask, connect, row_of
from carmodel.serving.registry import CANDIDATE, newest_model
from carmodel.serving.scoring_server import running_server, stop_server

Row = dict[str, Any]
Answer = dict[str, Any]


@dataclass(frozen=True)
class Load:
    """The results of the clients.

    Attributes:
        latencies: seconds of each request.
        rows: number of rows with an answer.
        faults: descriptions of failed requests and wrong answers.
        seconds: duration.
    """

    latencies: np.ndarray
    rows: int
    faults: list[str]
    seconds: float

    def __str__(self) -> str:
        p50, p95, p99 = 1000 * np.percentile(self.latencies, [50, 95, 99])
        figures = (
            f"{len(self.latencies)} requests, {self.rows} rows in {self.seconds:.0f} s, {len(self.faults)} faults | "
            f"{self.rows / self.seconds:.0f} rows/s | p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms"
        )
        return "\n  ".join([figures, *self.faults[:5]])


def mixed_rows(good: int = 12) -> list[Row]:
    """Return drawn photos, some with a box, and invalid rows, each of which must get an error."""
    photos = []
    for number in range(good):
        image, _ = draw_photo(BODIES[number % len(BODIES)], np.random.default_rng([9, number]))
        photos.append(cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes())
    whole = [row_of(photo) for photo in photos]
    boxed = [row_of(photo, (20, 20, 120, 100)) for photo in photos[:4]]
    bad: list[Row] = [
        {"image": None},
        {"image": ""},
        {"image": 17},
        {"image": "not base64!"},
        {"image": "https://example.com/car.jpg"},
        {"image": base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode()},
        row_of(photos[0][: len(photos[0]) // 2]),
        row_of(photos[1], (50, 50, 10, 10)),
        row_of(photos[2]) | {"x1": 3},
    ]
    return whole + boxed + bad


def load(
    endpoint: str,
    rows: Sequence[Row],
    right: Callable[[Row, Answer], bool],
    *,
    clients: int = 16,
    seconds: float = 60.0,
    retries: int = 0,
) -> Load:
    """Let clients send requests of 1 to 8 random rows.

    Args:
        endpoint: address of the server.
        rows: the rows to choose from.
        right: returns whether an answer is right for a row.
        clients: number of threads, each of which sends one request after another.
        seconds: time after which no request starts.
        retries: retries of the clients. With 0, every failed request is a fault.
    """
    http = connect(retries, clients)
    deadline = time.monotonic() + seconds

    def client(seed: int) -> tuple[list[float], int, list[str]]:
        choose = random.Random(seed)
        latencies: list[float] = []
        answered, faults = 0, list[str]()
        while time.monotonic() < deadline:
            sent = choose.choices(rows, k=choose.randint(1, 8))
            began = time.perf_counter()
            try:
                answers = ask(http, endpoint, sent)
            except EndpointError as error:
                faults.append(str(error))
                continue
            latencies.append(time.perf_counter() - began)
            answered += len(answers)
            faults += [
                f"a wrong answer: {answer}" for row, answer in zip(sent, answers, strict=True) if not right(row, answer)
            ]
        return latencies, answered, faults

    began = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        latencies, answered, faults = zip(*pool.map(client, range(clients)), strict=True)
    return Load(np.concatenate(latencies), sum(answered), list(chain(*faults)), time.monotonic() - began)


def as_alone(endpoint: str, rows: Sequence[Row]) -> Callable[[Row, Answer], bool]:
    """Return a function that compares an answer with the answer to the same row in its own request."""
    http = connect()
    alone = {id(row): ask(http, endpoint, [row])[0] for row in rows}

    def right(row: Row, answer: Answer) -> bool:
        expected = alone[id(row)]
        if expected["error"] is not None:
            # The text may differ: pandas turns a number into a float if its column has a null, and errors name the type.
            return answer["error"] is not None and answer["label"] is None
        near = answer["error"] is None and abs(answer["probability"] - expected["probability"]) < 1e-3
        return near and answer["class_id"] == expected["class_id"]

    return right


def load_through_restart(model: str, port: int, clients: int, seconds: float) -> Load:
    """Send requests to a server that is killed after a third of the time, and restarted at once."""
    rows = mixed_rows()
    with TemporaryFile() as log, contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as aside:
        address, process = stack.enter_context(running_server(model, port, log))
        right = as_alone(address, rows)
        outcome = aside.submit(load, address, rows, right, clients=clients, seconds=seconds, retries=RETRIES)
        time.sleep(seconds / 3)
        stop_server(process, signal.SIGKILL)
        stack.enter_context(running_server(model, port, log))
        return outcome.result()


def main() -> None:
    """Print the results of both kinds of load, with their first faults."""
    parser = argparse.ArgumentParser(description="Send requests from many clients to an endpoint.")
    parser.add_argument("--model", default="", help="URI of a model (default: the newest candidate)")
    parser.add_argument("--port", type=int, default=5003)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    model = given.model or newest_model(mlflow.MlflowClient(), CANDIDATE)
    if model is None:
        parser.error("no classifier is registered yet; run `make demo` first")
    print(f"{model}, {given.clients} clients, {os.cpu_count()} cores ({platform.machine()}), {date.today()}")
    rows = mixed_rows()
    with TemporaryFile() as log, running_server(model, given.port, log) as (address, _):
        print(
            "steady:   ",
            load(address, rows, as_alone(address, rows), clients=given.clients, seconds=given.seconds),
            flush=True,
        )
    print("restarted:", load_through_restart(model, given.port, given.clients, given.seconds))


if __name__ == "__main__":
    main()
