"""Intervals for counts: Wilson for a proportion, Garwood for a Poisson count. Knows no disease and no test."""

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2

from cohort_scorer.statistics.inputs import Floats, normal_quantile


def wilson(k: npt.ArrayLike, n: npt.ArrayLike, level: float = 0.95) -> tuple[Floats, Floats, Floats]:
    """Estimate proportions with Wilson's score interval, without continuity correction.

    Wilson EB, J Am Stat Assoc 1927;22:209-212. Equals R's `prop.test(k, n, correct = FALSE)`.

    Args:
        k: Numbers of successes, 0 <= k <= n, any shape.
        n: Numbers of trials, a shape that broadcasts with k.
        level: Confidence level.

    Returns:
        Estimate, lower and upper bound, float64, NaN where n is 0.

    Raises:
        ValueError: If k is outside 0 to n.
    """
    z2 = normal_quantile(level) ** 2
    successes, trials = np.broadcast_arrays(np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64))
    if not ((successes >= 0) & (successes <= trials)).all():
        raise ValueError("k must lie between 0 and n")
    known = np.where(trials > 0, trials, np.nan)
    failures = known - successes
    half = np.sqrt(z2 * (successes * failures / known + z2 / 4))
    lower = (successes + z2 / 2 - half) / (known + z2)
    upper = (successes + z2 / 2 + half) / (known + z2)
    # Both ends are exact by algebra, not by rounding.
    return (
        successes / known,
        np.where(successes == 0, known * 0, lower),
        np.where(failures == 0, known * 0 + 1, upper),
    )


def garwood(events: npt.ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Bound the mean of a Poisson count exactly.

    Garwood F, Biometrika 1936;28:437-442: half the chi-square quantiles on 2k and 2k + 2 degrees of freedom. Equals R's
    `poisson.test(k)`; no events give (0, 3.689) at 0.95.

    Args:
        events: Counts, >= 0, any shape.
        level: Confidence level.

    Returns:
        Lower and upper bound of the expected count, float64.

    Raises:
        ValueError: If a count is negative.
    """
    normal_quantile(level)
    count = np.asarray(events, dtype=np.float64)
    if (count < 0).any():
        raise ValueError("events must be >= 0")
    tail = (1 - level) / 2
    lower = np.where(count > 0, chi2.ppf(tail, np.maximum(2 * count, 1)) / 2, 0.0)
    return lower, np.asarray(chi2.ppf(1 - tail, 2 * count + 2) / 2, dtype=np.float64)
