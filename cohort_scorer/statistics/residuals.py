"""Residuals of a fitted Cox model, under Efron's approximation, and its test of proportional hazards.

They are those of R's `residuals.coxph` and `cox.zph` (survival 3.0 and later). Rows are in the order of the input and
without case weights, unless said otherwise.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from scipy.special import chdtrc

from cohort_scorer.statistics.cox import CoxFit
from cohort_scorer.statistics.inputs import Floats, Integers, normal_quantile
from cohort_scorer.statistics.partial_likelihood import AtRisk, CaseWeights, at_risk
from cohort_scorer.statistics.risk_sets import RiskSets
from cohort_scorer.statistics.splines import restricted_cubic

GLOBAL = "GLOBAL"
_SMOOTH_DF, _SMOOTH_POINTS = 4, 40


def martingale(fitted: CoxFit) -> Floats:
    """Events less the cumulative hazard lived through, shape (n,)."""
    sets = fitted.sets
    risk, _, _ = _at_risk(fitted)
    expected = np.exp(fitted.linear_predictor[sets.order]) * sets.lived(risk.share(), risk.case.fraction)
    return _in_order(sets, sets.event - expected)


def score(fitted: CoxFit) -> Floats:
    """Each row's part of the score vector at the coefficients, shape (n, p)."""
    sets = fitted.sets
    risk, columns, means = _at_risk(fitted)
    relative = np.exp(fitted.linear_predictor[sets.order])
    share = risk.share()
    hazard = sets.lived(share, risk.case.fraction)
    found = np.empty((fitted.n, len(columns)))
    for k, mean in enumerate(means):
        found[:, k] = -relative * (columns[k] * hazard - sets.lived(share * mean, risk.case.fraction))
    found[sets.event_rows] += (columns[:, sets.event_rows] - sets.mean_of_tie(means)).T
    return _in_order(sets, found)


def dfbeta(fitted: CoxFit) -> Floats:
    """Approximate change of the coefficients when a row of weight 1 is left out, shape (n, p)."""
    return np.asarray(score(fitted) @ fitted.covariance)


def schoenfeld(fitted: CoxFit) -> tuple[Integers, Floats]:
    """Covariates of each event less their mean in its risk set.

    Returns:
        Rows of the events in the input, rising, shape (E,), and the residuals, shape (E, p).
    """
    sets = fitted.sets
    _, columns, means = _at_risk(fitted)
    rows = sets.order[sets.event_rows]
    centred = (columns[:, sets.event_rows] - sets.mean_of_tie(means)).T
    order = np.argsort(rows)
    return rows[order], centred[order]


def proportional_hazards(fitted: CoxFit, terms: Mapping[str, Sequence[int]]) -> pl.DataFrame:
    """Test whether coefficients change with time, as R's `cox.zph` with transform `km` (Therneau, survival 3.0).

    A score test of the model in which each column of a term is also multiplied by 1 - S(t-), S being the Kaplan-Meier
    curve of all patients (Grambsch PM, Therneau TM, Biometrika 1994;81:515-526, without its approximation that the
    variance in the risk sets is constant).

    Args:
        fitted: A fit without case weights.
        terms: Name of each term and its columns: a category of four levels is one term of three.

    Returns:
        term, chi2, df, p: one row per term, then GLOBAL.

    Raises:
        LinAlgError: The events are of too few times to tell a change.
    """
    sets = fitted.sets
    risk, columns, means = _at_risk(fitted)
    change = _one_minus_survival(sets.time, sets.event)[sets.event_rows]
    slope = (columns[:, sets.event_rows] - sets.mean_of_tie(means)) @ change

    def information(power: int) -> Floats:
        share = risk.case.mean * change**power
        moment = (columns * (risk.relative * sets.lived(share / risk.below, risk.case.fraction))) @ columns.T
        return np.asarray(moment - (means * share) @ means.T)

    blocks = [information(power) for power in range(3)]
    p = len(columns)
    whole = np.block([[blocks[0], blocks[1]], [blocks[1], blocks[2]]])
    rows = []
    for name, own in [*terms.items(), (GLOBAL, range(p))]:
        chosen = [*range(p), *(p + column for column in own)]
        gradient = np.concatenate([np.zeros(p), slope[list(own)]])
        chi2 = float(gradient @ np.linalg.solve(whole[np.ix_(chosen, chosen)], gradient))
        rows.append((name, chi2, len(own), float(chdtrc(len(own), chi2))))
    return pl.DataFrame(
        rows, schema={"term": pl.String, "chi2": pl.Float64, "df": pl.Int64, "p": pl.Float64}, orient="row"
    )


