"""Run what the benchmark compares this project with, in the environment of ``benchmarks/peers.txt``.

The process reads calls from its input, one JSON object a line: ``{"function": NAME, "arguments": {…}}``. It answers each
with ``{"value": …}`` or ``{"error": TEXT}``. It does not import this project.
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np

Infer = Any


def versions(packages: list[str]) -> list[str]:
    """Return the versions of packages."""
    return [version(package) for package in packages]


@cache
def network(onnx: str, threads: int) -> Infer:
    """Load a network into OpenVINO, and return its function from uint8 (N, H, W, 3) to probabilities (N, C)."""
    import openvino

    # In float32, as the other engines. By default OpenVINO computes in bfloat16 where the processor can.
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.compile_model(onnx, "CPU", settings)
    return lambda images: compiled(images)[0]


@cache
def array(file: str) -> np.ndarray:
    """Return the array of a file."""
    return np.load(file)


def infer(onnx: str, threads: int, images: str, *, rows: int, times: int) -> float:
    """Return the seconds that a network takes for `times` batches."""
    run, batch = network(onnx, threads), array(images)[:rows]
    began = time.perf_counter()
    for _ in range(times):
        run(batch)
    return time.perf_counter() - began


def answers(onnx: str, threads: int, images: str, out: str) -> None:
    """Save the probabilities (N, C) of images."""
    np.save(out, network(onnx, threads)(array(images)))


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
