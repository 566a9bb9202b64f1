"""Edges of the estimates: nobody, one class, one category, separation; and the columns each table has."""

import numpy as np
import polars as pl
import pytest

from cohort_scorer.errors import ConvergenceError, EmptyCohortError
from cohort_scorer.statistics.agreement import agreement
from cohort_scorer.statistics.calibration import calibration, calibration_curve, observed_expected
from cohort_scorer.statistics.concordance import harrell_c
from cohort_scorer.statistics.cox import fit
from cohort_scorer.statistics.crosscheck import difference_from_lifelines
from cohort_scorer.statistics.cumulative_incidence import cumulative_incidence
from cohort_scorer.statistics.discrimination import (
    AUC,
    auc,
    brier,
    decision_curve,
    mean_of_folds,
    operating_point,
    paired_auc_difference,
)
from cohort_scorer.statistics.kaplan_meier import at_risk, event_rate, kaplan_meier, reverse_kaplan_meier_median
from cohort_scorer.statistics.logrank import holm, logrank
from cohort_scorer.statistics.prevalence import rogan_gladen
from cohort_scorer.statistics.proportions import garwood, wilson
from cohort_scorer.statistics.roc import roc

TIME = np.arange(1.0, 13)
EVENT = np.array([1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1], dtype=bool)
GROUP = np.array([0, 1, 2] * 4)


def test_auc_of_one_class_is_null():
    assert auc([True, True], [0.1, 0.2]) == AUC(None, None, None, 2, 2, None)
    assert paired_auc_difference([False], [0.1], [0.2]).auc_difference is None


def test_auc_with_one_case_has_no_interval():
    found = auc([True, False, False], [2, 1, 3])
    assert (found.auc, found.lower, found.upper) == (0.5, None, None)
    assert paired_auc_difference([True, False, False], [2, 1, 3], [3, 2, 1]).p is None


def test_auc_interval_stays_within_0_and_1():
    found = auc([True, True, False, False, True], [0.9, 0.8, 0.7, 0.85, 0.95])
    assert found.upper == 1
    assert auc([True, True, False, False], [3, 4, 1, 2]).lower == 1


def test_mean_of_folds_is_the_plain_mean_and_skips_folds_of_one_class():
    parts = [auc(EVENT, TIME), auc(EVENT, -TIME), auc([True], [1.0])]
    found = mean_of_folds(parts)
    assert found.auc == pytest.approx(0.5)
    assert found.n == 24
    assert found.se == pytest.approx(parts[0].se / np.sqrt(2))
    assert mean_of_folds([]).auc is None


def test_a_score_with_missing_values_is_refused_with_their_number():
    with pytest.raises(ValueError, match="score must be finite, but 1 of 2"):
        auc([True, False], [1.0, np.nan])
    with pytest.raises(ValueError, match="one length"):
        auc([True], [1.0, 2.0])
    with pytest.raises(ValueError, match="True or False"):
        auc([2, 0], [1.0, 2.0])


def test_polars_series_are_taken_as_they_are():
    assert auc(pl.Series([True, False]), pl.Series([2, 1])).auc == 1


def test_operating_point_leaves_empty_denominators_null():
    found = operating_point([True, True, True, False], [True, True, False, False])
    assert (found.sensitivity, found.specificity, found.ppv, found.npv) == (2 / 3, 1, 1, 0.5)
    assert (found.predicted_margin, found.true_margin) == (0.5, 0.75)
    nobody_called = operating_point([True, False], [False, False])
    assert (nobody_called.ppv, nobody_called.ppv_lower, nobody_called.npv) == (None, None, 0.5)
    assert operating_point([], []).true_margin is None


