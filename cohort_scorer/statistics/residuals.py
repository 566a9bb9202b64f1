"""Residuals of a fitted Cox model, under Efron's approximation, and its test of proportional hazards.

They are those of R's `residuals.coxph` and `cox.zph` (survival 3.0 and later). Rows are in the order of the input and
without case weights, unless said otherwise.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from scipy.special import chdtrc

from cohort_scorer.statistics.cox import CoxFit
from cohort_scorer.statistics.inputs import Floats, Integers
from cohort_scorer.statistics.risk_sets import RiskSets

GLOBAL = "GLOBAL"


def martingale(fitted: CoxFit) -> Floats:
    """Events less the cumulative hazard lived through, shape (n,)."""
    sets = fitted.sets
    relative, below, _ = _at_risk(fitted)
    expected = relative / sets.weights * sets.lived(sets.mean_weight / below)
    return _in_order(sets, sets.event - expected)


def score(fitted: CoxFit) -> Floats:
    """Each row's part of the score vector at the coefficients, shape (n, p)."""
    sets = fitted.sets
    relative, below, means = _at_risk(fitted)
    z = fitted.covariates[sets.order]
    share = sets.mean_weight / below
    hazard = sets.lived(share)
    found = np.empty_like(z)
    for k, mean in enumerate(means):
        found[:, k] = -(relative / sets.weights) * (z[:, k] * hazard - sets.lived(share * mean))
    found[sets.event_rows] += z[sets.event_rows] - _group_means(sets, means)
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
    _, _, means = _at_risk(fitted)
    rows = sets.order[sets.event_rows]
    centred = fitted.covariates[rows] - _group_means(sets, means)
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
    """
    sets = fitted.sets
    relative, below, means = _at_risk(fitted)
    z = fitted.covariates[sets.order] - fitted.covariates.mean(axis=0)
    means = means - fitted.covariates.mean(axis=0)[:, None]
    change = _one_minus_survival(sets.time, sets.event)[sets.event_rows]
    slope = (z[sets.event_rows] - _group_means(sets, means)).T @ change

    def information(power: int) -> Floats:
        share = sets.mean_weight * change**power
        moment = (z * (relative * sets.lived(share / below))[:, None]).T @ z
        return np.asarray(moment - (means * share) @ means.T)

    blocks = [information(power) for power in range(3)]
    p = z.shape[1]
    whole = np.block([[blocks[0], blocks[1]], [blocks[1], blocks[2]]])
    rows = []
    for name, columns in [*terms.items(), (GLOBAL, range(p))]:
        chosen = [*range(p), *(p + column for column in columns)]
        gradient = np.concatenate([np.zeros(p), slope[list(columns)]])
        chi2 = float(gradient @ np.linalg.solve(whole[np.ix_(chosen, chosen)], gradient))
        rows.append((name, chi2, len(columns), float(chdtrc(len(columns), chi2))))
    return pl.DataFrame(
        rows, schema={"term": pl.String, "chi2": pl.Float64, "df": pl.Int64, "p": pl.Float64}, orient="row"
    )


def _at_risk(fitted: CoxFit) -> tuple[Floats, Floats, Floats]:
    """Weighted relative hazards (n,), their sum at each event (E,) and the means of the columns there (p, E)."""
    sets = fitted.sets
    relative = sets.weights * np.exp(fitted.linear_predictor[sets.order])
    below = sets.denominators(relative)
    z = fitted.covariates[sets.order]
    means = np.stack([sets.denominators(relative * z[:, k]) / below for k in range(z.shape[1])])
    return relative, below, means


def _group_means(sets: RiskSets, means: Floats) -> Floats:
    """Means of the columns in the risk set of each event's tie, over its l: (p, E) -> (E, p)."""
    sizes = np.diff(np.append(sets.group_first, len(sets.event_rows)))
    return np.asarray((np.add.reduceat(means, sets.group_first, axis=1) / sizes)[:, sets.event_group].T)


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
