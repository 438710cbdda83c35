"""Train on several GPUs or processes with Horovod (Sergeev & Del Balso 2018, https://arxiv.org/abs/1802.05799).

The Keras module of Horovod 0.28 supports Keras 2 only. With this module, any Keras 3 optimizer works::

    ranks = Horovod()                                   # before TensorFlow uses a device
    model.compile(optimizer, loss, jit_compile=False)   # XLA does not support Horovod's operations
    model.fit(shard, callbacks=ranks.callbacks(optimizer, "none", rows=len(shard), validation_rows=0))

Only processes that train together import this module. It needs the TensorFlow backend.
"""

import os
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf

from carmodel.data.threads import cores
from carmodel.errors import InputError
from carmodel.model.keras_internals import change_gradients, has_changed_gradients
from carmodel.training.statistics import moving_statistics

T = TypeVar("T")


class Horovod:
    """The ranks of a Horovod job, with the interface of `carmodel.training.ranks.Ranks`.

    Creating the object joins the job that the launcher has started. Each rank of a machine uses one GPU, whose memory
    grows on demand. On a machine without GPUs, the ranks share its cores.

    Attributes:
        rank: number of this process, from 0.
        count: number of processes.

    Raises:
        InputError: this machine has GPUs, but fewer than ranks.
    """

    def __init__(self) -> None:
        hvd.init()
        if gpus := tf.config.list_physical_devices("GPU"):
            if hvd.local_rank() >= len(gpus):
                raise InputError(
                    f"{hvd.local_size()} processes on a machine with {len(gpus)} GPUs, but each needs one; start fewer"
                )
            tf.config.set_visible_devices(gpus[hvd.local_rank()], "GPU")
            tf.config.experimental.set_memory_growth(gpus[hvd.local_rank()], True)
        else:
            threads = max(1, cores() // hvd.local_size())
            tf.config.threading.set_intra_op_parallelism_threads(threads)
        self.rank, self.count = hvd.rank(), hvd.size()

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows of all ranks, those of rank 0 first. Ranks may have different numbers of rows."""
        return _gather(rows)

    def from_rank_0(self, value: T) -> T:
        """Return the value that rank 0 passes, on every rank. It must be picklable."""
        return hvd.broadcast_object(value, root_rank=0)

    def once_per_machine(self, work: Callable[[], T]) -> T:
        """Call `work` on one rank of each machine, and return its picklable result on all ranks of that machine."""
        machine = os.environ["HOROVOD_HOSTNAME"]
        results = hvd.allgather_object((machine, work()) if hvd.local_rank() == 0 else None)
        return next(result[1] for result in results if result is not None and result[0] == machine)

    def broadcast(self, variables: Iterable[keras.Variable]) -> None:
        """Broadcast the values of the variables from rank 0 to all ranks."""
        hvd.broadcast_variables([variable.value for variable in variables], root_rank=0)

    def callbacks(
        self, optimizer: keras.optimizers.Optimizer, compression: str, rows: int, validation_rows: int
    ) -> list[keras.callbacks.Callback]:
        """Make the optimizer average gradients over the ranks, and return the callback that keeps the ranks equal."""
        return [SynchronizeRanks(distribute(optimizer, compression), rows, validation_rows)]


class Average:
    """Average lists of gradients over the ranks, each list in one fused all-reduce.

    Args:
        compression: the numbers that are sent. "none" sends gradients unchanged. "float16" overflows above 65504; adding
            it is slow on CPUs, and native to NCCL. "bfloat16" has the range of float32 and 8 bits of precision. Horovod
            cannot add bfloat16, so it is exchanged by all-to-all and all-gather, between GPUs instead of servers.

    Attributes:
        seconds: float64 variable, the total time between gradients and averages. It includes the wait for slower ranks.
        bytes: size of one list of gradients when it is sent. 0 before the first one.
        exchanges: int64 variable, the number of exchanges. It is counted at run time, not while the step is traced.
    """

    def __init__(self, compression: str = "none") -> None:
        self.compression = compression
        self.bytes = 0
        with tf.device("CPU:0"):
            self.seconds = tf.Variable(0.0, trainable=False, dtype=tf.float64)
            self.exchanges = tf.Variable(0, trainable=False, dtype=tf.int64)

    def __call__(self, gradients: Sequence[Any]) -> list[tf.Tensor]:
        """Return the averages of tensors, which have the same shapes on all ranks. Every rank must make the call."""
        # Sparse gradients of embeddings become dense.
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        self.bytes = sum(
            g.shape.num_elements() * (g.dtype.size if self.compression == "none" else 2) for g in gradients
        )
        began = _time_of(gradients)
        with tf.control_dependencies([began]):
            averages = self._exchange([tf.identity(gradient) for gradient in gradients])
        self.seconds.assign_add(_time_of(averages) - began)
        self.exchanges.assign_add(1)
        return averages

    def _exchange(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        if self.compression == "bfloat16":
            return _average_bfloat16(gradients)
        wire = hvd.Compression.fp16 if self.compression == "float16" else hvd.Compression.none
        return hvd.grouped_allreduce(gradients, op=hvd.Average, compression=wire)


def _time_of(tensors: list[tf.Tensor]) -> tf.Tensor:
    """Return the time at which all tensors are computed.

    Python reads the clock, since `tf.timestamp` is refused where operations must be deterministic. It receives a number
    of the first tensor, since a GPU returns tensors before they are computed.
    """
    with tf.control_dependencies(tensors):
        number = tf.reshape(tensors[0], [-1])[:1]
    with tf.device("CPU:0"):
        return tf.numpy_function(lambda _: np.float64(time.perf_counter()), [number], tf.float64)


def _average_bfloat16(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """Average in float32, each rank a part of the numbers. Send as many bytes as a ring all-reduce, and round twice."""
    sizes = [gradient.shape.num_elements() for gradient in gradients]
    flat = tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], axis=0)
    shares = tf.reshape(tf.pad(flat, [[0, -sum(sizes) % hvd.size()]]), (hvd.size(), -1))
    mine = _from_wire(hvd.alltoall(_to_wire(shares)), tf.float32)
    averages = _from_wire(hvd.allgather(_to_wire(tf.reduce_mean(mine, axis=0))), flat.dtype)
    parts = tf.split(averages[: sum(sizes)], sizes)
    return [tf.reshape(part, gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]


def _to_wire(values: tf.Tensor) -> tf.Tensor:
    return tf.bitcast(tf.cast(values, tf.bfloat16), tf.int16)


def _from_wire(values: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.cast(tf.bitcast(values, tf.bfloat16), dtype)


def distribute(optimizer: keras.optimizers.Optimizer, compression: str = "none") -> Average:
    """Make an optimizer average its gradients over the ranks, in place, and return the `Average`.

    Gradients are averaged once per update, before they are clipped. With ``gradient_accumulation_steps``, nothing is sent
    before the update is due, and ``global_clipnorm`` applies to the average. Under the policy mixed_float16, `compile`
    wraps the optimizer in a `LossScaleOptimizer`. The ranks then agree on whether all their gradients are finite, so
    either all of them apply a step or all skip it.

    The class, the config and the exclusions from weight decay do not change, so a model saved with the optimizer loads
    without Horovod. A copy that is made from the config does not average.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        finite_here = optimizer.check_finite
        optimizer.check_finite = lambda gradients: _all_agree(finite_here(gradients))
        return distribute(optimizer.inner_optimizer, compression)
    average = Average(compression)
    change_gradients(optimizer, average)
    return average


def _all_agree(answer: tf.Tensor) -> tf.Tensor:
    return tf.cast(hvd.allreduce(tf.cast(answer, tf.int32), op=hvd.Min), tf.bool)


def _gather(rows: np.ndarray) -> np.ndarray:
    return hvd.allgather(tf.constant(rows)).numpy()


def equalise_moving_statistics(model: keras.Model) -> None:
    """Set the moving mean and variance of trainable batch normalisations to their averages over the ranks.

    Each rank normalises with, and tracks, the statistics of its own batches. A single process that had processed the
    batches of all ranks would track their average.
    """
    moving = moving_statistics(model)
    if moving:
        averages = hvd.grouped_allreduce([tf.convert_to_tensor(v.value) for v in moving], op=hvd.Average)
        for variable, value in zip(moving, averages, strict=True):
            variable.assign(value)


class SynchronizeRanks(keras.callbacks.Callback):
    """Keep the model and the logs of all ranks equal. Put it before callbacks that save, stop early or log.

    It replaces Horovod's BroadcastGlobalVariablesCallback and MetricAverageCallback, which need Keras 2.

    At the start, the variables are broadcast from rank 0. After the last step of an epoch, before validation, the
    moving statistics of all ranks are averaged. At the end of an epoch, the callback checks that the gradients of every
    update were averaged and that the weights of all ranks have the same checksums. The logs then become the same on all
    ranks. Metrics are averaged, weighted by rows, and ``images_per_second`` is summed. For each rank r, the logs also have
    ``images_per_second_rank_r`` and ``all_reduce_seconds_rank_r``, the time between gradients and averages.

    Args:
        average: from `distribute`.
        rows: training rows per epoch of this rank.
        validation_rows: validation rows of this rank.
    """

    def __init__(self, average: Average, rows: int, validation_rows: int = 0) -> None:
        super().__init__()
        self.average, self.rows, self.validation_rows = average, rows, validation_rows

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Broadcast the variables of the model and of the optimizer from rank 0.

        Raises:
            ValueError: `distribute` was not called for the optimizer, or XLA compiles the training.
        """
        optimizer = self.model.optimizer
        if not has_changed_gradients(_inner(optimizer)) or self.model.jit_compile:
            raise ValueError(
                "compile with jit_compile=False, then distribute(model.optimizer), before training on ranks"
            )
        hvd.broadcast_variables(
            [variable.value for variable in [*self.model.variables, *optimizer.variables]], root_rank=0
        )

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Remember the counts at the start of the epoch."""
        self.before, self.exchanges_before = float(self.average.seconds), int(self.average.exchanges)
        self.equalised = False

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        """Average the moving statistics before validation uses them."""
        self._equalise()

    def _equalise(self) -> None:
        if not self.equalised:
            equalise_moving_statistics(self.model)
            self.equalised = True

    def on_test_end(self, logs: dict[str, float] | None = None) -> None:
        """Replace the metrics of this rank's validation rows by those of all rows."""
        if logs:
            *columns, rows = _of_all_ranks([*logs.values(), self.validation_rows])
            logs |= {name: float(np.average(column, weights=rows)) for name, column in zip(logs, columns, strict=True)}

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Check that the ranks are equal, and replace the logs by those of all ranks.

        Raises:
            RuntimeError: the gradients of an update were not averaged, or the weights of the ranks differ.
        """
        self._equalise()
        self._check()
        if logs is None:
            return
        mine = [*logs.values(), float(self.average.seconds) - self.before, self.rows, self.validation_rows]
        *columns, seconds, rows, validation_rows = _of_all_ranks(mine)
        for name, values in zip(list(logs), columns, strict=True):
            if name == "images_per_second":
                logs[name] = float(values.sum())
                logs |= {f"{name}_rank_{rank}": float(value) for rank, value in enumerate(values)}
            else:
                logs[name] = float(np.average(values, weights=validation_rows if name.startswith("val_") else rows))
        logs |= {f"all_reduce_seconds_rank_{rank}": float(value) for rank, value in enumerate(seconds)}

    def _check(self) -> None:
        updates = self.params["steps"] // (_inner(self.model.optimizer).gradient_accumulation_steps or 1)
        if (made := int(self.average.exchanges) - self.exchanges_before) < updates:
            raise RuntimeError(f"gradients were averaged {made} times in {updates} updates, so the ranks trained apart")
        # Checksums of bytes, since a sum of floats would miss a change of sign.
        sums = _of_all_ranks([zlib.crc32(v.numpy().tobytes()) for v in self.model.trainable_variables])
        if not np.array_equal(sums, np.broadcast_to(sums[:, :1], sums.shape)):
            different = self.model.trainable_variables[int(np.argmax((sums != sums[:, :1]).any(axis=1)))]
            raise RuntimeError(f"the weights of the ranks differ, first in {different.path}")


def _of_all_ranks(values: list[float]) -> np.ndarray:
    """Return the values of all ranks, float64 (values, ranks)."""
    return _gather(np.array([values], np.float64)).T


def _inner(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return the optimizer inside a `LossScaleOptimizer`, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)
