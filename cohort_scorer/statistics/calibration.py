"""How well probabilities agree with what happened. Knows no threshold, no fold and no way to recalibrate."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.special import expit, logit

from cohort_scorer.statistics.inputs import Booleans, Floats, booleans, equal_lengths, floats, normal_quantile
from cohort_scorer.statistics.splines import restricted_cubic

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
_CURVE = dict.fromkeys(("probability", "observed", "lower", "upper"), pl.Float64) | {"reason": pl.String}
_GRID = np.concatenate([np.arange(1, 10) / 1000, np.arange(1, 100) / 100, np.arange(991, 1000) / 1000])
_NO_ROOM = "no round probability has ten patients on either side: too few patients or too narrow a range"

Estimate = tuple[float | None, float | None, float | None, str | None]
"""Estimate, lower, upper, and the reason why any of them is null."""


@dataclass(frozen=True, eq=False)
class _Logistic:
    """A fitted logistic regression: coefficients (p,), a root R (p, p) of their covariance, fitted probabilities (n,).

    R R' is the covariance: a combination c of the coefficients has the standard error |c R|.
    """

    coefficients: Floats
    root: Floats
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
    positive, p = _clipped(outcome, probability)
    x, one = np.asarray(logit(p), dtype=np.float64), np.ones((len(p), 1))
    smooth = _smooth(positive, x)
    rows = {
        "observed_expected": observed_expected(positive, p, level),
        "intercept": _coefficient(_fit_logistic(one, positive, x), z),
        "slope": _coefficient(_fit_logistic(np.column_stack([one, x]), positive, np.zeros_like(x)), z),
        "ici": (None, None, None, smooth)
        if isinstance(smooth, str)
        else (float(np.abs(smooth[0].fitted - p).mean()), None, None, None),
    }
    return pl.DataFrame([(len(p), name, *row) for name, row in rows.items()], schema=_SCHEMA, orient="row")


def observed_expected(outcome: npt.ArrayLike, probability: npt.ArrayLike, level: float = 0.95) -> Estimate:
    """Divide the observed by the expected number of outcomes, as `calibration` describes.

    Args:
        outcome: bool, shape (n,).
        probability: Probability of the outcome in [0, 1], shape (n,); clipped.
        level: Confidence level.

    Returns:
        Ratio (null without patients), lower, upper (null also where one of the two outcomes is absent: the formula
        gives no width or none at all), and the reason of what is null.

    Raises:
        ValueError: If the arrays do not fit together or a probability lies outside [0, 1].
    """
    z = normal_quantile(level)
    positive, p = _clipped(outcome, probability)
    n, observed = len(p), int(positive.sum())
    if n == 0:
        return (None, None, None, "no patients")
    ratio = float(observed / p.sum())
    if observed in (0, n):
        return (ratio, None, None, f"no interval: {_one_outcome(positive)}")
    half = z * (1 / observed - 1 / n) ** 0.5
    return (ratio, float(ratio * np.exp(-half)), float(ratio * np.exp(half)), None)


def calibration_curve(outcome: npt.ArrayLike, probability: npt.ArrayLike, level: float = 0.95) -> pl.DataFrame:
    """Follow the smoothed observed frequency over the predicted probability.

    The smooth is the one whose mean distance from the probabilities is the `ici` of `calibration`. Its interval is
    pointwise: Wald's on the logit scale, from the covariance of the fit (Harrell FE, Regression Modeling Strategies,
    2015, section 10.2), knots and probabilities taken as fixed.

    The curve stands at round probabilities (0.001 ... 0.01, 0.02 ... 0.99 ... 0.999) and not at those of patients. It
    ends at the 1st and 99th percentile, and never has fewer than ten patients beyond an end: there a smooth is a guess,
    and where it ended would tell of a single patient.

    Args:
        outcome: bool, shape (n,).
        probability: Probability of the outcome in [0, 1], shape (n,); clipped.
        level: Confidence level.

    Returns:
        One row per point: probability, observed, lower, upper in (0, 1), reason null. Without a curve one row of nulls
        with the reason: one outcome only, separation, too few distinct probabilities or patients.

    Raises:
        ValueError: If the arrays do not fit together or a probability lies outside [0, 1].
    """
    z = normal_quantile(level)
    positive, p = _clipped(outcome, probability)
    smooth = _smooth(positive, np.asarray(logit(p), dtype=np.float64))
    if isinstance(smooth, str):
        return pl.DataFrame([(None, None, None, None, smooth)], schema=_CURVE, orient="row")
    # No percentile is outside the tenth lowest and highest, and with 20 patients there is nothing between these.
    beyond = max(10 / len(p), 0.01)
    first, last = np.quantile(p, [beyond, 1 - beyond]) if beyond < 0.5 else (1.0, 0.0)
    grid = _GRID[(first <= _GRID) & (last >= _GRID)]
    if not len(grid):
        return pl.DataFrame([(None, None, None, None, _NO_ROOM)], schema=_CURVE, orient="row")
    fit, knots = smooth
    design = _smooth_design(np.asarray(logit(grid), dtype=np.float64), knots)
    eta, half = design @ fit.coefficients, z * np.linalg.norm(design @ fit.root, axis=1)
    found = {"probability": grid, "observed": expit(eta), "lower": expit(eta - half), "upper": expit(eta + half)}
    return pl.DataFrame(found | {"reason": None}, schema=_CURVE)


def _clipped(outcome: npt.ArrayLike, probability: npt.ArrayLike) -> tuple[Booleans, Floats]:
    positive, p = booleans("outcome", outcome), floats("probability", probability)
    equal_lengths(outcome=positive, probability=p)
    if (p < 0).any() or (p > 1).any():
        raise ValueError("probability must lie between 0 and 1")
    return positive, np.clip(p, CLIP, 1 - CLIP)


def _coefficient(fit: _Logistic | str, z: float) -> Estimate:
    """Last coefficient of a fit with its Wald interval, or the reason why there is no fit."""
    if isinstance(fit, str):
        return (None, None, None, fit)
    estimate, se = float(fit.coefficients[-1]), float(np.linalg.norm(fit.root[-1]))
    return (estimate, estimate - z * se, estimate + z * se, None)


def _smooth(positive: Booleans, x: Floats) -> tuple[_Logistic, Floats] | str:
    """Observed frequency over the logit: the fit and the knots of its spline, or the reason why there is none."""
    if len(np.unique(positive)) < 2:
        return _one_outcome(positive)
    knots = np.quantile(x, _KNOT_QUANTILES)
    if (np.diff(knots) <= 0).any():
        return "the four knots of the smooth coincide: too few distinct probabilities"
    fit = _fit_logistic(_smooth_design(x, knots), positive, np.zeros_like(x))
    return fit if isinstance(fit, str) else (fit, knots)


def _smooth_design(x: Floats, knots: Floats) -> Floats:
    return np.column_stack([np.ones_like(x), x, restricted_cubic(x, knots)])


def _one_outcome(positive: Booleans) -> str:
    return "nobody without the outcome" if positive.any() else "nobody with the outcome"


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
    if len(np.unique(positive)) < 2:
        return _one_outcome(positive)
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
            return _Logistic(
                np.linalg.solve(triangle, beta + step), root, np.asarray(expit(eta + move), dtype=np.float64)
            )
        factor = 1.0
        while _loss(eta + factor * move, positive) > loss * (1 + 1e-12) and factor > 1e-3:
            factor /= 2
        beta, eta = beta + factor * step, eta + factor * move
        loss = _loss(eta, positive)
    return "the logistic model does not converge: the probabilities separate the outcomes"


def _loss(eta: Floats, positive: Booleans) -> float:
    return float(np.logaddexp(0, eta).sum() - eta[positive].sum())
