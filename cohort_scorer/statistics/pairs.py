"""The comparable pairs of a cohort, laid out once for many scores and case weights. Harrell's C and nothing else.

`concordance` has one score's standard error too, and says what a comparable pair is.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from cohort_scorer.statistics.inputs import Booleans, Floats, Integers

Weights = TypeVar("Weights", Integers, Floats)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Rows by stratum and time, events before censorings of the same time.

    Attributes:
        order: Rows in the order of the input, shape (n,).
        events: Places of the events in that order, shape (E,).
        start: First place of those who outlive each event, shape (E,).
        stop: End of that range, exclusive, shape (E,).
    """

    order: Integers
    events: Integers
    start: Integers
    stop: Integers

    @classmethod
    def build(cls, time: Floats, event: Booleans, stratum: Integers) -> "Pairs":
        """Lay out; strata as codes 0, 1, ..."""
        order = np.lexsort((~event, time, stratum))
        time, event, stratum = time[order], event[order], stratum[order]
        new = np.ones(len(time), dtype=np.bool_)
        new[1:] = (time[1:] != time[:-1]) | (stratum[1:] != stratum[:-1])
        first = np.flatnonzero(new)
        tie = np.cumsum(new) - 1
        start = first + np.bincount(tie, weights=event).astype(np.int64)
        events = np.flatnonzero(event)
        return cls(order, events, start[tie[events]], np.searchsorted(stratum, stratum[events], side="right"))

    def harrell_c(self, rank: Integers, weights: Integers) -> tuple[float, float]:
        """C of one score, with case weights and without.

        Args:
            rank: Ranks of the score, 0, 1, ..., equal where the score is, in the order of the input, shape (n,).
            weights: Case weights, whole numbers >= 0 that sum to less than 2^31, likewise.

        Returns:
            C of the weighted pairs and of all pairs, NaN where none is comparable.
        """
        rank = rank[self.order].astype(np.int32)
        # Two sums at once: that of the weights in the lower half of a number, that of the patients in the upper.
        packed = weights[self.order] + (1 << 32)
        own = packed[self.events]
        total = _running(packed)
        later = total[self.stop] - total[self.start]
        below, equal = weigh_below(rank, packed, self.start, self.stop, rank[self.events])
        halves = 2 * below + equal
        return _ratio(own & _LOWER, halves & _LOWER, later & _LOWER), _ratio(own >> 32, halves >> 32, later >> 32)


_LOWER = (1 << 32) - 1


def _ratio(own: Integers, halves: Integers, later: Integers) -> float:
    pairs = float(own.astype(np.float64) @ later)
    return float(own.astype(np.float64) @ halves) / (2 * pairs) if pairs else float("nan")


def weigh_below(
    values: Integers, weights: Weights, start: Integers, stop: Integers, query: Integers
) -> tuple[Weights, Weights]:
    """Sum, for each query, the weights of the values[start:stop] below it and equal to it, all queries at once.

    A wavelet matrix (Claude F, Navarro G, Ordonez A, Inf Syst 2015;47:15-32): one stable partition of the values per
    bit, along which the query's range is followed. A score of few levels has few bits.

    Args:
        values: Ranks >= 0, shape (m,).
        weights: Of the values, shape (m,).
        start: First position of each range, shape (q,).
        stop: End of each range, exclusive, >= start, shape (q,).
        query: Ranks >= 0, shape (q,).

    Returns:
        Sums of the smaller and of the equal values' weights, of the type of the weights, shape (q,).
    """
    below = np.zeros(len(query), dtype=weights.dtype)
    total = _running(weights)
    highest = max(int(values.max(initial=0)), int(query.max(initial=0)))
    for bit in reversed(range(highest.bit_length())):
        one = values & (1 << bit) != 0
        zero = ~one
        zeros = np.zeros(len(values) + 1, dtype=np.int64)
        np.cumsum(zero, out=zeros[1:])
        zero_start, zero_stop = zeros.take(start), zeros.take(stop)
        split = np.concatenate([np.flatnonzero(zero), np.flatnonzero(one)])
        values, weights = values.take(split), weights.take(split)
        total = _running(weights)
        # After the partition the zeros of a range lie together, and so do its ones.
        up = np.flatnonzero(query & (1 << bit))
        below[up] += total.take(zero_stop[up]) - total.take(zero_start[up])
        ones_start, ones_stop = (zeros[-1] + end - before for end, before in ((start, zero_start), (stop, zero_stop)))
        start, stop = zero_start, zero_stop
        start[up], stop[up] = ones_start[up], ones_stop[up]
    return below, total.take(stop) - total.take(start)


def _running(weights: Weights) -> Weights:
    """Sums before each place, shape (m + 1,)."""
    found = np.zeros(len(weights) + 1, dtype=weights.dtype)
    np.cumsum(weights, out=found[1:])
    return found
