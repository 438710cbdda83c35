"""Run what the benchmark compares this project with, in the environment of ``benchmarks/peers.txt``.

The process reads calls from its input, one JSON object a line: ``{"function": NAME, "arguments": {…}}``. It answers each
with ``{"value": …}`` or ``{"error": TEXT}``. It does not import this project.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np

Infer = Callable[[np.ndarray], np.ndarray]
"""uint8 (N, H, W, 3) to probabilities (N, C)."""


def versions(packages: list[str]) -> list[str]:
    """Return the versions of packages."""
    return [version(package) for package in packages]


@cache
def network(onnx: str, threads: int, hint: str = "LATENCY") -> Any:
    """Load a network into OpenVINO."""
    import openvino

    # In float32, as the other engines. By default OpenVINO computes in bfloat16 where the processor can.
    settings = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    return openvino.compile_model(onnx, "CPU", settings)


def in_one_call(onnx: str, threads: int) -> Infer:
    """Return a function that computes a batch in one call, with all threads."""
    compiled = network(onnx, threads)
    return lambda images: compiled(images)[0]


def row_by_row(onnx: str, threads: int) -> Infer:
    """Return a function that computes the rows of a batch one by one, several at a time."""
    import openvino

    queue = openvino.AsyncInferQueue(network(onnx, threads, "THROUGHPUT"))
    rows: dict[int, np.ndarray] = {}
    queue.set_callback(lambda request, row: rows.update({row: request.get_output_tensor(0).data.copy()}))

    def run(images: np.ndarray) -> np.ndarray:
        for row in range(len(images)):
            queue.start_async({0: images[row : row + 1]}, row)
        queue.wait_all()
        return np.concatenate([rows[row] for row in range(len(images))])

    return run


@cache
def fastest(onnx: str, threads: int, images: str, rows: int) -> Infer:
    """Return the faster of the two ways to compute a batch of this size."""
    batch = array(images)[:rows]

    def seconds(run: Infer) -> float:
        run(batch)
        times = []
        for _ in range(3):
            began = time.perf_counter()
            run(batch)
            times.append(time.perf_counter() - began)
        return min(times)

    return min((way(onnx, threads) for way in (in_one_call, row_by_row)), key=seconds)


@cache
def array(file: str) -> np.ndarray:
    """Return the array of a file."""
    return np.load(file)


def infer(onnx: str, threads: int, images: str, *, rows: int, times: int) -> float:
    """Return the seconds that a network takes for `times` batches."""
    run, batch = fastest(onnx, threads, images, rows), array(images)[:rows]
    run(batch[:1])
    began = time.perf_counter()
    for _ in range(times):
        run(batch)
    return time.perf_counter() - began


def answers(onnx: str, threads: int, images: str, out: str) -> None:
    """Save the probabilities (N, C) of images."""
    np.save(out, fastest(onnx, threads, images, len(array(images)))(array(images)))


def augment(images: str, threads: int, times: int) -> float:
    """Return the seconds that albumentations takes for `times` batches, with a thread for each part of a batch."""
    import albumentations
    import cv2

    cv2.setNumThreads(1)
    batch = array(images)
    side = batch.shape[1]
    change = albumentations.Compose(
        [
            albumentations.RandomResizedCrop((side, side), scale=(0.5, 1.0)),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.ColorJitter(p=1.0, hue=0.0),
        ]
    )
    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        for _ in range(times):
            out = np.empty_like(batch)

            def fill(row: int, out: np.ndarray = out) -> None:
                out[row] = change(image=batch[row])["image"]

            list(pool.map(fill, range(len(batch))))
        return time.perf_counter() - began


FUNCTIONS = {function.__name__: function for function in (versions, infer, answers, augment)}


def main() -> None:
    """Answer calls until the input ends."""
    # Libraries may print, so standard output becomes standard error for them.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        call = json.loads(line)
        try:
            answer = {"value": FUNCTIONS[call["function"]](**call["arguments"])}
        except Exception as error:  # the benchmark prints it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
