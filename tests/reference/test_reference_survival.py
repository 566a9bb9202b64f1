"""Survival estimates equal R's survival package (values/survival.json, made by r/survival.R)."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cohort_scorer.statistics.concordance import harrell_c
from cohort_scorer.statistics.cox import CoxFit, fit
from cohort_scorer.statistics.crosscheck import difference_from_lifelines
from cohort_scorer.statistics.cumulative_incidence import cumulative_incidence
from cohort_scorer.statistics.kaplan_meier import (
    DAYS_PER_YEAR,
    at_risk,
    event_rate,
    kaplan_meier,
    reverse_kaplan_meier_median,
)
from cohort_scorer.statistics.logrank import logrank
from cohort_scorer.statistics.proportions import garwood

HERE = Path(__file__).parent
R = json.loads((HERE / "values/survival.json").read_text())
LUNG = pl.read_csv(HERE / "fixtures/lung.csv").drop_nulls("ph_ecog")
TIED = pl.read_csv(HERE / "fixtures/tied.csv").with_columns(event=pl.col("status") == 1)
LUNG_X = LUNG.select("age", "sex", "ph_ecog").to_numpy()
TIED_X = np.column_stack([TIED["true_code"].to_numpy() == k for k in (1, 2, 3)] + [TIED["age"].to_numpy()])


def assert_close(found, expected, tolerance=1e-10):
    """Equal within the tolerance, relative above 1 and absolute below; None and NaN are one."""
    found = np.array([np.nan if v is None else v for v in np.ravel(np.asarray(found, dtype=object))], dtype=float)
    expected = np.array([np.nan if v is None else v for v in np.ravel(np.asarray(expected, dtype=object))], dtype=float)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def assert_cox(fitted: CoxFit, expected):
    assert_close(fitted.coefficients, expected["coef"])
    assert_close(fitted.standard_errors, expected["se"])
    assert_close([fitted.loglik_null, fitted.loglik], expected["loglik"])
    if "var" in expected:
        assert_close(fitted.covariance, expected["var"])


def test_cox_of_lung_equals_the_published_oracle():
    fitted = fit(LUNG["time"], LUNG["event"], LUNG_X)
    assert (fitted.n, fitted.n_events) == (227, 164)
    assert_close(fitted.coefficients, [0.01106676456, -0.55261239570, 0.46372847537], 5e-10)
    assert_close([fitted.loglik_null, fitted.loglik], [-744.4804558, -729.2301214], 1e-9)
    assert harrell_c(LUNG["time"], LUNG["event"], fitted.linear_predictor).c == pytest.approx(0.637135493, abs=5e-10)


def test_cox_of_lung_equals_r_and_lifelines():
    fitted = fit(LUNG["time"], LUNG["event"], LUNG_X)
    assert_cox(fitted, R["cox_lung"])
    assert difference_from_lifelines(fitted, LUNG["time"], LUNG["event"], LUNG_X) < 1e-8


@pytest.mark.parametrize("strata", [None, "stratum"])
def test_cox_with_heavy_ties_equals_r(strata):
    labels = None if strata is None else TIED[strata]
    fitted = fit(TIED["time"], TIED["event"], TIED_X, strata=labels)
    expected = R["cox_tied" if strata is None else "cox_tied_strata"]
    assert_cox(fitted, expected)
    concordance = harrell_c(TIED["time"], TIED["event"], fitted.linear_predictor, labels)
    assert_close([concordance.c, concordance.se], [expected["c"], expected["c_se"]])
    assert difference_from_lifelines(fitted, TIED["time"], TIED["event"], TIED_X, strata=labels) < 1e-8


def test_weighted_cox_equals_r():
    fitted = fit(TIED["time"], TIED["event"], TIED_X, strata=TIED["stratum"], weights=TIED["weight"])
    assert_cox(fitted, R["cox_tied_weights"])


def test_cox_without_terms_has_the_null_likelihood_of_r():
    fitted = fit(TIED["time"], TIED["event"], np.empty((len(TIED), 0)), strata=TIED["stratum"])
    assert_close([fitted.loglik, fitted.loglik_null], [R["cox_null"]["loglik"]] * 2)
    assert fitted.df == 0
    assert fitted.p is None


@pytest.mark.parametrize(
    ("score", "strata", "name"),
    [("true_code", None, "c_category"), ("age", None, "c_age"), ("age", "stratum", "c_age_strata")],
)
def test_concordance_equals_r(score, strata, name):
    found = harrell_c(TIED["time"], TIED["event"], TIED[score], None if strata is None else TIED[strata])
    assert_close([found.c, found.se], [R[name]["c"], R[name]["se"]])


@pytest.mark.parametrize(
    ("time", "event", "name"),
    [
        (LUNG["time"], LUNG["event"], "km_lung"),
        (TIED["time"], TIED["event"], "km_tied"),
        ([1, 2, 2, 3, 4, 5, 5], [0, 0, 1, 1, 0, 1, 1], "km_edge"),
    ],
)
def test_kaplan_meier_and_its_bounds_equal_r(time, event, name):
    curve, expected = kaplan_meier(time, event), R[name]
    assert_close(curve["time_days"], expected["time"])
    assert curve["n_at_risk"].to_list() == expected["n_risk"]
    assert curve["n_events"].to_list() == expected["n_event"]
    assert curve["n_censored"].to_list() == expected["n_censor"]
    assert_close(curve["survival"], expected["surv"])
    assert_close(curve["lower"], expected["lower"])
    assert_close(curve["upper"], expected["upper"])


def test_numbers_at_risk_equal_r():
    example = at_risk(np.arange(1, 6) * DAYS_PER_YEAR, [1, 0, 1, 0, 1], [0, 2, 2.5, 4])
    assert example["n_at_risk"].to_list() == R["at_risk_example"]["n_risk"] == [5, 4, 3, 2]
    assert example["cumulative_events"].to_list() == R["at_risk_example"]["n_event"]
    assert example["cumulative_censored"].to_list() == R["at_risk_example"]["n_censor"]
    lung = at_risk(LUNG["time"], LUNG["event"], [0, 0.25, 0.5, 1, 2])
    assert lung["n_at_risk"].to_list() == R["at_risk_lung"]["n_risk"]
    assert lung["cumulative_events"].to_list() == R["at_risk_lung"]["n_event"]
    assert lung["cumulative_censored"].to_list() == R["at_risk_lung"]["n_censor"]


def test_reverse_median_equals_r_also_where_the_curve_is_flat_at_one_half():
    assert reverse_kaplan_meier_median(LUNG["time"], LUNG["event"]) == R["reverse_median"]["lung"]
    assert reverse_kaplan_meier_median(TIED["time"], TIED["event"]) == R["reverse_median"]["tied"]
    assert reverse_kaplan_meier_median([1, 2, 3, 4], [0, 0, 0, 0]) == R["reverse_median"]["flat"]


@pytest.mark.parametrize(
    ("data", "group", "strata", "name"),
    [
        (LUNG, "ph_ecog", None, "logrank_lung"),
        (TIED, "true_code", None, "logrank_tied"),
        (TIED, "true_code", "stratum", "logrank_tied_strata"),
    ],
)
def test_logrank_equals_survdiff(data, group, strata, name):
    labels = None if strata is None else data[strata]
    table, expected = logrank(data["time"], data["event"], data[group], ["a", "b", "c", "d"], labels), R[name]
    assert_close(table["chi2"], [expected["overall"], expected["trend"], *expected["pairs"]])
    assert table["p"][0] == pytest.approx(expected["overall_p"], rel=1e-9)
    assert_close(table["p_holm"][2:], expected["pairs_holm"])
    assert table["df"].to_list() == [3] + [1] * 7


def test_tarone_trend_of_lung_equals_the_published_oracle():
    table = logrank(LUNG["time"], LUNG["event"], LUNG["ph_ecog"], ["0", "1", "2", "3"])
    assert table["chi2"][1] == pytest.approx(17.87512076, abs=5e-9)


@pytest.mark.parametrize(
    ("time", "status", "name"),
    [(TIED["time"], TIED["status"], "aj_tied"), ([1, 1, 2, 3, 3, 4, 5], [0, 1, 0, 2, 1, 1, 2], "aj_edge")],
)
def test_cumulative_incidence_with_ties_equals_r(time, status, name):
    table, expected = cumulative_incidence(time, status), R[name]
    for cause in (1, 2):
        rows = table.filter(cause=cause)
        assert_close(rows["time_days"], expected["time"])
        for ours, theirs in (("incidence", "incidence"), ("lower", "lower"), ("upper", "upper")):
            assert_close(rows[ours], [row[cause - 1] for row in expected[theirs]])


def test_garwood_equals_poisson_test():
    lower, upper = garwood([0, 1, 7, 250])
    assert_close(np.column_stack([lower, upper]), R["garwood"], 1e-9)
    assert_close(garwood(7, level=0.9), R["garwood_90"], 1e-9)


def test_no_events_in_1000_person_years_bound_the_rate_by_3_689():
    rate = event_rate([DAYS_PER_YEAR * 1000], [0])
    assert (rate.rate_per_1000_py, rate.lower) == (0, 0)
    assert rate.upper == pytest.approx(3.689, abs=5e-4)
