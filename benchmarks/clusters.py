"""Predict, with a simple model, how well training scales to many GPUs."""

# Horovod's benchmark (https://github.com/horovod/horovod/blob/master/docs/benchmarks.rst): ResNet-101 with 64 images per
# GPU and step, 1656.82 images/s on 16 Pascal GPUs, four GPUs per server, 25 Gbit/s; 90% efficiency on 512 GPUs.
RATE = 1656.82 / 16
BATCH = 64
WEIGHTS = 44.6e6  # of ResNet-101
GPUS_A_SERVER = 4
LATENCY = 10e-6  # seconds per message between two servers, an assumption
GPUS = (8, 64, 512)


def efficiency(gpus: int, size: float, step: float, gigabits: float) -> float:
    """Predict the efficiency of training with a ring all-reduce that starts when all gradients are computed.

    Each server sends and receives ``2 (n - 1) / n`` times the bytes over its link, in ``2 (servers - 1)`` messages.

    Args:
        gpus: number of GPUs.
        size: bytes of all gradients.
        step: seconds per step without the exchange.
        gigabits: rate of a server's link, in Gbit/s.
    """
    servers = max(1, gpus // GPUS_A_SERVER)
    exchange = 2 * (gpus - 1) / gpus * size * 8 / (gigabits * 1e9) + 2 * (servers - 1) * LATENCY
    return step / (step + exchange)


def predictions() -> list[str]:
    """Return a sentence for each link and speed of the GPU."""
    remarks = [
        f"Predicted, not measured: efficiency of ResNet-101 with {BATCH} images per GPU and step, float32 gradients, and "
        f"{GPUS_A_SERVER} GPUs per server, if the exchange does not overlap with the computation. Horovod's authors measured "
        "90% on 512 Pascal GPUs with 25 Gbit/s."
    ]
    for faster in (1, 10):
        for gigabits in (25, 100, 400):
            step = BATCH / (RATE * faster)
            shares = [f"{efficiency(gpus, 4 * WEIGHTS, step, gigabits):.0%} on {gpus} GPUs" for gpus in GPUS]
            remarks.append(f"GPUs of {RATE * faster:.0f} images/s, links of {gigabits} Gbit/s: {', '.join(shares)}.")
    return remarks
