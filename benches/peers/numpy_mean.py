"""The weighted mean of 10 updates of 10,000,000 float32 values in NumPy.

`plain` is `sum(w * x)`, as most servers write it; `in-place` scales into one temporary and adds it to one sum;
`blas` multiplies the weights by a matrix that already holds the updates as rows. All sum in float32, so that the
result depends on the order.
"""

import argparse
import json
import platform
import time

import numpy as np

UPDATES, VALUES = 10, 10_000_000


def kilobytes(field):
    """A field of the kernel's table of this process in MiB; None where there is none."""
    try:
        with open("/proc/self/status") as table:
            return next(int(line.split()[1]) / 1024 for line in table if line.startswith(field))
    except (OSError, StopIteration):
        return None


def plain(weights, updates, mean, scaled):
    """A new array for each product and each sum."""
    return sum(weight * update for weight, update in zip(weights, updates))


def in_place(weights, updates, mean, scaled):
    """No new array."""
    np.multiply(updates[0], weights[0], out=mean)
    for weight, update in zip(weights[1:], updates[1:]):
        np.multiply(update, weight, out=scaled)
        mean += scaled
    return mean


def blas(weights, updates, mean, scaled):
    """All at once."""
    return np.matmul(weights, updates, out=mean)


FORMS = {"plain": plain, "in-place": in_place, "blas": blas}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--form", choices=FORMS, default="plain")
    parser.add_argument("--rounds", type=int, default=5, help="means to take")
    parser.add_argument("--threads", type=int, default=1, help="for the record: BLAS reads OPENBLAS_NUM_THREADS")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    updates = rng.standard_normal((UPDATES, VALUES), np.float32)
    counts = rng.integers(100, 1000, UPDATES)
    weights = (counts / counts.sum()).astype(np.float32)
    mean, scaled = np.zeros(VALUES, np.float32), np.zeros(VALUES, np.float32)
    seconds, processor = [], []
    for _ in range(args.rounds):
        wall, own = time.perf_counter(), time.process_time()
        result = FORMS[args.form](weights, updates, mean, scaled)
        seconds.append(time.perf_counter() - wall)
        processor.append(time.process_time() - own)
    assert np.allclose(result[:1000], np.average(updates[:, :1000], axis=0, weights=counts), atol=1e-4)
    line = {
        "peer": "numpy",
        "job": "mean",
        "threads": args.threads,
        "seconds": seconds,
        "processor_seconds": processor,
        "examples": [1] * args.rounds,
        "peak_memory_mib": kilobytes("VmHWM"),
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
