"""Engines make a store's images from a table of its rows; the function that makes a batch neither knows nor cares which.

`local` runs on the cores of this machine and writes one file; `carmodel.data.spark` runs on a cluster and writes a file of
parts. The images are the same.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from carmodel.data.writer import Header, Rows, Writer, checksums

BATCH_ROWS = 128
BATCH_BYTES = 32 << 20
TOLD = ["digest", "problem", "detail"]

Result = TypeVar("Result")

Make = Callable[[pd.DataFrame], tuple[np.ndarray, pd.DataFrame]]
"""From a slice of a table to its images, uint8 (n, H, W, 3), and what there is to tell of each, with the slice's index:
digest (16 bytes: of what was read; empty where nothing was), problem and detail ("" where the image is fine; where it is
not, it is undefined)."""

Watch = Callable[[pd.DataFrame], None]
"""Is shown the rows whose image could not be made, with problem and detail, as they come; may raise to stop the work."""

Describe = Callable[[pd.DataFrame], Rows]
"""From what was told of all rows, in the order of the table, to what the store keeps of those whose image is fine."""

Engine = Callable[[Header, Make, pd.DataFrame, Watch, Describe], None]
"""Writes a store: an image of each row of a table, in its order, without the rows that have a problem. The table's index
has no value twice."""


def local(header: Header, make: Make, table: pd.DataFrame, watch: Watch, describe: Describe) -> None:
    """The engine of one machine: threads on all cores, and a store of one file."""

    def made(batch: pd.DataFrame) -> tuple[np.ndarray, list[int], pd.DataFrame]:
        images, of_batch = make(batch)
        fine = of_batch["problem"].eq("").to_numpy()
        kept = images if fine.all() else images[fine]
        return kept, checksums(kept), of_batch

    told = [pd.DataFrame(columns=TOLD, index=table.index[:0])]
    with Writer(header, len(table)) as writer:
        for kept, crc32, of_batch in map_batches(
            made, table, f"writing {header.path.name}", rows_a_batch(header.image_size)
        ):
            if len(kept) < len(of_batch):
                watch(table.join(of_batch[of_batch["problem"] != ""], how="inner"))
            writer.append(kept, crc32)
            told.append(of_batch)
        writer.describe(describe(pd.concat(told[1:] or told)))


def rows_a_batch(image_size: int) -> int:
    """Rows of square RGB images that make about 32 MiB: 128 at most (from 295 px down), one at least."""
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
    workers = os.cpu_count() or 1
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
