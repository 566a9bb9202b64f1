"""The log-rank family: are the survival curves of several groups one curve? Knows groups only as ordered codes."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.special import chdtrc

from cohort_scorer.statistics.inputs import Booleans, Floats, Integers, codes, equal_lengths, strata_codes, survival

_SCHEMA = {
    "test": pl.String,
    "category_a": pl.String,
    "category_b": pl.String,
    "chi2": pl.Float64,
    "df": pl.Int64,
    "p": pl.Float64,
    "p_holm": pl.Float64,
}


def logrank(
    time_days: npt.ArrayLike,
    event: npt.ArrayLike,
    group_codes: npt.ArrayLike,
    levels: Sequence[str],
    strata: npt.ArrayLike | None = None,
) -> pl.DataFrame:
    """Test whether groups differ in survival: overall, for trend, and in pairs.

    Overall: Mantel N, Cancer Chemother Rep 1966;50:163-170, for k groups and strata as R's `survdiff`; groups in which
    no event is expected take no part. Trend: Tarone RE, Biometrika 1975;62:679-682, w'(O - E) squared over w'Vw with w
    the codes. Pairs: the two groups alone; p_holm over the pairs (Holm S, Scand J Stat 1979;6:65-70). O - E and V are
    summed over strata.

    Args:
        time_days: Follow-up, any unit, >= 0, shape (n,).
        event: True where follow-up ends with the event, shape (n,).
        group_codes: Codes into levels, shape (n,).
        levels: Names of the ordered groups; a group without patients takes no part.
        strata: Labels of strata, shape (n,), or None.

    Returns:
        Rows overall, trend, pairwise (every two groups with patients, in the order of levels) with columns test,
        category_a, category_b (null but in pairs), chi2, df, p, p_holm (pairs only). chi2 and p are null and df 0 where
        no event tells the groups apart.

    Raises:
        ValueError: If the arrays do not fit together.
    """
    time, died = survival(time_days, event)
    group = codes("group_codes", group_codes, len(levels))
    equal_lengths(time=time, group_codes=group)
    stratum = strata_codes(strata, len(time))

    observed, expected, variance = observed_minus_expected(time, died, group, len(levels), stratum)
    rows: list[tuple[object, ...]] = [
        ("overall", None, None, *_overall(observed, expected, variance), None),
        ("trend", None, None, *_trend(observed, expected, variance), None),
    ]
    present = np.flatnonzero(np.bincount(group, minlength=len(levels)))
    pairs = list(combinations(present.tolist(), 2))
    tests = []
    for a, b in pairs:
        rows_of_pair = (group == a) | (group == b)
        second = (group[rows_of_pair] == b).astype(np.int64)
        parts = observed_minus_expected(time[rows_of_pair], died[rows_of_pair], second, 2, stratum[rows_of_pair])
        tests.append(_overall(*parts))
    adjusted = holm([p for _, _, p in tests])
    rows += [
        ("pairwise", levels[a], levels[b], *test, p_holm)
        for (a, b), test, p_holm in zip(pairs, tests, adjusted, strict=True)
    ]
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row")


def observed_minus_expected(
    time: Floats, event: Booleans, group: Integers, n_groups: int, stratum: Integers
) -> tuple[Floats, Floats, Floats]:
    """Sum observed events, expected events and their hypergeometric covariance over event times and strata.

    Args:
        time: float64, shape (n,).
        event: bool, shape (n,).
        group: Codes 0 to n_groups - 1, shape (n,).
        n_groups: Number of groups k.
        stratum: Codes, shape (n,).

    Returns:
        Observed (k,), expected (k,), covariance (k, k), float64.
    """
    order = np.lexsort((time, stratum))
    time, event, group, stratum = time[order], event[order], group[order], stratum[order]
    first = np.ones(len(time), dtype=np.bool_)
    first[1:] = (time[1:] != time[:-1]) | (stratum[1:] != stratum[:-1])
    starts = np.flatnonzero(first)
    stratum_stop = np.searchsorted(stratum, stratum[starts], side="right")
    deaths = np.add.reduceat(event, starts, dtype=np.int64) if len(starts) else starts
    starts, stratum_stop, deaths = starts[deaths > 0], stratum_stop[deaths > 0], deaths[deaths > 0]

    at_risk = np.empty((len(starts), n_groups))  # (event times, groups)
    for k in range(n_groups):
        before = np.concatenate([[0], np.cumsum(group == k)])
        at_risk[:, k] = before[stratum_stop] - before[starts]
    total = at_risk.sum(axis=1)
    share = at_risk / total[:, None]
    observed = np.bincount(group[event], minlength=n_groups).astype(np.float64)
    factor = deaths * (total - deaths) / np.maximum(total - 1, 1)
    covariance = np.diag(factor @ share) - (share * factor[:, None]).T @ share
    return observed, np.asarray(deaths @ share, dtype=np.float64), covariance


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Adjust p values by Holm's step-down method (Scand J Stat 1979;6:65-70), as R's `p.adjust`.

    Args:
        p: p values; None takes no part.

    Returns:
        Adjusted p values in the same order, None where p is None.
    """
    known = sorted((value, index) for index, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (value, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * value))
        adjusted[index] = largest
    return adjusted


_Test = tuple[float | None, int, float | None]


def _overall(observed: Floats, expected: Floats, variance: Floats) -> _Test:
    used = np.flatnonzero(expected > 0)[1:]
    difference = (observed - expected)[used]
    block = variance[np.ix_(used, used)]
    if not len(used) or (np.diag(block) <= 0).any() or np.linalg.matrix_rank(block, hermitian=True) < len(used):
        return None, 0, None
    chi2 = float(difference @ np.linalg.solve(block, difference))
    return chi2, len(used), float(chdtrc(len(used), chi2))


def _trend(observed: Floats, expected: Floats, variance: Floats) -> _Test:
    weights = np.arange(len(observed), dtype=np.float64)
    spread = float(weights @ variance @ weights)
    if spread <= 1e-12 * max(float(expected.sum()), 1.0):
        return None, 0, None
    chi2 = float(weights @ (observed - expected)) ** 2 / spread
    return chi2, 1, float(chdtrc(1, chi2))
