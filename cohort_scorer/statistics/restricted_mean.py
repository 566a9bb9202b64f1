"""Mean time free of the event up to a limit. Knows no group."""

import numpy as np
import numpy.typing as npt

from cohort_scorer.statistics.inputs import survival


def restricted_mean(time: npt.ArrayLike, event: npt.ArrayLike, tau: float) -> tuple[float, float]:
    """Area under the Kaplan-Meier curve up to tau, and its standard error.

    Irwin JO, J Hyg 1949;47:188-189; the variance is the sum over event times of (area from there to tau)^2 times
    d / (n (n - d)), as R's `print(survfit(...), rmean = tau)`.

    Args:
        time: Follow-up, any unit, >= 0, at least one, shape (n,).
        event: True where follow-up ends with the event, shape (n,).
        tau: Limit in the unit of time, at most the longest follow-up.

    Returns:
        Mean and standard error in the unit of time.

    Raises:
        ValueError: If the arrays do not fit together.
    """
    times, died = survival(time, event)
    points, place = np.unique(times, return_inverse=True)
    deaths = np.bincount(place.reshape(-1), weights=died)
    at_risk = len(times) - np.concatenate([[0], np.cumsum(np.bincount(place.reshape(-1)))[:-1]])
    inside = (points <= tau) & (deaths > 0)
    points, deaths, at_risk = points[inside], deaths[inside], at_risk[inside]
    curve = np.concatenate([[1.0], np.cumprod(1 - deaths / at_risk)])
    areas = curve * np.diff(np.concatenate([[0.0], points, [tau]]))
    rest = areas[::-1].cumsum()[::-1]
    # Where everybody at risk has the event the curve is 0 from there on, and so is the rest.
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.where(rest[1:] > 0, rest[1:] ** 2 * deaths / (at_risk * (at_risk - deaths)), 0.0)
    return float(areas.sum()), float(np.sqrt(parts.sum()))