def coefficient_over_time(fitted: CoxFit, column: int, level: float) -> pl.DataFrame:
    """Smooth the scaled Schoenfeld residuals of one column over time, as R's `plot(cox.zph(fit))` with 4 df.

    Schoenfeld residuals over their mean variance, plus the coefficient, are the coefficient at each event (Grambsch and
    Therneau 1994); a natural cubic spline of 1 - S(t-) is fitted to them by least squares.

    Args:
        fitted: A fit without case weights, in whose strata every column varies.
        column: Number of the column.
        level: Confidence level of the pointwise limits.

    Returns:
        time_days, coef, lower, upper at 40 times; empty where the events are of too few times.
    """
    sets = fitted.sets
    rows, residual = schoenfeld(fitted)
    change = np.empty(fitted.n)
    change[sets.order] = _one_minus_survival(sets.time, sets.event)
    x, time = change[rows], np.empty(fitted.n)
    time[sets.order] = sets.time
    scaled = residual @ fitted.covariance[:, column] * fitted.n_events + fitted.coefficients[column]
    places, first = np.unique(x, return_index=True)
    empty = dict.fromkeys(("time_days", "coef", "lower", "upper"), pl.Float64)
    if len(places) < _SMOOTH_DF + 1:
        return pl.DataFrame(schema=empty)
    grid = np.linspace(places[0], places[-1], _SMOOTH_POINTS)
    both = np.concatenate([grid, x])
    knots = np.quantile(both, np.linspace(0, 1, _SMOOTH_DF))
    design = np.column_stack([np.ones(len(both)), both, restricted_cubic(both, knots)])
    drawn, observed = design[:_SMOOTH_POINTS], design[_SMOOTH_POINTS:]
    if np.linalg.matrix_rank(observed) < _SMOOTH_DF:
        return pl.DataFrame(schema=empty)
    curve = drawn @ np.linalg.lstsq(observed, scaled, rcond=None)[0]
    spread = (drawn @ np.linalg.inv(observed.T @ observed) * drawn).sum(axis=1)
    half = normal_quantile(level) * np.sqrt(spread * fitted.covariance[column, column] * fitted.n_events)
    found = (np.interp(grid, places, time[rows][first]), curve, curve - half, curve + half)
    return pl.DataFrame(dict(zip(empty, found, strict=True)))


def _at_risk(fitted: CoxFit) -> tuple[AtRisk, Floats, Floats]:
    """The risk sets at the coefficients, the centred columns (p, n) and their means there (p, E)."""
    sets = fitted.sets
    risk = at_risk(sets, CaseWeights.of(sets, fitted.weights[sets.order]), fitted.linear_predictor[sets.order])
    columns = np.ascontiguousarray((fitted.covariates[sets.order] - fitted.covariates.mean(axis=0)).T)
    return risk, columns, risk.means(sets, columns)


def _one_minus_survival(time: Floats, event: Floats) -> Floats:
    """1 - S(t-) of all rows together, whatever their stratum, shape (n,)."""
    place = np.unique(time, return_inverse=True)[1].reshape(-1)
    deaths = np.bincount(place, weights=event)
    at_risk: Integers = np.bincount(place)[::-1].cumsum()[::-1]
    survival = np.cumprod(1 - deaths / at_risk)
    before = np.concatenate([[1.0], survival[:-1]])
    return np.asarray(1 - before[place])


def _in_order(sets: RiskSets, values: Floats) -> Floats:
    """From the order of the sets to that of the input."""
    found = np.empty_like(values)
    found[sets.order] = values
    return found
