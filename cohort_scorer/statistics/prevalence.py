"""Prevalence from the positives of an imperfect test. Knows neither the test nor its threshold."""

from dataclasses import dataclass

from cohort_scorer.statistics.inputs import normal_quantile


@dataclass(frozen=True)
class Prevalence:
    """A prevalence with its interval.

    Attributes:
        prevalence: Estimate in [0, 1], None where it cannot be estimated.
        lower: Lower bound in [0, 1], None likewise.
        upper: Upper bound in [0, 1], None likewise.
        reason: Why there is no estimate, None where there is one.
    """

    prevalence: float | None
    lower: float | None
    upper: float | None
    reason: str | None = None


def rogan_gladen(
    n_positive: float,
    n: float,
    sensitivity: float,
    n_diseased: float,
    specificity: float,
    n_healthy: float,
    level: float = 0.95,
) -> Prevalence:
    """Adjust the share of test positives for misclassification.

    Estimate: Rogan WJ, Gladen B, Am J Epidemiol 1978;107:71-76, P = (AP + Sp - 1) / (Se + Sp - 1), clipped to [0, 1].
    Interval: Lang Z, Reiczigel J, Prev Vet Med 2014;113:13-22, which allows for the sampling of sensitivity and
    specificity, clipped to [0, 1].

    Args:
        n_positive: Number of test positives in the population studied.
        n: Number tested there.
        sensitivity: Sensitivity found in the validation sample, in [0, 1].
        n_diseased: Number of diseased in that sample.
        specificity: Specificity found in the validation sample, in [0, 1].
        n_healthy: Number of healthy in that sample.
        level: Confidence level.

    Returns:
        The prevalence, or a reason where sensitivity + specificity <= 1 or a denominator is 0.

    Raises:
        ValueError: If a share lies outside [0, 1].
    """
    z = normal_quantile(level)
    if min(n, n_diseased, n_healthy) <= 0:
        return Prevalence(None, None, None, "nobody tested, or nobody in the validation sample")
    if not (0 <= n_positive <= n and 0 <= sensitivity <= 1 and 0 <= specificity <= 1):
        raise ValueError("n_positive must lie between 0 and n, sensitivity and specificity between 0 and 1")
    if sensitivity + specificity <= 1:
        return Prevalence(None, None, None, "sensitivity + specificity is not above 1")
    estimate = (n_positive / n + specificity - 1) / (sensitivity + specificity - 1)

    m_diseased, m_healthy, m = n_diseased + 2, n_healthy + 2, n + z**2
    se = (n_diseased * sensitivity + 1) / m_diseased
    sp = (n_healthy * specificity + 1) / m_healthy
    share = (n_positive + z**2 / 2) / m
    if se + sp <= 1:
        return Prevalence(None, None, None, "sensitivity + specificity, shrunk for the interval, is not above 1")
    shifted = (share + sp - 1) / (se + sp - 1)
    variance_se, variance_sp = se * (1 - se) / m_diseased, sp * (1 - sp) / m_healthy
    shift = 2 * z**2 * (shifted * variance_se - (1 - shifted) * variance_sp)
    variance = share * (1 - share) / m + shifted**2 * variance_se + (1 - shifted) ** 2 * variance_sp
    half = z * variance**0.5 / (se + sp - 1)
    return Prevalence(_clip(estimate), _clip(shifted + shift - half), _clip(shifted + shift + half))


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)
