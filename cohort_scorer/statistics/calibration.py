"""How well probabilities agree with what happened. Knows no threshold, no fold and no way to recalibrate."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.special import expit, logit

from cohort_scorer.statistics.inputs import Booleans, Floats, booleans, equal_lengths, floats, normal_quantile

CLIP = 1e-6
_MAXIMUM_ITERATIONS = 100
_KNOT_QUANTILES = (0.05, 0.35, 0.65, 0.95)
_SCHEMA = {
    "n": pl.Int64,
    "statistic": pl.String,
    "estimate": pl.Float64,
    "lower": pl.Float64,
    "upper": pl.Float64,
    "reason": pl.String,
}


@dataclass(frozen=True, eq=False)
class _Logistic:
    """A fitted logistic regression: coefficients (p,), their standard errors (p,), fitted probabilities (n,)."""

    coefficients: Floats
    standard_errors: Floats
    fitted: Floats


def calibration(outcome: npt.ArrayLike, probability: npt.ArrayLike, level: float = 0.95) -> pl.DataFrame:
    """Describe the calibration of probabilities by four statistics.

    Probabilities are clipped to [1e-6, 1 - 1e-6] throughout.

    - observed_expected: observed over expected number of outcomes, Wald interval on the log scale with
      SE sqrt(1/O - 1/n), the expected number taken as fixed (Debray TPA and others, BMJ 2017;356:i6460, and R's
      `metamisc::oecalc`).
    - intercept: of a logistic regression of the outcome with the logit of the probability as offset, 0 at best; slope:
      of one on that logit, 1 at best (Cox DR, Biometrika 1958;45:562-565), with Wald intervals.
    - ici: mean absolute difference of the probability from its smoothed observed frequency (Austin PC, Steyerberg EW,
      Stat Med 2019;38:4051-4065), smoothed by a logistic regression on a restricted cubic spline of the logit with
      four knots at its quantiles .05, .35, .65, .95 (Harrell FE, Regression Modeling Strategies, 2015, section 2.4).
      It has no closed interval: lower and upper are null for now.

    Args:
        outcome: bool, shape (n,).
        probability: Probability of the outcome in [0, 1], shape (n,).
        level: Confidence level.

    Returns:
        Rows observed_expected, intercept, slope, ici with columns n, statistic, estimate, lower, upper, reason; reason
        says why an estimate is null (one outcome only, separation, too few distinct probabilities), else null.

    Raises:
        ValueError: If the arrays do not fit together or a probability lies outside [0, 1].
    """
    z = normal_quantile(level)
    positive, p = booleans("outcome", outcome), floats("probability", probability)
    equal_lengths(outcome=positive, probability=p)
    if (p < 0).any() or (p > 1).any():
        raise ValueError("probability must lie between 0 and 1")
    p = np.clip(p, CLIP, 1 - CLIP)
    n, observed = len(p), int(positive.sum())
    rows = [_observed_expected(observed, p, z)]
    if observed in (0, n):
        reason = "nobody with the outcome" if observed == 0 else "nobody without the outcome"
        rows += [(name, None, None, None, reason) for name in ("intercept", "slope", "ici")]
    else:
        x = np.asarray(logit(p), dtype=np.float64)
        one = np.ones((n, 1))
        rows.append(_coefficient("intercept", _fit_logistic(one, positive, x), z))
        rows.append(_coefficient("slope", _fit_logistic(np.column_stack([one, x]), positive, np.zeros(n)), z))
        rows.append(_integrated_index(positive, p, x))
    return pl.DataFrame([(n, *row) for row in rows], schema=_SCHEMA, orient="row")


_Row = tuple[str, float | None, float | None, float | None, str | None]


def _observed_expected(observed: int, p: Floats, z: float) -> _Row:
    if len(p) == 0:
        return ("observed_expected", None, None, None, "no patients")
    ratio = float(observed / p.sum())
    if observed == 0:
        return ("observed_expected", ratio, None, None, "no interval: nobody with the outcome")
    half = z * (1 / observed - 1 / len(p)) ** 0.5
    return ("observed_expected", ratio, float(ratio * np.exp(-half)), float(ratio * np.exp(half)), None)


def _coefficient(name: str, fit: _Logistic | str, z: float) -> _Row:
    """Last coefficient of a fit with its Wald interval, or the reason why there is no fit."""
    if isinstance(fit, str):
        return (name, None, None, None, fit)
    estimate, se = float(fit.coefficients[-1]), float(fit.standard_errors[-1])
    return (name, estimate, estimate - z * se, estimate + z * se, None)


def _integrated_index(positive: Booleans, p: Floats, x: Floats) -> _Row:
    knots = np.quantile(x, _KNOT_QUANTILES)
    if (np.diff(knots) <= 0).any():
        return ("ici", None, None, None, "the four knots of the smooth coincide: too few distinct probabilities")
    fit = _fit_logistic(np.column_stack([np.ones_like(x), x, _spline(x, knots)]), positive, np.zeros_like(x))
    if isinstance(fit, str):
        return ("ici", None, None, None, fit)
    return ("ici", float(np.abs(fit.fitted - p).mean()), None, None, None)


def _spline(x: Floats, knots: Floats) -> Floats:
    """Non-linear terms of a cubic spline that is linear beyond its outer knots (Harrell 2015, eq. 2.25): (n, K - 2)."""
    last, before = knots[-1], knots[-2]
    cubes = [np.maximum(x - knot, 0) ** 3 for knot in knots]
    terms = [
        cubes[j] - cubes[-2] * (last - knots[j]) / (last - before) + cubes[-1] * (before - knots[j]) / (last - before)
        for j in range(len(knots) - 2)
    ]
    return np.asarray(np.column_stack(terms) / (last - knots[0]) ** 2, dtype=np.float64)


def _fit_logistic(design: Floats, positive: Booleans, offset: Floats) -> _Logistic | str:
    """Fit by Newton's method on an orthonormal basis of the design.

    Under separation every step moves the predictor of some patients by about 1, however little the likelihood gains;
    so a fit counts as converged only when the predictor itself has stopped moving.

    Args:
        design: Columns of the model, intercept included, shape (n, p).
        positive: bool, shape (n,).
        offset: Fixed part of the predictor, shape (n,).

    Returns:
        The fit, or the reason why there is none.
    """
    basis, triangle = np.linalg.qr(design)
    diagonal = np.abs(np.diag(triangle))
    if (diagonal <= 1e-10 * np.linalg.norm(design, axis=0)).any():
        return "too few distinct probabilities"
    basis, triangle = basis * np.sqrt(len(design)), triangle / np.sqrt(len(design))
    beta = np.zeros(design.shape[1])
    eta, loss = offset, _loss(offset, positive)
    for _ in range(_MAXIMUM_ITERATIONS):
        fitted = np.asarray(expit(eta), dtype=np.float64)
        information = (basis * (fitted * (1 - fitted))[:, None]).T @ basis
        try:
            step = np.linalg.solve(information, basis.T @ (positive - fitted))
        except np.linalg.LinAlgError:
            break
        move = basis @ step
        if not np.isfinite(move).all():
            break
        if np.abs(move).max() < 1e-9:
            root = np.linalg.solve(triangle, np.linalg.cholesky(np.linalg.inv(information)))
            return _Logistic(np.linalg.solve(triangle, beta + step), np.sqrt((root**2).sum(axis=1)), fitted)
        factor = 1.0
        while _loss(eta + factor * move, positive) > loss * (1 + 1e-12) and factor > 1e-3:
            factor /= 2
        beta, eta = beta + factor * step, eta + factor * move
        loss = _loss(eta, positive)
    return "the logistic model does not converge: the probabilities separate the outcomes"


def _loss(eta: Floats, positive: Booleans) -> float:
    return float(np.logaddexp(0, eta).sum() - eta[positive].sum())
