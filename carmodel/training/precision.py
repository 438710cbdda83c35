"""Choose float32, or bfloat16 on machines that are fast at it."""

import platform
import re
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import keras

CPUINFO = Path("/proc/cpuinfo")
_setting = threading.Lock()


def gpus() -> int:
    """Return the number of GPUs that the Keras backend sees."""
    # `list_devices("gpu")` raises an exception under JAX if there is no GPU.
    return sum(device.startswith("gpu") for device in keras.distribution.list_devices())


def tensorflow_on_cpu() -> bool:
    """Return whether Keras computes with TensorFlow, and sees no GPU."""
    return keras.backend.backend() == "tensorflow" and not gpus()


def cpu_fields(cpuinfo: Path = CPUINFO) -> dict[str, str]:
    """Return Linux's description of the processor, such as its "vendor_id" and "flags". Empty on other systems."""
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    return dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text, re.MULTILINE))


def fast_bfloat16(cpuinfo: Path = CPUINFO) -> str:
    """Return the instruction set that makes bfloat16 faster than float32 on this processor, or "".

    AMX does, and so does AVX512-BF16 on AMD. On Intel processors without AMX, AVX512-BF16 is slower than float32
    (benchmarks/NOTES.md). oneDNN would emulate bfloat16 without these.
    """
    if keras.backend.backend() != "tensorflow":
        return ""
    fields = cpu_fields(cpuinfo)
    flags = fields.get("flags", "").split()
    if "amx_bf16" in flags:
        return "amx_bf16"
    return "avx512_bf16" if "avx512_bf16" in flags and fields.get("vendor_id") == "AuthenticAMD" else ""


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

    bfloat16 is Keras's policy mixed_bfloat16 on a GPU. On a CPU that is fast at it (see `fast_bfloat16`), it is oneDNN's
    automatic mixed precision, since the policy is slow there. Other machines use float32.

    Args:
        precision: "float32" or "bfloat16".
        cpuinfo: Linux's description of the processor.

    Returns:
        a description of the precision that is used.
    """
    on_gpu = precision == "bfloat16" and gpus() > 0
    fast = fast_bfloat16(cpuinfo) if precision == "bfloat16" and not on_gpu else ""
    onednn_bfloat16(bool(fast))
    keras.config.set_dtype_policy("mixed_bfloat16" if on_gpu else "float32")
    if on_gpu:
        return "bfloat16: Keras policy mixed_bfloat16 on the GPU"
    if fast:
        return f"bfloat16: oneDNN automatic mixed precision ({fast})"
    if precision == "bfloat16":
        return (
            "float32, because bfloat16 is faster only on a GPU or, under TensorFlow, on an Intel processor with AMX or an AMD "
            f"processor with AVX512-BF16 (here: {platform.machine()} processor, {keras.backend.backend()} backend)"
        )
    return "float32"
