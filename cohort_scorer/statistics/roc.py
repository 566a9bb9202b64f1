"""The ROC curve as sensitivity at given specificities, with the pointwise interval of the stratified bootstrap.

Knows neither exposures nor thresholds: an outcome is True or False, a score is a number that is higher where the
outcome is likelier. The interval holds the patients' variation alone.
"""

import numpy as np
import numpy.typing as npt
import polars as pl

from cohort_scorer.statistics.inputs import Floats, Integers, booleans, equal_lengths, floats, normal_quantile

REPLICATES = 2000
_PERCENT = np.arange(101)
_SCHEMA = dict.fromkeys(("specificity", "sensitivity", "lower", "upper"), pl.Float64)


def roc(
    outcome: npt.ArrayLike,
    score: npt.ArrayLike,
    rng: np.random.Generator,
    level: float = 0.95,
    replicates: int = REPLICATES,
) -> pl.DataFrame:
    """Find the sensitivity at the specificities 0, 0.01 ... 1, with pointwise bootstrap intervals.

    Sensitivities are those of the empirical curve: the highest where it is vertical, interpolated where tied scores
    make it oblique. The interval is the percentile one (quantiles of type 7) over resamples of the patients with the
    outcome and, apart, of those without. Both as pROC's `ci.se` (Robin X and others, BMC Bioinformatics 2011;12:77),
    which gives the median of the resamples in the place of the estimate. The interval is pointwise: it covers the
    sensitivity at one specificity, not the whole curve; near specificity 1, where a few patients decide, no bootstrap
    interval can be trusted.

    Args:
        outcome: bool, shape (n,).
        score: Finite, higher where the outcome is likelier, shape (n,).
        rng: Source of the resamples; the order of the patients does not change the result.
        level: Confidence level.
        replicates: Number of resamples.

    Returns:
        101 rows: specificity, sensitivity, lower, upper, all in [0, 1]; no rows where one of the two outcomes is
        absent, no bounds where an outcome has one patient only.

    Raises:
        ValueError: If the arrays do not fit together.
    """
    normal_quantile(level)
    positive, scores = booleans("outcome", outcome), floats("score", score)
    equal_lengths(outcome=positive, score=scores)
    # Rank 1 is the highest score, 0 the cut above all; what follows knows patients by their ranks alone.
    rank = np.unique(-scores, return_inverse=True)[1] + 1
    diseased, healthy = np.sort(rank[positive]), np.sort(rank[~positive])
    m, n = len(diseased), len(healthy)
    if min(m, n) == 0:
        return pl.DataFrame(schema=_SCHEMA)
    n_ranks = int(rank.max()) + 1
    found = {"specificity": _PERCENT / 100, "sensitivity": _sensitivity(diseased, healthy, n_ranks)}
    lower = upper = None
    if min(m, n) > 1:
        resampled = [
            _sensitivity(diseased[rng.integers(0, m, m)], healthy[rng.integers(0, n, n)], n_ranks)
            for _ in range(replicates)
        ]
        lower, upper = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return pl.DataFrame(found | {"lower": lower, "upper": upper}, schema=_SCHEMA)


def _sensitivity(diseased: Integers, healthy: Integers, n_ranks: int) -> Floats:
    """Sensitivities at the 101 specificities, from the ranks of those with and without the outcome, below n_ranks."""
    true_positives, false_positives = (np.bincount(ranks, minlength=n_ranks).cumsum() for ranks in (diseased, healthy))
    # Counted in patients, not in shares, so that a specificity that the curve reaches is met exactly; where several
    # points share it, np.interp takes the last of them, which is the highest.
    allowed = (100 - _PERCENT) * len(healthy) / 100
    return np.asarray(np.interp(allowed, false_positives, true_positives) / len(diseased), dtype=np.float64)
