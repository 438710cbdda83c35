"""Choose float32, or bfloat16 on machines that are fast at it."""

import platform
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import keras

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
CPUINFO = Path("/proc/cpuinfo")
_setting = threading.Lock()


def gpus() -> int:
    """Return the number of GPUs that the Keras backend sees."""
    # `list_devices("gpu")` raises an exception under JAX if there is no GPU.
    return sum(device.startswith("gpu") for device in keras.distribution.list_devices())


def cpu_flags(cpuinfo: Path) -> frozenset[str]:
    """Return the instruction sets of the processor, as Linux names them. Empty on other systems."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def fast_bfloat16(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Return the instruction sets of the processor for bfloat16, which oneDNN uses. Empty if it would emulate bfloat16."""
    return BF16_FLAGS & cpu_flags(cpuinfo) if keras.backend.backend() == "tensorflow" else frozenset()


def onednn_bfloat16(enabled: bool) -> None:
    """Set whether oneDNN runs float32 networks in bfloat16 in this thread. It also applies to graphs traced before.

    A thread that has not run a TensorFlow function yet takes the setting that any thread made last.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with _setting:
            tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": enabled})
            _empty_function()()  # This thread copies the options now, before another thread changes them.


@cache
def _empty_function() -> Callable[[], object]:
    import tensorflow as tf

    return tf.function(lambda: 0)


def apply(precision: str, cpuinfo: Path = CPUINFO) -> str:
    """Set the precision of this process. Call it before the network is built.

    bfloat16 is Keras's policy mixed_bfloat16 on a GPU. On a CPU with AVX512-BF16 or AMX under TensorFlow, it is oneDNN's
    automatic mixed precision, since the policy is slow there. Other machines would emulate bfloat16, so float32 is used.

    Args:
        precision: "float32" or "bfloat16".
        cpuinfo: Linux's description of the processor.

    Returns:
        a description of the precision that is used.
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
        return (
            f"float32, because this machine would emulate bfloat16: it has no GPU, and no "
            f"{' or '.join(sorted(BF16_FLAGS))} ({platform.machine()} processor, {keras.backend.backend()} backend)"
        )
    return "float32"