def test_net_benefit_is_that_of_the_two_by_two_table():
    table = decision_curve([1, 1, 0, 0], [0.9, 0.2, 0.5, 0.1], [0.2, 0.5])
    assert table.columns == ["probability", "net_benefit", "treat_all"]
    assert table["net_benefit"].to_list() == pytest.approx([2 / 4 - 1 / 4 * 0.25, 1 / 4 - 1 / 4])
    assert table["treat_all"].to_list() == pytest.approx([0.5 - 0.5 * 0.25, 0])
    with pytest.raises(ValueError, match="grid"):
        decision_curve([1, 0], [0.5, 0.5], [1.0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        brier([1, 0], [0.5, 1.5])


def test_agreement_is_perfect_with_itself_and_null_in_one_category():
    assert agreement([0, 1, 2], [0, 1, 2], 3)["estimate"].to_list() == [1, 1, 1]
    assert agreement([1, 1], [1, 1], 3)["estimate"].to_list() == [1, None, None]
    assert agreement([], [], 3)["estimate"].to_list() == [None, None, None]
    with pytest.raises(ValueError, match="from 0 to 2"):
        agreement([3], [0], 3)


def test_calibration_of_separated_outcomes_is_null_with_a_reason():
    table = calibration([0] * 10 + [1] * 10, np.linspace(0.05, 0.95, 20))
    assert table.columns == ["n", "statistic", "estimate", "lower", "upper", "reason"]
    rows = {row["statistic"]: row for row in table.iter_rows(named=True)}
    assert rows["observed_expected"]["estimate"] == pytest.approx(1)
    assert rows["intercept"]["estimate"] == pytest.approx(0, abs=1e-9)
    for name in ("slope", "ici"):
        assert rows[name]["estimate"] is None
        assert "separate" in rows[name]["reason"]


def test_calibration_of_one_class_or_one_probability_is_null_with_a_reason():
    assert calibration([0, 0], [0.2, 0.3])["reason"].to_list()[1:] == ["nobody with the outcome"] * 3
    constant = calibration([0, 1, 0, 1], [0.5] * 4)
    assert constant["estimate"].to_list() == pytest.approx([1, 0, None, None], abs=1e-9)
    assert calibration([], [])["estimate"].to_list() == [None] * 4


def test_calibration_survives_probabilities_of_0_and_1():
    rng = np.random.default_rng(1)
    p = np.concatenate([[0, 1], rng.random(300)])
    table = calibration(rng.random(302) < p, p)
    assert table["estimate"].null_count() == 0


def test_observed_over_expected_has_no_interval_where_an_outcome_is_absent():
    assert observed_expected([0, 0], [0.2, 0.3]) == (0, None, None, "no interval: nobody with the outcome")
    assert observed_expected([1, 1], [0.5, 0.5]) == (2, None, None, "no interval: nobody without the outcome")
    assert observed_expected([], []) == (None, None, None, "no patients")


CURVELESS = [
    ([0] * 50, np.linspace(0.1, 0.9, 50), "nobody with the outcome"),
    ([1] * 50, np.linspace(0.1, 0.9, 50), "nobody without the outcome"),
    ([0, 1] * 25, [0.5] * 50, "coincide"),
    ([0] * 25 + [1] * 25, np.linspace(0.1, 0.9, 50), "separate"),
    ([0, 1] * 10, np.linspace(0.1, 0.9, 20), "too few patients"),
    ([0, 1] * 25, np.linspace(0.501, 0.509, 50), "too narrow a range"),
]


@pytest.mark.parametrize(("outcome", "probability", "reason"), CURVELESS)
def test_a_calibration_curve_that_cannot_be_is_one_row_with_the_reason(outcome, probability, reason):
    table = calibration_curve(outcome, probability)
    assert table.drop("reason").row(0) == (None,) * 4
    assert len(table) == 1
    assert reason in table["reason"][0]


def test_a_calibration_curve_tells_no_patients_probability_and_has_ten_beyond_each_end():
    rng = np.random.default_rng(1)
    for n in (30, 400, 5000):
        p = rng.beta(1, 6, n)
        outcome = rng.random(n) < p
        outcome[:2] = True, False
        points = calibration_curve(outcome, p)["probability"]
        assert set(points.round(3)) == set(points)
        assert min((p <= points.min()).sum(), (p >= points.max()).sum()) >= max(10, n / 100)


def test_a_curve_of_one_patient_with_the_outcome_has_no_bounds_and_of_none_no_rows():
    rng = np.random.default_rng(1)
    alone = roc([0, 1, 0], [0.1, 0.2, 0.3], rng)
    assert alone.select("lower", "upper").null_count().row(0) == (101, 101)
    assert alone["sensitivity"].to_list() == [1.0] * 51 + [0.0] * 50
    for outcome in ([0, 0], [1, 1], []):
        empty = roc(outcome, [0.1, 0.2][: len(outcome)], rng)
        assert empty.is_empty()
        assert empty.schema == alone.schema
    with pytest.raises(ValueError, match="finite"):
        roc([0, 1], [0.1, np.nan], rng)


def test_a_perfect_score_has_sensitivity_1_and_a_constant_one_lies_on_the_diagonal():
    outcome = [0] * 40 + [1] * 30
    perfect = roc(outcome, outcome, np.random.default_rng(1))
    assert perfect.select(pl.all().exclude("specificity").min()).row(0) == (1, 1, 1)
    constant = roc(outcome, [0.5] * 70, np.random.default_rng(1))
    np.testing.assert_allclose(constant["sensitivity"], 1 - constant["specificity"], atol=1e-12)


def test_kaplan_meier_refuses_nobody_and_keeps_time_0_once():
    with pytest.raises(EmptyCohortError):
        kaplan_meier([], [])
    with pytest.raises(EmptyCohortError):
        cumulative_incidence([], [])
    assert kaplan_meier([0, 1], [1, 0])["time_days"].to_list() == [0, 1]
    assert kaplan_meier([0, 1], [1, 0])["survival"].to_list() == [0.5, 0.5]


def test_kaplan_meier_without_events_is_1_and_has_bounds_at_time_0_only():
    curve = kaplan_meier([3, 5], [0, 0])
    assert curve["survival"].to_list() == [1, 1, 1]
    assert curve["lower"].to_list() == curve["upper"].to_list() == [1, None, None]


def test_cumulative_incidences_and_survival_sum_to_1():
    status = np.where(EVENT, 1 + (GROUP == 0), 0)
    table = cumulative_incidence(TIME, status)
    assert table.columns == ["cause", "time_days", "incidence", "lower", "upper"]
    free = kaplan_meier(TIME, status > 0)["survival"]
    total = table.filter(cause=1)["incidence"] + table.filter(cause=2)["incidence"]
    np.testing.assert_allclose(total, 1 - free, atol=1e-14)


def test_numbers_at_risk_of_nobody_are_zero():
    assert at_risk([], [], [0, 1]).row(1) == (1, 0, 0, 0)


def test_a_rate_without_follow_up_is_null():
    assert event_rate([], []).rate_per_1000_py is None


def test_the_reverse_median_is_null_where_events_end_follow_up_first():
    assert reverse_kaplan_meier_median([1, 2, 3], [1, 1, 1]) is None


def test_negative_times_are_refused():
    with pytest.raises(ValueError, match="time must be >= 0, but 1"):
        kaplan_meier([-1, 2], [1, 0])


def test_logrank_leaves_out_empty_groups_and_has_every_pair():
    table = logrank(TIME, EVENT, GROUP, ["a", "b", "c", "d"])
    assert table.columns == ["test", "category_a", "category_b", "chi2", "df", "p", "p_holm"]
    assert table["df"].to_list() == [2, 1, 1, 1, 1]
    assert table.rows()[2][1:3] == ("a", "b")


def test_logrank_of_one_group_or_without_events_is_null():
    assert logrank(TIME, EVENT, np.zeros(12), ["a", "b"])["chi2"].to_list() == [None, None]
    assert logrank(TIME, np.zeros(12), GROUP, ["a", "b", "c"])["p"].null_count() == 5
    assert logrank([], [], [], ["a", "b"])["chi2"].to_list() == [None, None]


def test_holm_skips_missing_p_values():
    assert holm([0.04, None, 0.01]) == [0.04, None, 0.02]


def test_cox_names_the_category_without_events():
    rng = np.random.default_rng(3)
    group = np.arange(300) % 3
    event = (rng.random(300) < 0.5) & (group != 2)
    x = np.column_stack([group == 1, group == 2]).astype(float)
    with pytest.raises(ConvergenceError, match=r"term 1 \(CAC 400\+\)"):
        fit(rng.exponential(size=300), event, x, term_names=["CAC 100-399", "CAC 400+"])


def test_cox_refuses_a_reference_category_without_events():
    rng = np.random.default_rng(4)
    group = np.arange(300) % 3
    event = (rng.random(300) < 0.5) & (group != 0)
    with pytest.raises(ConvergenceError):
        fit(rng.exponential(size=300), event, np.column_stack([group == 1, group == 2]))


def test_cox_refuses_complete_separation():
    with pytest.raises(ConvergenceError, match="term 0"):
        fit(TIME, EVENT, -TIME[:, None])


@pytest.mark.parametrize(
    ("columns", "term"),
    [
        (np.column_stack([TIME % 5, np.ones(12)]), "term 1 is the same"),
        (np.column_stack([GROUP == 0, GROUP == 1, GROUP == 2]), "term 2 is constant within strata or follows"),
    ],
)
def test_cox_names_a_redundant_term(columns, term):
    with pytest.raises(ConvergenceError, match=term):
        fit(TIME, EVENT, columns)


def test_cox_names_a_term_constant_within_strata():
    with pytest.raises(ConvergenceError, match="term 0 is constant within strata"):
        fit(TIME, EVENT, (GROUP == 0)[:, None], strata=GROUP)


def test_cox_without_events_or_patients_is_an_empty_cohort():
    for n in (0, 12):
        with pytest.raises(EmptyCohortError):
            fit(TIME[:n], np.zeros(n), TIME[:n, None])


def test_cox_takes_columns_of_any_scale():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(200, 2))
    time = rng.exponential(np.exp(-x[:, 0]))
    plain = fit(time, np.ones(200), x)
    scaled = fit(time, np.ones(200), x * [1e-6, 1e6] + [2000, 1e9])
    np.testing.assert_allclose(scaled.coefficients * [1e-6, 1e6], plain.coefficients, rtol=1e-6)


def test_equal_covariates_have_exactly_equal_predictors():
    rng = np.random.default_rng(6)
    x = np.tile(rng.normal(size=(101, 5)), (3, 1))
    predictor = fit(rng.exponential(size=303), np.ones(303), x).linear_predictor
    assert (predictor[:101] == predictor[101:202]).all()
    assert (predictor[:101] == predictor[202:]).all()


def test_a_stratum_without_events_changes_nothing():
    x = np.sin(TIME)[:, None]
    alone = fit(TIME, EVENT, x)
    more = fit(np.tile(TIME, 2), np.append(EVENT, np.zeros(12)), np.tile(x, (2, 1)), strata=np.repeat([0, 1], 12))
    np.testing.assert_allclose(more.coefficients, alone.coefficients, rtol=1e-10)


def test_cox_table_holds_wald_intervals():
    fitted = fit(TIME, EVENT, np.column_stack([np.sin(TIME), np.cos(TIME)]))
    table = fitted.table()
    assert table.columns == ["coef", "se", "hr", "lower", "upper", "z", "p"]
    np.testing.assert_allclose(np.sqrt(table["lower"] * table["upper"]), table["hr"])
    assert fitted.aic == pytest.approx(4 - 2 * fitted.loglik)
    assert fitted.lr_chi2 >= 0
    assert 0 <= fitted.p <= 1


def test_cox_refuses_weights_of_zero_and_covariates_of_one_dimension():
    with pytest.raises(ValueError, match="weights"):
        fit(TIME, EVENT, np.sin(TIME)[:, None], weights=np.zeros(12))
    with pytest.raises(ValueError, match="two dimensions"):
        fit(TIME, EVENT, TIME)


def test_there_is_nothing_to_check_without_terms():
    none = np.empty((12, 0))
    assert difference_from_lifelines(fit(TIME, EVENT, none), TIME, EVENT, none) is None


def test_concordance_without_comparable_pairs_is_null():
    assert harrell_c([1, 2], [0, 0], [1, 2]).c is None
    assert harrell_c([], [], []).c is None
    assert harrell_c([3, 3], [1, 1], [1, 2]).c is None


def test_concordance_of_a_perfect_score_is_1_and_of_a_constant_one_half():
    assert harrell_c(TIME, EVENT, -TIME).c == 1
    assert harrell_c(TIME, EVENT, np.zeros(12)).c == 0.5


def test_prevalence_needs_a_test_better_than_chance():
    found = rogan_gladen(10, 100, 0.4, 50, 0.6, 50)
    assert found.prevalence is None
    assert "not above 1" in found.reason
    assert rogan_gladen(0, 0, 0.9, 50, 0.9, 50).prevalence is None
    with pytest.raises(ValueError, match="n_positive"):
        rogan_gladen(11, 10, 0.9, 50, 0.9, 50)


def test_impossible_counts_and_levels_are_refused():
    with pytest.raises(ValueError, match="between 0 and n"):
        wilson(3, 2)
    with pytest.raises(ValueError, match=">= 0"):
        garwood(-1)
    with pytest.raises(ValueError, match="level"):
        wilson(1, 2, level=95)
    assert np.isnan(wilson(0, 0)).all()
