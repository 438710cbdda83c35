"""Engines make a store's images from a table of its rows; the function that makes a batch neither knows nor cares which.

`local` runs on the cores of this machine and writes one file; `carmodel.data.spark` runs on a cluster and writes a file of
parts. The images are the same.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from carmodel.data.writer import Header, Rows, Writer, checksums

# Few enough bytes to stay in the processor's cache until they are written: twice as many took a third longer.
BATCH_ROWS = 64
BATCH_BYTES = 12 << 20
TOLD = ["digest", "problem", "detail"]

Result = TypeVar("Result")

Make = Callable[[pd.DataFrame, np.ndarray], pd.DataFrame]
"""Fills uint8 (n, H, W, 3) with the images of a slice of a table, n rows. Returns what there is to tell of each, with the
slice's index: digest (16 bytes: of what was read; empty where nothing was), problem and detail ("" where the image is fine;
where it is not, it is undefined)."""

Watch = Callable[[pd.DataFrame], None]
"""Is shown the rows whose image could not be made, with problem and detail, as they come; may raise to stop the work."""

Describe = Callable[[pd.DataFrame], Rows]
"""From what was told of all rows, in the order of the table, to what the store keeps of those whose image is fine."""

Engine = Callable[[Header, Make, pd.DataFrame, Watch, Describe], None]
"""Writes a store: an image of each row of a table, in its order, without the rows that have a problem. The table's index
has no value twice."""


def local(header: Header, make: Make, table: pd.DataFrame, watch: Watch, describe: Describe) -> None:
    """The engine of one machine: threads on all cores, and a store of one file."""

    size, rows = header.image_size, rows_a_batch(header.image_size)
    # Used again and again: new memory for each batch costs more than the pixels that go into it.
    buffers: SimpleQueue[np.ndarray] = SimpleQueue()
    for _ in range(2 * cores()):
        buffers.put(np.empty((rows, size, size, 3), np.uint8))

    def made(batch: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame, list[int]]:
        buffer = buffers.get()
        of_batch = make(batch, buffer[: len(batch)])
        return buffer, of_batch, checksums(fine_of(buffer, of_batch))

    told = [pd.DataFrame(columns=TOLD, index=table.index[:0])]
    with Writer(header, len(table)) as writer:
        for buffer, of_batch, crc32 in map_batches(made, table, f"writing {header.path.name}", rows):
            if len(crc32) < len(of_batch):
                watch(table.join(of_batch[of_batch["problem"] != ""], how="inner"))
            writer.append(fine_of(buffer, of_batch), crc32)
            buffers.put(buffer)
            told.append(of_batch)
        writer.describe(describe(pd.concat(told[1:] or told)))


def fine_of(images: np.ndarray, told: pd.DataFrame) -> np.ndarray:
    """Of the first images, one for each row that was told of, those without a problem; no copy where all are fine."""
    fine = told["problem"].eq("").to_numpy()
    return images[: len(told)] if fine.all() else images[: len(told)][fine]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rows_a_batch(image_size: int) -> int:
    """Rows of square RGB images that make about 12 MiB: 64 at most (from 256 px down), one at least."""
    return min(BATCH_ROWS, max(1, BATCH_BYTES // (3 * image_size**2)))


def map_batches(
    function: Callable[[pd.DataFrame], Result], table: pd.DataFrame, title: str, batch_rows: int = BATCH_ROWS
) -> Iterator[Result]:
    """Run `function` on consecutive slices of a table, on threads over all cores.

    OpenCV and zlib let go of Python's lock, so threads suffice and the images are never copied between processes. At
    most two batches a core are in memory, the one that the caller holds included.

    Args:
        function: of a slice with at most `batch_rows` rows.
        table: any number of rows.
        title: of the progress bar, which counts rows.
        batch_rows: rows a slice.

    Yields:
        the results, in the order of the table.
    """
    cv2.setNumThreads(1)  # the cores are busy with whole photos
    workers = cores()
    pending: deque[tuple[int, Future[Result]]] = deque()
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(table), desc=title, unit="photo", mininterval=1) as bar:

        def oldest() -> Result:
            rows, future = pending.popleft()
            result = future.result()
            bar.update(rows)
            return result

        try:
            for batch in slices(table, batch_rows):
                if len(pending) == 2 * workers - 1:  # the caller holds one more until it gets the next
                    yield oldest()
                pending.append((len(batch), pool.submit(function, batch)))
            while pending:
                yield oldest()
        finally:
            for _, future in pending:
                future.cancel()


def slices(table: pd.DataFrame, rows: int) -> Iterator[pd.DataFrame]:
    """Cut a table into consecutive slices of at most so many rows."""
    for start in range(0, len(table), rows):
        yield table.iloc[start : start + rows]
