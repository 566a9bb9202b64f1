"""Harrell's and Uno's C. Knows a score only as a number that is higher where the event comes sooner."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cohort_scorer.statistics.inputs import Booleans, Floats, Integers, equal_lengths, floats, strata_codes, survival
from cohort_scorer.statistics.pairs import weigh_below


@dataclass(frozen=True)
class Concordance:
    """An estimate of C.

    Attributes:
        c: Weight of the pairs in order, those of equal score counting one half, over that of all comparable pairs; None
            without a comparable pair.
        se: Infinitesimal-jackknife standard error, None likewise.
        influence: What each patient adds to C, in the order of the input, shape (n,): se is the root of the sum of
            squares. Zeros where there is no pair.
    """

    c: float | None
    se: float | None
    influence: Floats = field(compare=False, repr=False)


def harrell_c(
    time: npt.ArrayLike, event: npt.ArrayLike, score: npt.ArrayLike, strata: npt.ArrayLike | None = None
) -> Concordance:
    """Estimate the probability that of two patients the one with the higher score has the event first.

    Harrell FE and others, JAMA 1982;247:2543-2546. A pair is comparable if both are of one stratum and the earlier time
    is an event; at equal times an event precedes a censoring and two events are no pair. Equal scores count one half.
    The standard error is the infinitesimal jackknife, equal to R's `concordance`; pairs are counted within strata and
    summed, as R does for a stratified model. Takes n log n steps for any score.

    Args:
        time: Follow-up, any unit, >= 0, shape (n,).
        event: True where follow-up ends with the event, shape (n,).
        score: Higher where the event is expected sooner, shape (n,).
        strata: Labels of strata, shape (n,), or None.

    Returns:
        C and its standard error.

    Raises:
        ValueError: If the arrays do not fit together.
    """
    times, died = survival(time, event)
    return _concordance(times, died, score, strata, None)


def uno_c(
    time: npt.ArrayLike,
    event: npt.ArrayLike,
    score: npt.ArrayLike,
    tau: float,
    strata: npt.ArrayLike | None = None,
) -> Concordance:
    """Estimate the same probability before a time tau, whatever the censoring.

    Uno H and others, Stat Med 2011;30:1105-1117: pairs whose event is before tau weigh 1 / G(t-)^2, G the Kaplan-Meier
    curve of censoring in the stratum, where an event precedes a censoring of the same time. Otherwise as `harrell_c`.
    The standard error takes the weights as known; it equals that of R's `concordance(timewt = "n/G2", ymax)`.

    Args:
        time: Follow-up, any unit, >= 0, shape (n,).
        event: True where follow-up ends with the event, shape (n,).
        score: Higher where the event is expected sooner, shape (n,).
        tau: In the unit of time, > 0.
        strata: Labels of strata, shape (n,), or None.

    Returns:
        C and its standard error.

    Raises:
        ValueError: If the arrays do not fit together.
    """
    times, died = survival(time, event)
    return _concordance(times, died, score, strata, tau)


def difference(first: Concordance, second: Concordance) -> tuple[float, float] | tuple[None, None]:
    """First less second of the same patients, with its standard error: as R's `concordance(fit1, fit2)`."""
    if first.c is None or second.c is None:
        return None, None
    influence = first.influence - second.influence
    return first.c - second.c, float(np.sqrt(influence @ influence))


def _concordance(
    times: Floats, died: Booleans, score: npt.ArrayLike, strata: npt.ArrayLike | None, tau: float | None
) -> Concordance:
    """Without tau every pair weighs 1; with it, an event after tau 0 and one before by the censoring."""
    scores = floats("score", score)
    equal_lengths(time=times, score=scores)
    stratum = strata_codes(strata, len(times))
    order = np.lexsort((~died, times, stratum))  # events before censorings of the same time
    times, died, stratum = times[order], died[order], stratum[order]
    rank = np.unique(scores[order], return_inverse=True)[1].astype(np.int64)

    n = len(times)
    new = np.ones(n, dtype=np.bool_)
    new[1:] = (times[1:] != times[:-1]) | (stratum[1:] != stratum[:-1])
    tie = np.cumsum(new) - 1
    tie_first = np.flatnonzero(new)[tie] if n else tie
    tie_events = np.bincount(tie, weights=died).astype(np.int64)[tie] if n else tie
    stratum_first = np.searchsorted(stratum, stratum, side="left")
    stratum_stop = np.searchsorted(stratum, stratum, side="right")
    weight = np.ones(n) if tau is None else _censoring_weights(times, died, stratum, tie, tau)

    # Each event with everybody after it ...
    start, stop = (tie_first + tie_events)[died], stratum_stop[died]
    lower, equal = weigh_below(rank, np.ones(n), start, stop, rank[died])
    pairs, wins = np.zeros(n), np.zeros(n)
    pairs[died] = weight[died] * (stop - start)
    wins[died] = weight[died] * (lower + equal / 2)
    total, concordant = float(pairs.sum()), float(wins.sum())
    # ... and everybody with the events before it.
    before = np.concatenate([[0], np.cumsum(died)])
    start = before[stratum_first]
    stop = before[tie_first] + np.where(died, 0, tie_events)
    heavy = np.concatenate([[0.0], np.cumsum(weight[died])])
    lower_weight, equal_weight = weigh_below(rank[died], weight[died], start, stop, rank)
    here = heavy[stop] - heavy[start]
    pairs += here
    wins += here - lower_weight - equal_weight / 2

    influence = np.zeros(n)
    if not total:
        return Concordance(None, None, influence)
    c = concordant / total
    influence[order] = (wins - c * pairs) / total
    return Concordance(c, float(np.sqrt(influence @ influence)), influence)


def _censoring_weights(times: Floats, died: Booleans, stratum: Integers, tie: Integers, tau: float) -> Floats:
    """1 / G(t-)^2 before tau and 0 from then on, rows in order of stratum and time, shape (n,)."""
    first = np.flatnonzero(np.diff(tie, prepend=-1))
    at_risk = np.searchsorted(stratum, stratum[first], side="right") - first
    deaths = np.bincount(tie, weights=died)
    leaving = np.bincount(tie) - deaths
    # Who has the event at a time is not at risk of being censored then.
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = np.where(leaving > 0, 1 - leaving / (at_risk - deaths), 1.0)
    found = np.empty(len(times))
    for code in np.unique(stratum[first]):
        mine = stratum[first] == code
        before = np.concatenate([[1.0], np.cumprod(kept[mine])[:-1]])
        with np.errstate(divide="ignore"):
            found[stratum == code] = (1 / before**2)[tie[stratum == code] - tie[stratum == code][0]]
    return np.where(died & (times < tau), found, 0.0)
