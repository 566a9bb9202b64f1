"""One category from three probabilities: ordinal repair, cut points, rules. Sees no pixel and no outcome.

p0 = P(CACS > 0), p100 = P(CACS >= 100), p400 = P(CACS >= 400) come from three models and may contradict each other.
AUC, Brier score and calibration use them as they are; cut points, categories and class probabilities the repaired ones.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def repair(probabilities: FloatArray) -> FloatArray:
    """Isotonic regression with equal weights under p0 >= p100 >= p400 (pool adjacent violators).

    By the max-min formula (Barlow et al. 1972): fitted_i = min over j <= i of max over k >= i of mean(p_j .. p_k).

    Args:
        probabilities: (n, 3) in [0, 1]; NaN where missing.

    Returns:
        (n, 3), non-increasing along the second axis.
    """
    sums = np.concatenate([np.zeros((len(probabilities), 1)), np.cumsum(probabilities, axis=1)], axis=1)

    def largest_mean(first: int, index: int) -> FloatArray:
        means = [(sums[:, last + 1] - sums[:, first]) / (last + 1 - first) for last in range(index, 3)]
        largest: FloatArray = np.stack(means).max(axis=0)
        return largest

    fitted = [np.stack([largest_mean(first, index) for first in range(index + 1)]).min(axis=0) for index in range(3)]
    untouched = (np.diff(probabilities, axis=1) <= 0).all(axis=1, keepdims=True)
    repaired: FloatArray = np.where(untouched, probabilities, np.stack(fitted, axis=1))
    return repaired


def class_probabilities(repaired: FloatArray) -> FloatArray:
    """(n, 3) repaired -> (n, 4): 1 - p0, p0 - p100, p100 - p400, p400; rows sum to 1."""
    edges = np.concatenate([np.ones((len(repaired), 1)), repaired, np.zeros((len(repaired), 1))], axis=1)
    shares: FloatArray = edges[:, :-1] - edges[:, 1:]
    return shares


def cut_grid(repaired: FloatArray, passed: NDArray[np.bool_]) -> pl.DataFrame:
    """Every distinct observed value as a cut, with what it would call positive.

    Args:
        repaired: (n,) repaired probabilities of one threshold.
        passed: (n,) whether the true score passes it.

    Returns:
        cut (ascending), n, n_positive, predicted_margin, sensitivity, specificity; positive means value >= cut.
    """
    total, positives = len(passed), int(passed.sum())
    return (
        pl.DataFrame({"cut": repaired, "passed": passed})
        .group_by("cut")
        .agg(pl.len().alias("here"), pl.col("passed").sum().alias("true_here"))
        .sort("cut", descending=True)
        .with_columns(pl.col("here").cum_sum().alias("called"), pl.col("true_here").cum_sum().alias("hit"))
        .select(
            "cut",
            pl.lit(total, pl.Int64).alias("n"),
            pl.lit(positives, pl.Int64).alias("n_positive"),
            (pl.col("called") / total).alias("predicted_margin"),
            (pl.col("hit") / positives).alias("sensitivity"),
            (1 - (pl.col("called") - pl.col("hit")) / (total - positives)).alias("specificity"),
        )
        .sort("cut")
    )


def choose_cut(grid: pl.DataFrame, rule: str) -> float:
    """The cut of a grid under a rule.

    Args:
        grid: What `cut_grid` gives for one threshold.
        rule: `prevalence` (predicted margin nearest to the true one, tie: lower cut), `youden` (largest sensitivity +
            specificity, tie: higher sensitivity), `sensitivity:x` (largest cut with sensitivity >= x) or
            `specificity:x` (smallest cut with specificity >= x).
    """
    if rule == "prevalence":
        distance = (pl.col("predicted_margin") - pl.col("n_positive") / pl.col("n")).abs().round(12)
        ordered = grid.sort(distance, pl.col("cut"))
    elif rule == "youden":
        ordered = grid.sort(-(pl.col("sensitivity") + pl.col("specificity")).round(12), -pl.col("sensitivity"))
    else:
        name, wanted = rule.split(":")
        reached = grid.filter(pl.col(name) >= float(wanted) - 1e-12)
        # No cut reaches the specificity where the highest value has false positives: the highest comes nearest.
        reached = reached if len(reached) else grid.sort("cut").tail(1)
        ordered = reached.sort("cut", descending=name == "sensitivity")
    return float(ordered["cut"][0])


def categorise(repaired: FloatArray, cuts: Sequence[float] | None) -> NDArray[np.int64]:
    """The level 0 to 3 of each row: the highest threshold whose probability reaches its cut, else 0.

    Args:
        repaired: (n, 3).
        cuts: Three cuts, or None for `argmax` of the class probabilities (tie: the lower category).
    """
    if cuts is None:
        likeliest: NDArray[np.int64] = class_probabilities(repaired).argmax(axis=1)
        return likeliest
    reached = repaired >= np.asarray(cuts)
    return np.where(reached.any(axis=1), 3 - reached[:, ::-1].argmax(axis=1), 0)


def crosses(repaired: FloatArray, cuts: Sequence[float]) -> NDArray[np.bool_]:
    """Which rows reach a higher cut and fail a lower one."""
    reached = repaired >= np.asarray(cuts)
    return ~reached[:, 0] & (reached[:, 1] | reached[:, 2]) | ~reached[:, 1] & reached[:, 2]
