"""Horovod for Keras 3: the one place that knows Horovod (https://arxiv.org/abs/1802.05799).

Horovod 0.28's own Keras module stops at Keras 2. What it did takes three things, for any Keras 3 optimizer::

    ranks = Horovod()                                   # before TensorFlow touches a device
    model.compile(optimizer, loss, jit_compile=False)   # XLA does not know Horovod's operations
    model.fit(shard, callbacks=ranks.callbacks(optimizer, "none", rows=len(shard), validation_rows=0))

Only processes that train together import this module; it needs the TensorFlow backend.
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

from carmodel.errors import InputError

T = TypeVar("T")


class Horovod:
    """The ranks of a Horovod job: see `carmodel.training.ranks.Ranks`.

    Creating the object joins the job that the launcher has started. Each rank of a machine takes the GPU of its local rank,
    with memory growing on demand. Without GPUs the ranks of a machine divide its cores among them.

    Attributes:
        rank: this process's number.
        count: number of processes.

    Raises:
        InputError: this machine has GPUs, but fewer than ranks.
    """

    def __init__(self) -> None:
        hvd.init()
        if gpus := tf.config.list_physical_devices("GPU"):
            if hvd.local_rank() >= len(gpus):
                raise InputError(
                    f"{hvd.local_size()} processes on a machine with {len(gpus)} GPUs: each needs one of its own"
                )
            tf.config.set_visible_devices(gpus[hvd.local_rank()], "GPU")
            tf.config.experimental.set_memory_growth(gpus[hvd.local_rank()], True)
        else:
            threads = max(1, len(os.sched_getaffinity(0)) // hvd.local_size())
            tf.config.threading.set_intra_op_parallelism_threads(threads)
        self.rank, self.count = hvd.rank(), hvd.size()

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows of all ranks, rank 0's first; ranks may have different numbers of them."""
        return gather(rows)

    def from_rank_0(self, value: T) -> T:
        """Return what rank 0 passes, on every rank; other ranks' values are ignored. Must be picklable."""
        return hvd.broadcast_object(value, root_rank=0)

    def broadcast(self, variables: Iterable[keras.Variable]) -> None:
        """Give every rank the values that rank 0 has."""
        hvd.broadcast_variables([variable.value for variable in variables], root_rank=0)

    def callbacks(
        self, optimizer: keras.optimizers.Optimizer, compression: str, rows: int, validation_rows: int
    ) -> list[keras.callbacks.Callback]:
        """Make the optimizer average gradients over the ranks, and return the callback that keeps the ranks one model."""
        return [Together(distribute(optimizer, compression), rows, validation_rows)]


class Average:
    """Average lists of gradients over the ranks, all in one fused all-reduce.

    Args:
        compression: numbers on the wire: "none", as they are; "float16", which overflows above 65504, is slow to add
            on CPUs and native to NCCL; or "bfloat16", with the range of float32 and 8 bits of precision. Horovod cannot
            add bfloat16: it goes by all-to-all and all-gather, so that each GPU, and not each server, loads the link.

    Attributes:
        seconds: float64 variable, time from when this rank's gradients are ready to when the averages are: the exchange
            and the wait for slower ranks. It only grows.
        bytes: size of one list of gradients on the wire; 0 before the first.
        exchanges: int64 variable, lists of gradients that were exchanged. It is counted when they are exchanged, not when the
            step is traced.
    """

    def __init__(self, compression: str = "none") -> None:
        self.compression = compression
        self.bytes = 0
        with tf.device("CPU:0"):
            self.seconds = tf.Variable(0.0, trainable=False, dtype=tf.float64)
            self.exchanges = tf.Variable(0, trainable=False, dtype=tf.int64)

    def __call__(self, gradients: Sequence[Any]) -> list[tf.Tensor]:
        """Averages of tensors that have the same shapes on all ranks; every rank must make the call."""
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
    """The clock when all the tensors are there.

    It is read by Python, since TensorFlow's own operation refuses where operations must be deterministic, and it is
    handed a number of theirs, since a GPU's results are promised before they are there.
    """
    with tf.control_dependencies(tensors):
        number = tf.reshape(tensors[0], [-1])[:1]
    with tf.device("CPU:0"):
        return tf.numpy_function(lambda _: np.float64(time.perf_counter()), [number], tf.float64)


