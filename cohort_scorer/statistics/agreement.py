"""Agreement of two ordered gradings of the same patients. Knows no category by name."""

import numpy as np
import numpy.typing as npt
import polars as pl

from cohort_scorer.statistics.inputs import Floats, codes, equal_lengths, normal_quantile
from cohort_scorer.statistics.proportions import wilson

_SCHEMA = {"n": pl.Int64, "statistic": pl.String, "estimate": pl.Float64, "lower": pl.Float64, "upper": pl.Float64}


def agreement(
    true_codes: npt.ArrayLike, predicted_codes: npt.ArrayLike, n_levels: int, level: float = 0.95
) -> pl.DataFrame:
    """Estimate accuracy and weighted kappa.

    Accuracy has a Wilson interval. Kappa (Cohen J, Psychol Bull 1968;70:213-220) weighs agreement by
    1 - |i - j|/(K - 1) (linear) or 1 - (i - j)^2/(K - 1)^2 (quadratic) and has the large-sample standard error of
    Fleiss JL, Cohen J, Everitt BS, Psychol Bull 1969;72:323-327, the one not assuming kappa 0; bounds are clipped to
    [-1, 1].

    Args:
        true_codes: Whole numbers 0 to n_levels - 1, shape (n,).
        predicted_codes: Whole numbers 0 to n_levels - 1, shape (n,).
        n_levels: Number of ordered levels K, at least 2.
        level: Confidence level.

    Returns:
        Rows accuracy, kappa_linear, kappa_quadratic with columns n, statistic, estimate, lower, upper; null where it
        cannot be estimated (no patients; all in one level by both gradings).

    Raises:
        ValueError: If the arrays do not fit together or n_levels < 2.
    """
    z = normal_quantile(level)
    if n_levels < 2:
        raise ValueError(f"n_levels must be at least 2, but was {n_levels}")
    first, second = codes("true_codes", true_codes, n_levels), codes("predicted_codes", predicted_codes, n_levels)
    equal_lengths(true_codes=first, predicted_codes=second)
    n = len(first)
    counts = np.bincount(first * n_levels + second, minlength=n_levels**2).reshape(n_levels, n_levels)
    distance = np.abs(np.subtract.outer(np.arange(n_levels), np.arange(n_levels))) / (n_levels - 1)
    accuracy = [float(value) for value in wilson(np.trace(counts), n, level)] if n else [None] * 3
    rows: list[list[object]] = [[n, "accuracy", *accuracy]]
    for name, weights in (("kappa_linear", 1 - distance), ("kappa_quadratic", 1 - distance**2)):
        kappa, se = _kappa(counts, weights)
        bounds = [None, None] if kappa is None else [max(kappa - z * se, -1.0), min(kappa + z * se, 1.0)]
        rows.append([n, name, kappa, *bounds])
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row")


def _kappa(counts: npt.NDArray[np.int64], weights: Floats) -> tuple[float | None, float]:
    """Weighted kappa and its standard error; weights (K, K), 1 on the diagonal."""
    n = counts.sum()
    if n == 0:
        return None, 0.0
    p = counts / n
    rows, columns = p.sum(axis=1), p.sum(axis=0)
    observed, expected = float((weights * p).sum()), float(rows @ weights @ columns)
    if expected >= 1 - 1e-12:
        return None, 0.0
    kappa = (observed - expected) / (1 - expected)
    mean_weights = np.add.outer(weights @ columns, rows @ weights)
    spread = (p * (weights - mean_weights * (1 - kappa)) ** 2).sum() - (kappa - expected * (1 - kappa)) ** 2
    return kappa, float(np.sqrt(max(spread, 0.0) / n) / (1 - expected))
