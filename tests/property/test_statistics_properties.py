"""What must hold for any data: row order, units of time, and slow definitions written out."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from cohort_scorer.statistics.agreement import agreement
from cohort_scorer.statistics.calibration import calibration
from cohort_scorer.statistics.concordance import harrell_c
from cohort_scorer.statistics.cox import fit
from cohort_scorer.statistics.cumulative_incidence import cumulative_incidence
from cohort_scorer.statistics.discrimination import auc, decision_curve, paired_auc_difference
from cohort_scorer.statistics.kaplan_meier import kaplan_meier
from cohort_scorer.statistics.logrank import logrank

FEW = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
LEVELS = ["a", "b", "c"]


def cohort(seed: int, n: int = 120):
    """Tied whole days, status 0/1/2, a group, two covariates and a stratum; each group has events."""
    rng = np.random.default_rng(seed)
    group = np.arange(n) % 3
    x = np.column_stack([group == 1, group == 2, rng.normal(60, 10, n)]).astype(float)
    time = np.ceil(rng.exponential(20 * np.exp(-0.3 * group)))
    status = rng.choice([0, 1, 2], n, p=[0.3, 0.5, 0.2])
    status[:9], time[:9] = 1, 5
    return time, status, group, x, rng.integers(0, 2, n), rng.permutation(n)


@FEW
@given(SEEDS)
def test_row_order_changes_no_survival_estimate(seed):
    time, status, group, x, stratum, order = cohort(seed)
    event = status == 1
    assert kaplan_meier(time, event).equals(kaplan_meier(time[order], event[order]))
    assert cumulative_incidence(time, status).equals(cumulative_incidence(time[order], status[order]))
    assert logrank(time, event, group, LEVELS, stratum).equals(
        logrank(time[order], event[order], group[order], LEVELS, stratum[order])
    )
    first, second = fit(time, event, x, strata=stratum), fit(time[order], event[order], x[order], strata=stratum[order])
    np.testing.assert_allclose(first.coefficients, second.coefficients, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(first.linear_predictor[order], second.linear_predictor, rtol=1e-9, atol=1e-9)
    c, again = (
        harrell_c(time, event, x[:, 2], stratum),
        harrell_c(time[order], event[order], x[order, 2], stratum[order]),
    )
    assert c.harrell_c == again.harrell_c
    assert c.harrell_c_se == pytest.approx(again.harrell_c_se, rel=1e-12)


@FEW
@given(SEEDS)
def test_row_order_changes_no_diagnostic_estimate(seed):
    rng = np.random.default_rng(seed)
    outcome, score, order = rng.random(60) < 0.4, rng.integers(1, 20, 60) / 20, rng.permutation(60)
    outcome[:2] = True, False
    for compute in (auc, decide, calibration):
        np.testing.assert_allclose(
            numbers(compute(outcome, score)), numbers(compute(outcome[order], score[order])), atol=1e-9
        )
    codes = rng.integers(0, 4, (2, 60))
    assert agreement(*codes, 4).equals(agreement(*codes[:, order], 4))


def decide(outcome, score):
    return decision_curve(outcome, score, np.linspace(0.05, 0.95, 19))


def numbers(result) -> np.ndarray:
    values = np.ravel(result.rows()) if hasattr(result, "rows") else list(vars(result).values())
    return np.array([v for v in values if isinstance(v, (int, float))], dtype=float)


@FEW
@given(SEEDS, st.sampled_from([1 / 365.25, 0.1, 7.0, 24.0]))
def test_the_unit_of_time_changes_neither_cox_nor_kaplan_meier_nor_c(seed, factor):
    time, status, _, x, stratum, _ = cohort(seed)
    event = status == 1
    first, second = fit(time, event, x, strata=stratum), fit(time * factor, event, x, strata=stratum)
    np.testing.assert_array_equal(first.coefficients, second.coefficients)
    assert kaplan_meier(time, event).drop("time_days").equals(kaplan_meier(time * factor, event).drop("time_days"))
    assert harrell_c(time, event, x[:, 2]) == harrell_c(time * factor, event, x[:, 2])


@FEW
@given(SEEDS)
def test_auc_is_the_share_of_pairs_in_order(seed):
    rng = np.random.default_rng(seed)
    outcome, score = rng.random(50) < 0.3, rng.integers(0, 12, 50)
    outcome[:2] = True, False
    difference = np.subtract.outer(score[outcome], score[~outcome])
    assert auc(outcome, score).auc == pytest.approx(np.mean((difference > 0) + (difference == 0) / 2), abs=1e-12)
    assert paired_auc_difference(outcome, score, score).p == 1


@FEW
@given(SEEDS, st.sampled_from([2, 4, 1000]))
def test_c_and_its_error_are_those_of_all_pairs_written_out(seed, n_levels):
    time, status, _, _, stratum, _ = cohort(seed, 40)
    event, score = status == 1, np.random.default_rng(seed).integers(0, n_levels, 40)
    pairs, wins = np.zeros((40, 40)), np.zeros((40, 40))
    for i, j in combinations(range(40), 2):
        for a, b in ((i, j), (j, i)):
            later = time[b] > time[a] or (time[b] == time[a] and not event[b])
            if event[a] and later and stratum[a] == stratum[b]:
                pairs[i, j] = pairs[j, i] = 1
                wins[i, j] = wins[j, i] = (score[a] > score[b]) + (score[a] == score[b]) / 2
    found = harrell_c(time, event, score, stratum)
    c = wins.sum() / pairs.sum()
    influence = (wins - c * pairs).sum(axis=1) / (pairs.sum() / 2)
    assert found.harrell_c == pytest.approx(c, abs=1e-12)
    assert found.harrell_c_se == pytest.approx(np.sqrt((influence**2).sum()), abs=1e-12)


def slow_efron(beta, time, event, x, stratum, weight):
    """Efron's log partial likelihood, one event time after another."""
    risk, total = weight * np.exp(x @ beta), 0.0
    for s in np.unique(stratum):
        for t in np.unique(time[event & (stratum == s)]):
            died = event & (time == t) & (stratum == s)
            at_risk, d = (time >= t) & (stratum == s), died.sum()
            total += (weight[died] * (x[died] @ beta)).sum()
            for i in range(d):
                total -= weight[died].mean() * np.log(risk[at_risk].sum() - i / d * risk[died].sum())
    return total


@settings(max_examples=8, deadline=None)
@given(SEEDS, st.booleans())
def test_cox_maximises_efrons_likelihood_written_out(seed, weighted):
    time, status, _, x, stratum, _ = cohort(seed, 60)
    event, x = status == 1, x - [0, 0, 60]
    weight = np.random.default_rng(seed).uniform(0.5, 2, 60) if weighted else np.ones(60)
    fitted = fit(time, event, x, strata=stratum, weights=weight)
    slow = minimize(lambda b: -slow_efron(b, time, event, x, stratum, weight), np.zeros(3), method="BFGS", tol=1e-8)
    assert fitted.loglik_null == pytest.approx(slow_efron(np.zeros(3), time, event, x, stratum, weight), abs=1e-9)
    assert fitted.loglik == pytest.approx(-slow.fun, abs=1e-7)
    assert fitted.loglik == pytest.approx(slow_efron(fitted.coefficients, time, event, x, stratum, weight), abs=1e-9)
    np.testing.assert_allclose(fitted.coefficients, slow.x, atol=2e-4)