def _average_bfloat16(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """Each rank averages its share of the numbers in float32; sends as many bytes as a ring all-reduce, rounds twice."""
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
    """Make `optimizer`, in place, average the gradients over the ranks before it applies them; return the averager.

    The average is taken where Keras clips: once an update, so that with ``gradient_accumulation_steps`` nothing is sent
    until the update is due, and before the clipping, so that ``global_clipnorm`` bounds the averaged gradient. Under a
    `LossScaleOptimizer`, in which `compile` wraps the optimizer under the policy mixed_float16, the ranks first agree on
    whether all their gradients are finite: either all apply the step or all skip it.

    Class and config stay the optimizer's own, and so does what it was told about weight decay: a model saved with it
    loads where Horovod is not installed. A copy made from the config is an ordinary optimizer.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        finite_here = optimizer.check_finite
        optimizer.check_finite = lambda gradients: _all_agree(finite_here(gradients))
        return distribute(optimizer.inner_optimizer, compression)
    average, clip = Average(compression), optimizer._clip_gradients
    optimizer._clip_gradients = lambda gradients: clip(average(gradients))
    return average


def _all_agree(answer: tf.Tensor) -> tf.Tensor:
    return tf.cast(hvd.allreduce(tf.cast(answer, tf.int32), op=hvd.Min), tf.bool)


def gather(rows: np.ndarray) -> np.ndarray:
    """Return the rows of all ranks, rank 0's first; ranks may have different numbers of them."""
    return hvd.allgather(tf.constant(rows)).numpy()


def once_a_machine(work: Callable[[], T]) -> T:
    """Let one rank of each machine do the work, such as a download; all its ranks get the result (picklable)."""
    machine = os.environ["HOROVOD_HOSTNAME"]
    results = hvd.allgather_object((machine, work()) if hvd.local_rank() == 0 else None)
    return next(result[1] for result in results if result is not None and result[0] == machine)


def equalise_moving_statistics(model: keras.Model) -> None:
    """Set the moving mean and variance of every normalisation that trains to their averages over the ranks.

    Each rank normalises with, and keeps track of, its own batches' statistics; the average is what one process that had
    seen the batches of all ranks would track.
    """
    moving = [
        variable
        for layer in model.layers
        for layer in (layer.layers if isinstance(layer, keras.Model) else [layer])
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        for variable in (layer.moving_mean, layer.moving_variance)
    ]
    if moving:
        averages = hvd.grouped_allreduce([tf.convert_to_tensor(v.value) for v in moving], op=hvd.Average)
        for variable, value in zip(moving, averages, strict=True):
            variable.assign(value)


class Together(keras.callbacks.Callback):
    """Keep the ranks one model: put it before callbacks that save, stop early or log.

    All start from rank 0's variables, be they new or restored from a checkpoint. After the last step of an epoch,
    before validation and saving, the moving statistics are made equal. The logs of an epoch become the same on all
    ranks: averages weighted by the rows that each rank saw, the sum for ``images_per_second``, and for each rank r
    ``images_per_second_rank_r`` and ``all_reduce_seconds_rank_r``, the part of the epoch spent waiting for averages.

    Args:
        average: what `distribute` returned.
        rows: training rows this rank sees in an epoch.
        validation_rows: validation rows this rank sees.
    """

    def __init__(self, average: Average, rows: int, validation_rows: int = 0) -> None:
        super().__init__()
        self.average, self.rows, self.validation_rows = average, rows, validation_rows

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Start equal.

        Raises:
            ValueError: the model's optimizer is not distributed, or XLA is to compile the training.
        """
        optimizer = self.model.optimizer
        if not vars(optimizer).keys() & {"_clip_gradients", "check_finite"} or self.model.jit_compile:
            raise ValueError(
                "compile with jit_compile=False, then distribute(model.optimizer), before training on ranks"
            )
        hvd.broadcast_variables(
            [variable.value for variable in [*self.model.variables, *optimizer.variables]], root_rank=0
        )

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Note the seconds and the exchanges so far."""
        self.before, self.exchanges_before = float(self.average.seconds), int(self.average.exchanges)
        self.equalised = False

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        """Make the moving statistics equal before they are used for validation."""
        self._equalise()

    def _equalise(self) -> None:
        if not self.equalised:
            equalise_moving_statistics(self.model)
            self.equalised = True

    def on_test_end(self, logs: dict[str, float] | None = None) -> None:
        """Replace what was measured on this rank's validation rows by the measures on all."""
        if logs:
            *columns, rows = _of_all_ranks([*logs.values(), self.validation_rows])
            logs |= {name: float(np.average(column, weights=rows)) for name, column in zip(logs, columns, strict=True)}

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Check that the ranks are still one model, and replace the logs by those of all ranks together.

        Raises:
            RuntimeError: gradients were not averaged in every update, or the ranks' weights differ.
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
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        updates = self.params["steps"] // (optimizer.gradient_accumulation_steps or 1)
        if (made := int(self.average.exchanges) - self.exchanges_before) < updates:
            raise RuntimeError(f"gradients were averaged {made} times in {updates} updates: the ranks train apart")
        # A sum of floats would depend on the number of threads, and would miss a change of sign.
        sums = _of_all_ranks([zlib.crc32(v.numpy().tobytes()) for v in self.model.trainable_variables])
        if not np.array_equal(sums, np.broadcast_to(sums[:, :1], sums.shape)):
            different = self.model.trainable_variables[int(np.argmax((sums != sums[:, :1]).any(axis=1)))]
            raise RuntimeError(f"the ranks' weights differ, first in {different.path}: they no longer train one model")


def _of_all_ranks(values: list[float]) -> np.ndarray:
    """float64 (values, ranks)."""
    return gather(np.array([values], np.float64)).T
