"""The engine interface, and the engine that runs on the cores of one machine.

An engine makes the images of a store from a table of its rows. `local_engine` writes one file.
`carmodel.data.spark_engine` runs on a cluster and writes a store of parts. Both make the same images.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
import pandas as pd
from tqdm import tqdm

from carmodel.data.store import checksums
from carmodel.data.threads import cores, one_opencv_thread
from carmodel.data.writer import StoreColumns, StoreSpec, Writer

# A batch of this size stays in the processor's cache until it is written. Batches of twice the size took a third longer.
BATCH_ROWS = 64
BATCH_BYTES = 12 << 20
OUTCOME_COLUMNS = ["digest", "perceptual_hash", "aspect", "problem", "detail"]

Result = TypeVar("Result")

MakeImages = Callable[[pd.DataFrame, np.ndarray], pd.DataFrame]
"""Fill uint8 (n, H, W, 3) with the images of n rows of a table.

Return one outcome per row, with the index of the rows:

    digest           16 bytes, of the file that was read; empty if there is none
    perceptual_hash  32 bytes, of the image (see `carmodel.data.near_duplicates`); empty if there is none
    aspect           width / height of what the image shows, before it became square
    problem, detail  why there is no image; "" if there is one
"""

OnProblems = Callable[[pd.DataFrame], None]
"""Receive the rows that have no image, with problem and detail, as they come. It may raise an exception to stop the work."""

DescribeRows = Callable[[pd.DataFrame], StoreColumns]
"""Map the outcomes of all rows, in the order of the table, to the store's columns for the rows that have an image."""

Engine = Callable[[StoreSpec, MakeImages, pd.DataFrame, OnProblems, DescribeRows], None]
"""Write a store with an image of each row of a table, in order. Rows with a problem are left out. The table's index is
unique."""


def local_engine(
    spec: StoreSpec, make: MakeImages, table: pd.DataFrame, on_problems: OnProblems, describe: DescribeRows
) -> None:
    """Make the images with threads on all cores, and write a store of one file."""
    size, rows = spec.image_size, rows_per_batch(spec.image_size)
    # Buffers are reused: allocating memory for each batch costs more time than filling it.
    buffers: SimpleQueue[np.ndarray] = SimpleQueue()
    for _ in range(2 * cores()):
        buffers.put(np.empty((rows, size, size, 3), np.uint8))

    def make_batch(batch: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame, list[int]]:
        buffer = buffers.get()
        outcomes = make(batch, buffer[: len(batch)])
        return buffer, outcomes, checksums(usable_images(buffer, outcomes))

    all_outcomes = [pd.DataFrame(columns=OUTCOME_COLUMNS, index=table.index[:0])]
    with Writer(spec, len(table)) as writer:
        for buffer, outcomes, crc32 in map_batches(make_batch, table, f"writing {spec.path.name}", rows):
            if len(crc32) < len(outcomes):
                on_problems(table.join(outcomes[outcomes["problem"] != ""], how="inner"))
            writer.append(usable_images(buffer, outcomes), crc32)
            buffers.put(buffer)
            all_outcomes.append(outcomes)
        writer.describe(describe(pd.concat(all_outcomes[1:] or all_outcomes)))


def usable_images(images: np.ndarray, outcomes: pd.DataFrame) -> np.ndarray:
    """Return the images without a problem, among the first ``len(outcomes)``. Copy only if there are problems."""
    usable = outcomes["problem"].eq("").to_numpy()
    return images[: len(outcomes)] if usable.all() else images[: len(outcomes)][usable]


def rows_per_batch(image_size: int) -> int:
    """Return how many square RGB images make about 12 MiB: from 1 to 64."""
    return min(BATCH_ROWS, max(1, BATCH_BYTES // (3 * image_size**2)))


def map_batches(
    function: Callable[[pd.DataFrame], Result], table: pd.DataFrame, title: str, batch_rows: int = BATCH_ROWS
) -> Iterator[Result]:
    """Apply a function to consecutive slices of a table, on threads over all cores.

    OpenCV and zlib release Python's global lock, so threads are enough and no image is copied between processes. At
    most two batches per core are in memory, including the one that the caller holds.

    Args:
        function: takes a slice of at most `batch_rows` rows.
        table: any number of rows.
        title: label of the progress bar, which counts rows.
        batch_rows: rows per slice.

    Yields:
        the results, in the order of the table.
    """
    workers = cores()
    pending: deque[tuple[int, Future[Result]]] = deque()
    with (
        one_opencv_thread(),
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(table), desc=title, unit="photo", mininterval=1, leave=False, disable=None) as bar,
    ):

        def oldest() -> Result:
            rows, future = pending.popleft()
            result = future.result()
            bar.update(rows)
            return result

        try:
            for batch in slices(table, batch_rows):
                if len(pending) == 2 * workers - 1:  # the caller holds one more until it asks for the next
                    yield oldest()
                pending.append((len(batch), pool.submit(function, batch)))
            while pending:
                yield oldest()
        finally:
            for _, future in pending:
                future.cancel()


def slices(table: pd.DataFrame, rows: int) -> Iterator[pd.DataFrame]:
    """Cut a table into consecutive slices of at most `rows` rows."""
    for start in range(0, len(table), rows):
        yield table.iloc[start : start + rows]
