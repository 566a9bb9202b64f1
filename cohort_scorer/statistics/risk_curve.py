"""Risk of the outcome over a predicted probability as it is, without categories. Knows no category."""

from collections.abc import Iterator

import numpy as np
import polars as pl
from scipy.special import expit, logit

from cohort_scorer.errors import ConvergenceError
from cohort_scorer.statistics import bootstrap, cox
from cohort_scorer.statistics.absolute_risk import baselines, risk_by
from cohort_scorer.statistics.bootstrap import Refitted, Resamples
from cohort_scorer.statistics.calibration import CLIP
from cohort_scorer.statistics.cox import CoxFit
from cohort_scorer.statistics.inputs import Floats
from cohort_scorer.statistics.kaplan_meier import DAYS_PER_YEAR
from cohort_scorer.statistics.partial_likelihood import CaseWeights
from cohort_scorer.statistics.regression import People
from cohort_scorer.statistics.splines import restricted_cubic

THRESHOLD = 100
_KNOTS = (0.05, 0.35, 0.65, 0.95)
_LEAST_EVENTS = 30
"""Ten for each column of the spline."""
_POINTS = 40
_SCHEMA = dict.fromkeys(("probability", "incidence", "lower", "upper"), pl.Float64) | {"reason": pl.String}
_RESAMPLES = 200
"""As many as a band needs."""


def risk_curve(people: People, exposure: str, years: float, resamples: Resamples) -> pl.DataFrame:
    """Estimate the risk by a horizon over the predicted probability of CACS >= 100.

    A Cox model of a restricted cubic spline of the logit, four knots (Harrell FE, Regression Modeling Strategies,
    2015); where events compete, one for each cause. Baselines are those of each stratum, and the curve the mean over
    the patients' strata. Pointwise bands are percentiles of resamples, the first 200 of them.

    Args:
        people: The patients, with a column {exposure}_ge100.
        exposure: cxr or integrated.
        years: Horizon.
        resamples: Of the patients.

    Returns:
        probability, incidence, lower, upper, reason from the 1st to the 99th percentile; where there is no curve one
        row with the reason.
    """
    column = people.table[f"{exposure}_ge{THRESHOLD}"]
    days = years * DAYS_PER_YEAR
    if column.null_count():
        return _none("a patient has no probability")
    if people.event.sum() < _LEAST_EVENTS:
        return _none(f"there are fewer than {_LEAST_EVENTS} events")
    if not people.followed(days):
        return _none("in a site nobody was followed that long")
    x = logit(np.clip(column.to_numpy(), CLIP, 1 - CLIP))
    knots = np.quantile(x, _KNOTS)
    if (np.diff(knots) <= 0).any():
        return _none("there are too few different probabilities")
    grid = np.linspace(np.quantile(x, 0.01), np.quantile(x, 0.99), _POINTS)
    design, drawn = (np.column_stack([values, restricted_cubic(values, knots)]) for values in (x, grid))
    try:
        fits = [cox.fit(people.time, people.event, design, strata=people.strata)]
        if people.competing.any():
            fits.append(cox.fit(people.time, people.competing, design, strata=people.strata))
    except ConvergenceError:
        return _none("a likelihood has no maximum")
    some = Resamples(resamples.n, resamples.seeds[:_RESAMPLES])
    curve = _curve(fits, [fit.coefficients for fit in fits], np.ones(len(x)), drawn, days)
    curves = list(_resampled(fits, some, drawn, days)) if some.seeds else []
    bands: list[list[float | None]] = [[None] * _POINTS, [None] * _POINTS]
    if len(curves) > 1:
        tail = (1 - people.level) / 2
        bands = [list(map(float, limit)) for limit in np.quantile(curves, [tail, 1 - tail], axis=0)]
    values = (expit(grid), curve, *bands, [None] * _POINTS)
    return pl.DataFrame(dict(zip(_SCHEMA, values, strict=True)), schema=_SCHEMA)


def _none(reason: str) -> pl.DataFrame:
    return pl.DataFrame([{"reason": reason}], schema=_SCHEMA)


def _resampled(fits: list[CoxFit], resamples: Resamples, drawn: Floats, days: float) -> Iterator[Floats]:
    refitted: list[Refitted] = [
        bootstrap.refit({"spline": fit}, resamples, penalised=False, advance=lambda done: None)["spline"]
        for fit in fits
    ]
    for number, counts in enumerate(resamples):
        coefficients = [one.coefficients[number] for one in refitted]
        if all(np.isfinite(values).all() for values in coefficients):
            yield _curve(fits, coefficients, counts.astype(np.float64), drawn, days)


def _curve(fits: list[CoxFit], coefficients: list[Floats], counts: Floats, drawn: Floats, days: float) -> Floats:
    """Risks at the rows of `drawn`, the mean over strata as many patients of them as are counted."""
    parts, relative = [], []
    for fit, values in zip(fits, coefficients, strict=True):
        sets, centre = fit.sets, fit.covariates.mean(axis=0)
        eta = (fit.covariates[sets.order] - centre) @ values
        parts.append(baselines(sets, CaseWeights.of(sets, counts[sets.order]), eta))
        relative.append(np.exp((drawn - centre) @ values))
    found = np.zeros(len(drawn))
    for number, own in enumerate(parts[0]):
        other = parts[1][number] if len(parts) > 1 else None
        found += counts[own.rows].sum() * risk_by(own, other, relative[0], relative[-1], [days])[0]
    return np.asarray(found / counts.sum())
