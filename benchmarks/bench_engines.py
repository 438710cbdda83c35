"""Compare the local engine, the Spark engine and the bare image operations: ``python -m benchmarks.bench_engines``.

All numbers of a table come from one run, in which the variants take turns on the same photos and all cores. Without
``--data_uri`` the photos are drawn. This needs PySpark (``make spark``), Java and an idle machine.
"""

import argparse
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import pandas as pd
import psutil

from carmodel.data import sample
from carmodel.data.augmentation import augment, augment_store, rng_for
from carmodel.data.local_engine import Engine, local_engine
from carmodel.data.opencv_threads import one_opencv_thread
from carmodel.data.preprocessing import write_stores
from carmodel.data.spark_engine import spark_engine
from carmodel.data.spark_session import ship, spark_session
from carmodel.data.stanford_cars import read
from carmodel.data.store import open_store
from carmodel.data.table import CarTable
from carmodel.parameters import Preprocess

STRENGTHS = {"crop": 0.15, "pad": 0.1, "flip": 0.5}


class Memory:
    """Measure the peak memory of this process and its children within a block, in MB, without memory-mapped files."""

    def __enter__(self) -> "Memory":
        self.peak = 0.0
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            total = 0
            for process in [me := psutil.Process(), *me.children(recursive=True)]:
                try:
                    memory = process.memory_info()
                except psutil.NoSuchProcess:
                    continue
                total += memory.rss - memory.shared
            self.peak = max(self.peak, total / 1e6)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()


def on_all_cores(work: Callable[[pd.DataFrame], None], table: pd.DataFrame) -> None:
    """Call `work` on equal parts of a table, on one thread per core."""
    cores = len(os.sched_getaffinity(0))
    with one_opencv_thread(), ThreadPoolExecutor(cores) as pool:
        list(pool.map(work, (table.iloc[core::cores] for core in range(cores))))


def bare_decode(photos: pd.DataFrame, size: int, file: Path | None = None) -> None:
    """Decode, crop and resize with OpenCV alone, the limit of preprocess. Optionally write the pixels to `file`."""
    stream = file.open("wb") if file else None
    for path, x1, y1, x2, y2 in zip(*(photos[name] for name in ("path", "x1", "y1", "x2", "y2")), strict=True):
        pixels = cv2.imdecode(np.frombuffer(Path(path).read_bytes(), np.uint8), cv2.IMREAD_COLOR_RGB)
        image = cv2.resize(pixels[y1:y2, x1:x2], (size, size), interpolation=cv2.INTER_AREA)
        if stream:
            image.tofile(stream)
    if stream:
        stream.close()


def bare_augment(rows: pd.DataFrame, images: np.ndarray) -> None:
    """Crop, pad and flip images in memory without saving them, the limit of augment."""
    for row in rows["row"].tolist():
        augment(images[row % len(images)], rng_for(0, row, 0), **STRENGTHS)


def first_photos(table: CarTable, photos: int) -> CarTable:
    """Return the table of the first photos of each split. 0 keeps all."""
    return replace(table, photos=table.photos.groupby("split").head(photos or len(table.photos)).reset_index(drop=True))


def repeated(table: CarTable, times: int) -> CarTable:
    """Return a table with each photo several times, under different names."""
    copies = [table.photos.assign(source=table.photos["source"] + f".{i}") for i in range(times)]
    return replace(table, photos=pd.concat(copies, ignore_index=True))


