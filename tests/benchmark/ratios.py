"""How ratios are measured and told: both sides in one run, on one machine."""

import time
from collections.abc import Callable

import numpy as np


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The median of several runs after one that is not counted."""
    return in_turn(work, repeats=repeats)[0]


def in_turn(*works: Callable[[], object], repeats: int) -> list[float]:
    """The medians of works that are done in turn, for what else the machine does comes and goes."""
    times: list[list[float]] = []
    for _ in range(repeats + 1):
        times.append([])
        for work in works:
            started = time.perf_counter()
            work()
            times[-1].append(time.perf_counter() - started)
    return [float(median) for median in np.median(times[1:], axis=0)]


def tell(what: str, slow: float, fast: float) -> None:
    print(f"\n{what}: {slow / fast:.1f} x ({slow * 1e3:.1f} ms against {fast * 1e3:.1f} ms)")
    assert fast > 0
