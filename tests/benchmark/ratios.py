"""How ratios are measured and told: within one run, never against a clock that another machine keeps."""

import time
from collections.abc import Callable

import numpy as np


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The median of several runs after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def tell(what: str, slow: float, fast: float) -> None:
    """Print how many times faster the second is."""
    print(f"\n{what}: {slow / fast:.1f} x ({slow * 1e3:.1f} ms against {fast * 1e3:.1f} ms)")
    assert fast > 0
