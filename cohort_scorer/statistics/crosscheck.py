"""A Cox model fitted a second time, by lifelines. Knows how far two fits differ, not which of them is right."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from lifelines import CoxPHFitter
from lifelines.exceptions import ConvergenceError

from cohort_scorer.statistics.cox import CoxFit
from cohort_scorer.statistics.inputs import strata_codes, survival

# Its default (1e-7) stops within 1e-6 of the maximum, too early to tell a fault from a rounding.
_STOPPING_RULE = {"precision": 1e-12, "r_precision": 1e-13}


def difference_from_lifelines(
    fitted: CoxFit,
    time: npt.ArrayLike,
    event: npt.ArrayLike,
    covariates: npt.ArrayLike,
    *,
    strata: npt.ArrayLike | None = None,
) -> float | None:
    """Fit the model again with lifelines, unweighted, and return the largest absolute difference of a coefficient.

    Slow on a million rows.

    Args:
        fitted: The fit to be checked.
        time: As given to `fit`.
        event: As given to `fit`.
        covariates: As given to `fit`.
        strata: As given to `fit`.

    Returns:
        The difference of log hazard ratios; None without terms or where lifelines finds no fit.
    """
    if not fitted.df:
        return None
    times, died = survival(time, event)
    names = [f"term_{k}" for k in range(fitted.df)]
    frame = pd.DataFrame(np.asarray(covariates, dtype=np.float64), columns=names)
    frame = frame.assign(time=times, event=died, stratum=strata_codes(strata, len(times)))
    try:
        other = CoxPHFitter().fit(frame, "time", "event", strata=["stratum"], fit_options=_STOPPING_RULE)
    except ConvergenceError:
        return None
    difference = float(np.abs(other.params_[names].to_numpy(dtype=np.float64) - fitted.coefficients).max())
    return difference if np.isfinite(difference) else None
