"""Survival curves, numbers at risk and event rates of one group. Knows no group, no exposure and no date.

Groups are compared in `logrank`; kinds of event are told apart in `cumulative_incidence`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from lifelines import KaplanMeierFitter

from cohort_scorer.errors import EmptyCohortError
from cohort_scorer.statistics.inputs import Booleans, Floats, booleans, normal_quantile, survival
from cohort_scorer.statistics.proportions import garwood

DAYS_PER_YEAR = 365.25


@dataclass(frozen=True)
class EventRate:
    """Events per 1,000 person-years.

    Attributes:
        n: Number of patients.
        events: Number of events.
        person_years: Follow-up in years of 365.25 days.
        rate_per_1000_py: Events per 1,000 person-years, None without follow-up.
        lower: Lower bound of the rate, None likewise.
        upper: Upper bound of the rate, None likewise.
    """

    n: int
    events: int
    person_years: float
    rate_per_1000_py: float | None
    lower: float | None
    upper: float | None


def kaplan_meier(time_days: npt.ArrayLike, event: npt.ArrayLike, level: float = 0.95) -> pl.DataFrame:
    """Estimate survival by Kaplan and Meier (J Am Stat Assoc 1958;53:457-481) with log-log bounds.

    Computed by lifelines; variance by Greenwood, bounds exp(-exp(log(-log S) -+ z SE)) (Kalbfleisch JD, Prentice RL,
    The Statistical Analysis of Failure Time Data, 2002, section 1.4), as R's `survfit(conf.type = "log-log")`; R's
    default would be "log".

    Args:
        time_days: Follow-up in days, >= 0, shape (n,).
        event: True where follow-up ends with the event, shape (n,).
        level: Confidence level.

    Returns:
        One row at time 0 and at every distinct time: time_days, n_at_risk (time >= time_days), n_events, n_censored
        (both at time_days), survival, lower, upper. Bounds are null where survival is 0, and where it is 1 except at
        time 0, where they are 1 (as R).

    Raises:
        EmptyCohortError: If there are no patients.
        ValueError: If the arrays do not fit together.
    """
    normal_quantile(level)
    time, died = _somebody(time_days, event)
    fitter = KaplanMeierFitter(alpha=1 - level).fit(time, died)
    table = fitter.event_table
    points = table.index.to_numpy(dtype=np.float64)
    estimate = fitter.survival_function_.to_numpy(dtype=np.float64)[:, 0]
    bounds = fitter.confidence_interval_.to_numpy(dtype=np.float64)
    start = (points == 0) & (estimate == 1)
    bounds = np.where(start[:, None], 1.0, bounds)
    bounded = start | ((estimate > 0) & (estimate < 1))
    return pl.DataFrame(
        {
            "time_days": points,
            "n_at_risk": table["at_risk"].to_numpy(dtype=np.int64),
            "n_events": table["observed"].to_numpy(dtype=np.int64),
            "n_censored": table["censored"].to_numpy(dtype=np.int64),
            "survival": estimate,
            "lower": pl.Series(bounds[:, 0]).set(pl.Series(~bounded), None),
            "upper": pl.Series(bounds[:, 1]).set(pl.Series(~bounded), None),
        }
    )


def at_risk(time_days: npt.ArrayLike, event: npt.ArrayLike, time_years: Sequence[float]) -> pl.DataFrame:
    """Count patients at risk, events and censorings at given times, as R's `summary(survfit, times)`.

    Args:
        time_days: Follow-up in days, >= 0, shape (n,).
        event: True where follow-up ends with the event, shape (n,).
        time_years: Times in years of 365.25 days.

    Returns:
        One row per time: time_years, n_at_risk (time >= t), cumulative_events and cumulative_censored (time <= t).

    Raises:
        ValueError: If the arrays do not fit together.
    """
    time, died = survival(time_days, event)
    points = np.asarray(time_years, dtype=np.float64)
    days = points * DAYS_PER_YEAR
    return pl.DataFrame(
        {
            "time_years": points,
            "n_at_risk": len(time) - np.searchsorted(np.sort(time), days, side="left"),
            "cumulative_events": np.searchsorted(np.sort(time[died]), days, side="right"),
            "cumulative_censored": np.searchsorted(np.sort(time[~died]), days, side="right"),
        },
        schema_overrides=dict.fromkeys(("n_at_risk", "cumulative_events", "cumulative_censored"), pl.Int64),
    )


def event_rate(time_days: npt.ArrayLike, event: npt.ArrayLike, level: float = 0.95) -> EventRate:
    """Estimate the event rate with Garwood's exact Poisson bounds (`proportions.garwood`).

    Args:
        time_days: Follow-up in days, >= 0, shape (n,).
        event: True where follow-up ends with the event, shape (n,).
        level: Confidence level.

    Returns:
        The rate per 1,000 years of 365.25 days.

    Raises:
        ValueError: If the arrays do not fit together.
    """
    time, died = survival(time_days, event)
    n, events, years = len(time), int(died.sum()), float(time.sum() / DAYS_PER_YEAR)
    if years <= 0:
        return EventRate(n, events, years, None, None, None)
    lower, upper = garwood(events, level)
    return EventRate(n, events, years, 1000 * events / years, 1000 * float(lower) / years, 1000 * float(upper) / years)


def reverse_kaplan_meier_median(time_days: npt.ArrayLike, event: npt.ArrayLike) -> float | None:
    """Return the median potential follow-up: Kaplan-Meier with events and censorings changing places.

    Schemper M, Smith TL, Control Clin Trials 1996;17:343-346. Where the curve is flat at one half, the middle of that
    stretch, as R prints it.

    Args:
        time_days: Follow-up in days, >= 0, shape (n,).
        event: True where follow-up ends with any event, competing ones included, shape (n,).

    Returns:
        Median in days, None where more than half of the follow-up ended by events before it.

    Raises:
        EmptyCohortError: If there are no patients.
        ValueError: If the arrays do not fit together.
    """
    curve = kaplan_meier(time_days, ~booleans("event", event))
    estimate, points = curve["survival"].to_numpy(), curve["time_days"].to_numpy()
    tolerance = float(np.sqrt(np.finfo(np.float64).eps))
    reached = np.flatnonzero(estimate < 0.5 + tolerance)
    if not len(reached):
        return None
    first = int(reached[0])
    later = np.flatnonzero(estimate < estimate[first])
    if abs(estimate[first] - 0.5) < tolerance and len(later):
        return float((points[first] + points[later[0]]) / 2)
    return float(points[first])


def _somebody(time_days: npt.ArrayLike, event: npt.ArrayLike) -> tuple[Floats, Booleans]:
    time, died = survival(time_days, event)
    if not len(time):
        raise EmptyCohortError(
            "Nobody is left for a survival curve.",
            "Expected at least one patient with follow-up, found 0.",
            "Look at attrition.csv for the rule that excluded them.",
        )
    return time, died
