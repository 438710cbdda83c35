"""Mixed precision, where the machine has it."""

import logging
import platform
from pathlib import Path

import keras

log = logging.getLogger(__name__)

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def gpus() -> int:
    """Number of GPUs that the Keras backend sees."""
    # Asked for GPUs alone, the JAX backend raises where there are none.
    return sum(device.startswith("gpu") for device in keras.distribution.list_devices())


def cpu_flags(cpuinfo: Path) -> frozenset[str]:
    """Instruction sets of the processor as Linux names them; empty on other systems."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def onednn_bfloat16(wanted: bool, cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Set whether oneDNN computes in bfloat16 in this process, of a network in float32; graphs traced before follow too.

    Returns:
        The processor's instruction sets that do it; empty where it is not wanted or would only be emulated.
    """
    if keras.backend.backend() != "tensorflow":
        return frozenset()
    import tensorflow as tf

    fast = BF16_FLAGS & cpu_flags(cpuinfo) if wanted else frozenset()
    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": bool(fast)})
    return fast


def apply(precision: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Set the process's precision, before the network is built; return in words what is used.

    float32 is set as asked. bfloat16 is Keras's mixed_bfloat16 policy on a GPU, and oneDNN's automatic mixed precision
    on a CPU with AVX512-BF16 or AMX under TensorFlow (the policy itself is slow there). Elsewhere bfloat16 would only
    be emulated: a warning says so and float32 is used.
    """
    on_gpu = precision == "bfloat16" and gpus() > 0
    fast = onednn_bfloat16(precision == "bfloat16" and not on_gpu, cpuinfo)
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
