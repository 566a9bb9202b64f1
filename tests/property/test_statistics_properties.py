"""What must hold for any data: row order, units of time, and slow definitions written out."""

from fractions import Fraction
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import norm

from cohort_scorer.statistics.agreement import agreement
from cohort_scorer.statistics.calibration import calibration, calibration_curve
from cohort_scorer.statistics.concordance import harrell_c
from cohort_scorer.statistics.cox import fit
from cohort_scorer.statistics.cumulative_incidence import cumulative_incidence
from cohort_scorer.statistics.discrimination import auc, decision_curve, paired_auc_difference
from cohort_scorer.statistics.kaplan_meier import kaplan_meier
from cohort_scorer.statistics.logrank import logrank
from cohort_scorer.statistics.roc import roc

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
    assert c.c == again.c
    assert c.se == pytest.approx(again.se, rel=1e-12)


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


def slow_sensitivity(outcome, score, specificity: Fraction) -> Fraction:
    """Of the polygon through every cut: the highest point at this specificity, in fractions."""
    cuts = sorted(set(score.tolist()), reverse=True)
    corners = [(Fraction(0), Fraction(0))]
    for cut in cuts:
        called = score >= cut
        shares = (Fraction(int(called[group].sum()), int(group.sum())) for group in (~outcome, outcome))
        corners.append(tuple(shares))
    x, found = 1 - specificity, []
    for (x0, y0), (x1, y1) in pairwise(corners):
        if x0 <= x <= x1:
            found.append(y1 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0))
    return max(found)


@FEW
@given(SEEDS, st.sampled_from([3, 20, 10**6]))
def test_the_roc_curve_falls_with_specificity_and_is_the_polygon_through_every_cut(seed, n_levels):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 80))
    outcome, score = rng.random(n) < 0.4, rng.integers(0, n_levels, n)
    outcome[:2] = True, False
    found = roc(outcome, score, rng, replicates=20)
    slow = [float(slow_sensitivity(outcome, score, Fraction(percent, 100))) for percent in range(101)]
    np.testing.assert_allclose(found["sensitivity"], slow, atol=1e-12)
    for name in set(found.columns) - {"specificity"}:
        assert found[name].null_count() in (0, 101)
        assert found[name].drop_nulls().is_sorted(descending=True)
    assert found["sensitivity"][0] == 1
    assert (found["lower"].drop_nulls() <= found["upper"].drop_nulls()).all()


@FEW
@given(SEEDS)
def test_row_order_and_a_monotone_change_of_the_score_leave_the_roc_curve(seed):
    rng = np.random.default_rng(seed)
    outcome, score, order = rng.random(60) < 0.4, rng.integers(1, 20, 60) / 20, rng.permutation(60)
    outcome[:2] = True, False
    first = roc(outcome, score, np.random.default_rng(1), replicates=50)
    assert first.equals(roc(outcome[order], np.exp(score[order]), np.random.default_rng(1), replicates=50))


def test_bootstrap_bounds_cover_the_sensitivity_of_the_population():
    rng, within = np.random.default_rng(1), np.zeros(3)
    specificity = [50, 80, 90]
    true = norm.cdf(1 - norm.ppf(np.array(specificity) / 100))
    for _ in range(400):
        outcome = np.repeat([True, False], [150, 250])
        found = roc(outcome, rng.normal(outcome), rng, replicates=300)
        lower, upper = (found[name].to_numpy()[specificity] for name in ("lower", "upper"))
        within += (lower <= true) & (true <= upper)
    # 0.95 with a Monte Carlo standard error of 0.011.
    assert (np.abs(within / 400 - 0.95) < 0.035).all()


@FEW
@given(SEEDS)
def test_the_mean_distance_of_the_calibration_curve_is_the_integrated_calibration_index(seed):
    rng = np.random.default_rng(seed)
    p = np.repeat(np.arange(5, 96, 5) / 100, 12)
    outcome = rng.random(len(p)) < p**1.5
    curve = calibration_curve(outcome, p)
    found = dict(curve.select("probability", "observed").iter_rows())
    distance = np.mean([abs(value - found[value]) for value in p])
    ici = calibration(outcome, p).filter(statistic="ici")["estimate"][0]
    assert distance == pytest.approx(ici, abs=1e-12)
    assert ((curve["lower"] < curve["observed"]) & (curve["observed"] < curve["upper"])).all()


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
    assert found.c == pytest.approx(c, abs=1e-12)
    assert found.se == pytest.approx(np.sqrt((influence**2).sum()), abs=1e-12)


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
