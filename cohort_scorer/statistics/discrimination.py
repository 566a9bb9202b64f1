"""How well scores and categories tell those with an outcome from those without.

Knows neither exposures nor thresholds: an outcome is True or False, a score is a number that is higher where the
outcome is likelier.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.special import ndtr
from scipy.stats import rankdata

from cohort_scorer.statistics.inputs import Booleans, Floats, booleans, equal_lengths, floats, normal_quantile
from cohort_scorer.statistics.proportions import wilson


@dataclass(frozen=True)
class AUC:
    """An area under the ROC curve.

    Attributes:
        auc: Estimate in [0, 1], None where one of the two outcomes is absent.
        lower: Lower bound in [0, 1], None also where an outcome has one patient only.
        upper: Upper bound, likewise.
        n: Number of patients.
        n_positive: Number with the outcome.
        se: DeLong's standard error, None where there are no bounds.
    """

    auc: float | None
    lower: float | None
    upper: float | None
    n: int
    n_positive: int
    se: float | None


@dataclass(frozen=True)
class AUCDifference:
    """Two areas on the same patients, and a minus b.

    Attributes:
        n: Number of patients.
        n_positive: Number with the outcome.
        auc_a: Area of the first score, None where one of the two outcomes is absent.
        auc_b: Area of the second score.
        auc_difference: auc_a - auc_b.
        lower: Lower bound of the difference, None also where an outcome has one patient only.
        upper: Upper bound, likewise.
        p: Two-sided p of no difference, 1 where the scores rank all patients alike.
    """

    n: int
    n_positive: int
    auc_a: float | None
    auc_b: float | None
    auc_difference: float | None
    lower: float | None
    upper: float | None
    p: float | None


@dataclass(frozen=True)
class OperatingPoint:
    """A two-by-two table as proportions, each with Wilson bounds, None where nobody is in the denominator.

    Attributes follow operating_points.csv; predicted_margin is the share called positive, true_margin the share with
    the outcome.
    """

    n: int
    sensitivity: float | None
    sensitivity_lower: float | None
    sensitivity_upper: float | None
    specificity: float | None
    specificity_lower: float | None
    specificity_upper: float | None
    ppv: float | None
    ppv_lower: float | None
    ppv_upper: float | None
    npv: float | None
    npv_lower: float | None
    npv_upper: float | None
    predicted_margin: float | None
    true_margin: float | None


def auc(outcome: npt.ArrayLike, score: npt.ArrayLike, level: float = 0.95) -> AUC:
    """Estimate the area under the ROC curve with DeLong's variance.

    DeLong ER, DeLong DM, Clarke-Pearson DL, Biometrics 1988;44:837-845, by the midranks of Sun X, Xu W, IEEE Signal
    Process Lett 2014;21:1389-1393. The interval is the estimate -+ z SE, clipped to [0, 1], as pROC's `ci.auc`.

    Args:
        outcome: bool, shape (n,).
        score: Finite, higher where the outcome is likelier, shape (n,).
        level: Confidence level.

    Returns:
        The area; ties between the outcomes count one half.

    Raises:
        ValueError: If the arrays do not fit together.
    """
    z = normal_quantile(level)
    positive, scores = _paired(outcome, score)
    n, n_positive = len(positive), int(positive.sum())
    if n_positive in (0, n):
        return AUC(None, None, None, n, n_positive, None)
    diseased, healthy = _placements(positive, scores)
    area = float(diseased.mean())
    if min(n_positive, n - n_positive) < 2:
        return AUC(area, None, None, n, n_positive, None)
    se = _standard_error(diseased, healthy)
    return AUC(area, max(area - z * se, 0.0), min(area + z * se, 1.0), n, n_positive, se)


def mean_of_folds(parts: Sequence[AUC], level: float = 0.95) -> AUC:
    """Average the areas of several folds, each fold weighing the same.

    The variance is that of a mean of independent areas: conditional on the fitted networks, the folds hold different
    patients. Folds without an area are left out of the mean and its counts.

    Args:
        parts: One area per fold.
        level: Confidence level.

    Returns:
        The mean area with the counts summed; bounds only where every fold used has a standard error.
    """
    z = normal_quantile(level)
    used = [part for part in parts if part.auc is not None]
    n, n_positive = sum(part.n for part in used), sum(part.n_positive for part in used)
    if not used:
        return AUC(None, None, None, n, n_positive, None)
    area = sum(part.auc for part in used if part.auc is not None) / len(used)
    errors = [part.se for part in used if part.se is not None]
    if len(errors) < len(used):
        return AUC(area, None, None, n, n_positive, None)
    se = sum(error**2 for error in errors) ** 0.5 / len(used)
    return AUC(area, max(area - z * se, 0.0), min(area + z * se, 1.0), n, n_positive, se)


def paired_auc_difference(
    outcome: npt.ArrayLike, score_a: npt.ArrayLike, score_b: npt.ArrayLike, level: float = 0.95
) -> AUCDifference:
    """Compare two scores on the same patients by DeLong's paired test.

    DeLong 1988, as `auc`; z from the variance of the placement differences, as pROC's `roc.test(paired = TRUE)`. The p
    value is not valid for nested models on out-of-fold scores: the caller leaves it empty there.

    Args:
        outcome: bool, shape (n,).
        score_a: Finite, shape (n,).
        score_b: Finite, shape (n,).
        level: Confidence level.

    Returns:
        Both areas and their difference; the interval is plain and not clipped.

    Raises:
        ValueError: If the arrays do not fit together.
    """
    z = normal_quantile(level)
    positive, first = _paired(outcome, score_a)
    _, second = _paired(outcome, score_b)
    n, n_positive = len(positive), int(positive.sum())
    if n_positive in (0, n):
        return AUCDifference(n, n_positive, None, None, None, None, None, None)
    diseased_a, healthy_a = _placements(positive, first)
    diseased_b, healthy_b = _placements(positive, second)
    area_a, area_b = float(diseased_a.mean()), float(diseased_b.mean())
    difference = float((diseased_a - diseased_b).mean())
    if min(n_positive, n - n_positive) < 2:
        return AUCDifference(n, n_positive, area_a, area_b, difference, None, None, None)
    se = _standard_error(diseased_a - diseased_b, healthy_a - healthy_b)
    if se > 0:
        p: float | None = float(2 * ndtr(-abs(difference) / se))
    else:
        p = 1.0 if difference == 0 else 0.0
    return AUCDifference(n, n_positive, area_a, area_b, difference, difference - z * se, difference + z * se, p)


def brier(outcome: npt.ArrayLike, probability: npt.ArrayLike) -> float | None:
    """Return the mean squared difference of outcome and probability (Brier GW, Mon Weather Rev 1950;78:1-3).

    Args:
        outcome: bool, shape (n,).
        probability: Probability of the outcome in [0, 1], shape (n,).

    Returns:
        The score in [0, 1], None without patients.

    Raises:
        ValueError: If the arrays do not fit together or a probability lies outside [0, 1].
    """
    positive, p = _probabilities(outcome, probability)
    return float(np.mean((p - positive) ** 2)) if len(p) else None


def operating_point(outcome: npt.ArrayLike, positive: npt.ArrayLike, level: float = 0.95) -> OperatingPoint:
    """Describe a yes-or-no test by sensitivity, specificity and predictive values.

    Args:
        outcome: bool, shape (n,).
        positive: bool, True where the test is positive, shape (n,).
        level: Confidence level of the Wilson intervals.

    Returns:
        The proportions; predictive values are those at the prevalence of these patients.

    Raises:
        ValueError: If the arrays do not fit together.
    """
    truth, called = booleans("outcome", outcome), booleans("positive", positive)
    equal_lengths(outcome=truth, positive=called)
    n, n_true, n_called = len(truth), int(truth.sum()), int(called.sum())
    both = int((truth & called).sum())
    neither = n - n_true - n_called + both
    estimate, lower, upper = wilson(
        [both, neither, both, neither], [n_true, n - n_true, n_called, n - n_called], level=level
    )
    cells = [_known(value) for triple in zip(estimate, lower, upper, strict=True) for value in triple]
    margins = (n_called / n, n_true / n) if n else (None, None)
    return OperatingPoint(n, *cells, *margins)


def decision_curve(outcome: npt.ArrayLike, probability: npt.ArrayLike, grid: npt.ArrayLike) -> pl.DataFrame:
    """Compute the net benefit of acting at each threshold probability.

    Vickers AJ, Elkin EB, Med Decis Making 2006;26:565-574: TP/n - FP/n pt/(1 - pt), positive where probability >= pt.

    Args:
        outcome: bool, shape (n,).
        probability: Probability of the outcome in [0, 1], shape (n,).
        grid: Threshold probabilities pt, 0 <= pt < 1, shape (k,).

    Returns:
        One row per threshold: probability (pt), net_benefit, treat_all (net benefit of acting on everybody).

    Raises:
        ValueError: If the arrays do not fit together, or there are no patients.
    """
    positive, p = _probabilities(outcome, probability)
    thresholds = floats("grid", grid)
    if not len(p) or (thresholds < 0).any() or (thresholds >= 1).any():
        raise ValueError("grid must lie in [0, 1) and there must be at least one patient")
    n, n_positive = len(p), int(positive.sum())
    n_called = n - np.searchsorted(np.sort(p), thresholds, side="left")
    true_positives = n_positive - np.searchsorted(np.sort(p[positive]), thresholds, side="left")
    odds = thresholds / (1 - thresholds)
    return pl.DataFrame(
        {
            "probability": thresholds,
            "net_benefit": (true_positives - (n_called - true_positives) * odds) / n,
            "treat_all": (n_positive - (n - n_positive) * odds) / n,
        }
    )


def _paired(outcome: npt.ArrayLike, score: npt.ArrayLike) -> tuple[Booleans, Floats]:
    positive, scores = booleans("outcome", outcome), floats("score", score)
    equal_lengths(outcome=positive, score=scores)
    return positive, scores


def _probabilities(outcome: npt.ArrayLike, probability: npt.ArrayLike) -> tuple[Booleans, Floats]:
    positive, p = _paired(outcome, probability)
    if (p < 0).any() or (p > 1).any():
        raise ValueError("probability must lie between 0 and 1")
    return positive, p


def _placements(positive: Booleans, score: Floats) -> tuple[Floats, Floats]:
    """Share of the other outcome that each patient outranks: with the outcome, then without (Sun & Xu 2014)."""
    diseased, healthy = score[positive], score[~positive]
    overall = rankdata(np.concatenate([diseased, healthy]))
    m = len(diseased)
    return (
        np.asarray((overall[:m] - rankdata(diseased)) / len(healthy), dtype=np.float64),
        np.asarray(1 - (overall[m:] - rankdata(healthy)) / m, dtype=np.float64),
    )


def _standard_error(diseased: Floats, healthy: Floats) -> float:
    return float(np.sqrt(diseased.var(ddof=1) / len(diseased) + healthy.var(ddof=1) / len(healthy)))


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
