"""Mixed precision, where the machine has it."""

import logging
import platform
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import keras

log = logging.getLogger(__name__)

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
CPUINFO = Path("/proc/cpuinfo")
_setting = threading.Lock()


def gpus() -> int:
    """Number of GPUs that the Keras backend sees."""
    # Asked for GPUs alone, the JAX backend raises where there are none.
    return sum(device.startswith("gpu") for device in keras.distribution.list_devices())


def cpu_flags(cpuinfo: Path) -> frozenset[str]:
    """Instruction sets of the processor as Linux names them; empty on other systems."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def fast_bfloat16(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Return the processor's instruction sets by which oneDNN computes in bfloat16; empty where it would be emulated."""
    return BF16_FLAGS & cpu_flags(cpuinfo) if keras.backend.backend() == "tensorflow" else frozenset()


def onednn_bfloat16(wanted: bool) -> None:
    """Set whether oneDNN computes networks of float32 in bfloat16 in this thread, graphs traced before included.

    Threads that have not run a function of TensorFlow before take what was set last in any thread.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with _setting:
            tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": wanted})
            _nothing()()  # this thread takes its copy of the options here, before another thread sets them


@cache
def _nothing() -> Callable[[], object]:
    import tensorflow as tf

    return tf.function(lambda: 0)


def apply(precision: str, cpuinfo: Path = CPUINFO) -> str:
    """Set the process's precision, before the network is built; return in words what is used.

    float32 is set as asked. bfloat16 is Keras's mixed_bfloat16 policy on a GPU, and oneDNN's automatic mixed precision
    on a CPU with AVX512-BF16 or AMX under TensorFlow (the policy itself is slow there). Elsewhere bfloat16 would only
    be emulated: a warning says so and float32 is used.
    """
    on_gpu = precision == "bfloat16" and gpus() > 0
    fast = fast_bfloat16(cpuinfo) if precision == "bfloat16" and not on_gpu else frozenset()
    onednn_bfloat16(bool(fast))
    keras.config.set_dtype_policy("mixed_bfloat16" if on_gpu else "float32")
    if on_gpu:
        return "bfloat16: Keras policy mixed_bfloat16 on the GPU"
    if fast:
        return f"bfloat16: oneDNN automatic mixed precision ({', '.join(sorted(fast))})"
    if precision == "bfloat16":
        message = (
            f"this machine computes no bfloat16 (no GPU, and its {platform.machine()} processor under the "
            f"{keras.backend.backend()} backend has no use of {' or '.join(sorted(BF16_FLAGS))}): float32 is used"
        )
        log.warning(message)
        return message
    return "float32"