def enlarged(table: CarTable, factor: float, folder: Path) -> CarTable:
    """Write enlarged copies of the photos, the size of photos from a camera, and return their table."""
    folder.mkdir()
    corners = (table.photos[["x1", "y1", "x2", "y2"]] * factor).astype(int)
    paths = [folder / f"{row}.jpg" for row in range(len(table.photos))]

    def enlarge(rows: pd.DataFrame) -> None:
        for path, larger in zip(rows["path"], rows["larger"], strict=True):
            pixels = cv2.resize(cv2.imread(path), None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(larger), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])

    on_all_cores(enlarge, table.photos.assign(larger=paths))
    return replace(table, photos=table.photos.assign(path=[str(path) for path in paths], **corners))


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that `work` takes, and its peak memory in MB."""
    with Memory() as memory:
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
    return seconds, memory.peak


def preprocess(table: CarTable, folder: Path, size: int, engine: Engine) -> None:
    """Write the stores and delete them."""
    out = folder / "data"
    out.mkdir()
    write_stores(table, out, Preprocess(image_size=size), engine=engine)
    shutil.rmtree(out)


def augmented(train: Path, folder: Path, engine: Engine) -> None:
    """Write an augmented copy of each row and delete the store."""
    out = folder / "augmented"
    out.mkdir()
    augment_store(train, out / "augmented.h5", copies=1, seed=0, **STRENGTHS, engine=engine)
    shutil.rmtree(out)


def table_of(title: str, rows: int, limit: str, measured: dict[str, list[tuple[float, float]]]) -> None:
    """Print a table in Markdown. Ratios compare measurements of the same turn."""
    print(
        f"\n{title}\n\n| variant | photos/s (median, lowest to highest) | of the limit | peak memory, MB |\n|---|---|---|---|"
    )
    for variant, seen in measured.items():
        rates = sorted(rows / seconds for seconds, _ in seen)
        share = median(bare / mine for (bare, _), (mine, _) in zip(measured[limit], seen, strict=True))
        print(
            f"| {variant} | {median(rates):.0f} ({rates[0]:.0f} to {rates[-1]:.0f}) | {share:.2f} | "
            f"{max(memory for _, memory in seen):.0f} |"
        )


def photos_of(arguments: argparse.Namespace, folder: Path) -> CarTable:
    """Return the table of the photos that the arguments describe. Photos that are made are written to `folder`."""
    table = read(Path(arguments.data_uri) if arguments.data_uri else sample.draw(folder / "drawn", 8, 250, 0))
    # All photos get one class, since a few hundred photos do not have all classes. Labels do not affect the time.
    table = first_photos(replace(table, photos=table.photos.assign(label=0), class_names=["car"]), arguments.photos)
    if arguments.enlarge != 1:
        table = enlarged(table, arguments.enlarge, folder / "enlarged")
    return repeated(table, arguments.times)


def main() -> None:
    """Measure the variants and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_uri", default="", help="folder in the Stanford Cars layout (default: drawn photos)")
    parser.add_argument("--photos", type=int, default=0, help="the first n photos of each split (default: all)")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--times", type=int, default=1, help="use each photo this many times")
    parser.add_argument(
        "--enlarge", type=float, default=1.0, help="factor by which width and height of the photos grow"
    )
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    size = arguments.image_size
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="carmodel-bench-")))
        table = photos_of(arguments, folder)

        began = time.perf_counter()
        session = stack.enter_context(spark_session(f"local[{len(os.sched_getaffinity(0))}]"))
        ship(session, ["carmodel"])
        started = time.perf_counter() - began
        began = time.perf_counter()
        spark = spark_engine(session)
        few = first_photos(table, 200)
        preprocess(few, folder, 16, spark)
        first = time.perf_counter() - began
        began = time.perf_counter()
        preprocess(few, folder, 16, spark)
        second = time.perf_counter() - began

        data = folder / "kept"
        data.mkdir()
        write_stores(table, data, Preprocess(image_size=size))
        store = open_store(data / "train.h5")
        rows = pd.DataFrame({"row": np.flatnonzero(~store.validation)})
        images = store.take(np.arange(min(1000, len(store))))
        decode: dict[str, list[tuple[float, float]]] = {
            "bare decode + resize": [],
            "bare decode + resize, written to plain files": [],
            "local": [],
            "spark": [],
        }
        change: dict[str, list[tuple[float, float]]] = {"bare crop, pad, flip": [], "local": [], "spark": []}
        for _ in range(arguments.turns):
            decode["bare decode + resize"].append(
                timed(lambda: on_all_cores(lambda part: bare_decode(part, size), table.photos))
            )
            decode["bare decode + resize, written to plain files"].append(
                timed(
                    lambda: on_all_cores(
                        lambda part: bare_decode(part, size, folder / f"{part.index[0]}.raw"), table.photos
                    )
                )
            )
            for file in folder.glob("*.raw"):
                file.unlink()
            decode["local"].append(timed(lambda: preprocess(table, folder, size, local_engine)))
            decode["spark"].append(timed(lambda: preprocess(table, folder, size, spark)))
            change["bare crop, pad, flip"].append(
                timed(lambda: on_all_cores(lambda part: bare_augment(part, images), rows))
            )
            change["local"].append(timed(lambda: augmented(data / "train.h5", folder, local_engine)))
            change["spark"].append(timed(lambda: augmented(data / "train.h5", folder, spark)))

    cores = len(os.sched_getaffinity(0))
    what = "photos of data_uri" if arguments.data_uri else "synthetic photos"
    if arguments.enlarge != 1:
        what += f", enlarged {arguments.enlarge:g} times"
    print(f"\n{len(table.photos)} {what}, {size} px, {cores} cores, {arguments.turns} turns.")
    table_of("preprocess", len(table.photos), "bare decode + resize", decode)
    table_of("augment, one copy", len(rows), "bare crop, pad, flip", change)
    print(
        f"\nFixed cost of Spark: {started:.1f} s to start the session, {first:.1f} s for the first stores of {len(few.photos)} "
        f"tiny images, in which Python workers start, and {second:.1f} s for the second. The rates above exclude the start."
    )


if __name__ == "__main__":
    main()
