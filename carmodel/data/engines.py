"""Engines map one function over batches of a table; the function neither knows nor cares which."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import cv2
import pandas as pd
from tqdm import tqdm

BATCH_ROWS = 128
BATCH_BYTES = 32 << 20

Result = TypeVar("Result")


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
            for start in range(0, len(table), batch_rows):
                if len(pending) == 2 * workers - 1:  # the caller holds one more until it gets the next
                    yield oldest()
                batch = table.iloc[start : start + batch_rows]
                pending.append((len(batch), pool.submit(function, batch)))
            while pending:
                yield oldest()
        finally:
            for _, future in pending:
                future.cancel()
