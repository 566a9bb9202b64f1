"""How many have had each kind of event by a time, when one kind precludes the other. Knows causes only as 1 and 2."""

import numpy as np
import numpy.typing as npt
import polars as pl

from cohort_scorer.errors import EmptyCohortError
from cohort_scorer.statistics.inputs import Floats, codes, normal_quantile, survival


def cumulative_incidence(time_days: npt.ArrayLike, status: npt.ArrayLike, level: float = 0.95) -> pl.DataFrame:
    """Estimate cumulative incidences by Aalen and Johansen (Scand J Stat 1978;5:141-150), ties kept as they are.

    The variance is the infinitesimal jackknife, which here has a closed form: the terms of different event times are
    uncorrelated, each the multinomial covariance of the hazards seen through the derivative of the incidence. Bounds
    are exp(-exp(log(-log F) -+ z SE)), the log-log type applied to the incidence F itself; all equal R's
    `survfit(Surv(time, factor(status)) ~ 1, conf.type = "log-log")`, of which "log" would be the default.

    Args:
        time_days: Follow-up, any unit, >= 0, shape (n,).
        status: 0 censored, 1 event, 2 competing event, shape (n,).
        level: Confidence level.

    Returns:
        For cause 1, then 2, one row at time 0 and at every distinct time: cause, time_days, incidence, lower, upper.
        Bounds are null where the incidence is 0 or 1, except at time 0, where they are 0 (as R).

    Raises:
        EmptyCohortError: If there are no patients.
        ValueError: If the arrays do not fit together.
    """
    z = normal_quantile(level)
    kind = codes("status", status, 3)
    time, _ = survival(time_days, kind > 0)
    if not len(time):
        raise EmptyCohortError(
            "Nobody is left for a cumulative incidence.",
            "Expected at least one patient with follow-up, found 0.",
            "Look at attrition.csv for the rule that excluded them.",
        )
    points, index = np.unique(np.concatenate([[0.0], time]), return_inverse=True)
    index = index[1:]  # the added zero is nobody
    exits = np.bincount(index, minlength=len(points))
    n_at_risk = (len(time) - np.cumsum(exits) + exits).astype(np.float64)
    hazards = [np.bincount(index[kind == cause], minlength=len(points)) / n_at_risk for cause in (1, 2)]
    total = hazards[0] + hazards[1]
    before = np.concatenate([[1.0], np.cumprod(1 - total)[:-1]])  # free of both just before each time

    frames = []
    for cause, hazard in zip((1, 2), hazards, strict=True):
        incidence = np.cumsum(before * hazard)
        spread = z * np.sqrt(_variance(incidence, before, hazard, total, n_at_risk))
        bounded = (incidence > 0) & (incidence < 1)
        inside = np.where(bounded, incidence, 0.5)
        scale, half = np.log(-np.log(inside)), spread / (inside * -np.log(inside))
        start = (points == 0) & (incidence == 0)
        empty = pl.Series(~bounded & ~start)
        # Where very few are at risk exp overflows to infinity, and the bound is rightly 0.
        with np.errstate(over="ignore"):
            lower, upper = np.exp(-np.exp(scale + half)), np.exp(-np.exp(scale - half))
        frames.append(
            pl.DataFrame(
                {
                    "cause": np.full(len(points), cause, dtype=np.int64),
                    "time_days": points,
                    "incidence": incidence,
                    "lower": pl.Series(np.where(start, 0.0, lower)).set(empty, None),
                    "upper": pl.Series(np.where(start, 0.0, upper)).set(empty, None),
                }
            )
        )
    return pl.concat(frames)


def _variance(incidence: Floats, before: Floats, hazard: Floats, total: Floats, n_at_risk: Floats) -> Floats:
    """Variance of the incidence F at every time, all arguments of shape (times,).

    With S the survival before s, the derivatives of F(t) by the hazards at s are S - b for this cause and -b for the
    other, b = (F(t) - F(s)) / (1 - total). Their multinomial variance, summed over s <= t and written in powers of
    F(t), needs cumulative sums only.
    """
    going_on = total < 1
    rest = np.where(going_on, 1 - total, 1.0)
    own = before**2 * hazard * (1 - hazard) / n_at_risk
    cross = np.where(going_on, before * hazard / n_at_risk, 0.0)
    square = np.where(going_on, total / (rest * n_at_risk), 0.0)
    variance = (
        np.cumsum(own)
        - 2 * (incidence * np.cumsum(cross) - np.cumsum(cross * incidence))
        + incidence**2 * np.cumsum(square)
        - 2 * incidence * np.cumsum(square * incidence)
        + np.cumsum(square * incidence**2)
    )
    return np.asarray(np.maximum(variance, 0.0), dtype=np.float64)
