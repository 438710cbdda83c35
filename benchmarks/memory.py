"""Measure memory."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import psutil


class Memory:
    """Measure the peak memory of this process and its children within a ``with`` block, in MB.

    Files that are mapped into memory do not count, since the system can drop their pages at any time.
    """

    def __enter__(self) -> "Memory":
        self.before = self.peak = used()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.peak = max(self.peak, used())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()
        self.peak = max(self.peak, used())


def used() -> float:
    """Return the memory of this process and its children without mapped files, in MB."""
    total = 0
    for process in [me := psutil.Process(os.getpid()), *me.children(recursive=True)]:
        try:
            memory = process.memory_info()
        except psutil.NoSuchProcess:
            continue
        total += memory.rss - memory.shared
    return total / 1e6


def in_new_process(work: Callable[..., float], *arguments: object) -> float:
    """Call a function in a new process, and return its result.

    All processes are copies of one that has imported the module of the first function, so its imports take time only once.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()
