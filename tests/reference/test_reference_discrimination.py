"""Discrimination, calibration, agreement and prevalence equal R (values/discrimination.json) and published examples."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cohort_scorer.statistics.agreement import agreement
from cohort_scorer.statistics.calibration import calibration, calibration_curve
from cohort_scorer.statistics.discrimination import auc, brier, paired_auc_difference
from cohort_scorer.statistics.prevalence import rogan_gladen
from cohort_scorer.statistics.proportions import wilson
from cohort_scorer.statistics.roc import roc

HERE = Path(__file__).parent
R = json.loads((HERE / "values/discrimination.json").read_text())
TIED = pl.read_csv(HERE / "fixtures/tied.csv")


@pytest.mark.parametrize("score", ["a", "b"])
def test_auc_equals_proc(score):
    found, expected = auc(TIED["disease"], TIED[f"score_{score}"]), R[f"auc_{score}"]
    np.testing.assert_allclose([found.auc, found.lower, found.upper], [expected["auc"], *expected["ci"]], atol=1e-12)


def test_paired_difference_equals_proc():
    found = paired_auc_difference(TIED["disease"], TIED["score_a"], TIED["score_b"])
    np.testing.assert_allclose([found.lower, found.upper, found.p], [*R["paired"]["ci"], R["paired"]["p"]], atol=1e-12)
    assert found.auc_difference == pytest.approx(R["auc_a"]["auc"] - R["auc_b"]["auc"], abs=1e-12)


def test_sensitivities_equal_proc():
    found = roc(TIED["disease"], TIED["score_a"], np.random.default_rng(1), replicates=10)
    np.testing.assert_allclose(found["sensitivity"], R["roc_a"]["sensitivity"], atol=1e-12)


def test_bounds_of_sensitivities_are_those_of_proc_within_the_noise_of_resampling():
    found = roc(TIED["disease"], TIED["score_a"], np.random.default_rng(1)).select("lower", "upper").to_numpy()
    # Sensitivities lie on a grid of 1 / 122; a quantile of 2,000 resamples has a standard error of about 0.003.
    assert np.abs(found - R["roc_a"]["bounds"]).max() < 2 / 122
    assert np.abs((found - R["roc_a"]["bounds"]).mean(axis=0)).max() < 0.002


def test_wilson_equals_prop_test():
    found = np.column_stack(wilson(R["wilson"]["k"], R["wilson"]["n"]))
    np.testing.assert_allclose(found, R["wilson"]["rows"], atol=1e-12)


@pytest.mark.parametrize("statistic", ["observed_expected", "intercept", "slope"])
def test_calibration_equals_glm(statistic):
    row = calibration(TIED["disease"], TIED["score_a"]).row(by_predicate=pl.col("statistic") == statistic, named=True)
    found = [row["estimate"], row["lower"], row["upper"]]
    np.testing.assert_allclose(found, R["calibration"][statistic], atol=1e-10)


def test_integrated_calibration_index_equals_glm_on_a_natural_spline():
    row = calibration(TIED["disease"], TIED["score_a"]).row(by_predicate=pl.col("statistic") == "ici", named=True)
    assert row["estimate"] == pytest.approx(R["calibration"]["ici"], abs=1e-10)
    assert row["lower"] is None


def test_calibration_curve_and_its_band_equal_predict_glm():
    found = calibration_curve(TIED["disease"], TIED["score_a"])
    percent = (100 * found["probability"].to_numpy()).round().astype(int)
    assert percent.tolist() == list(range(5, 85))
    expected = np.array(R["calibration"]["curve"])[percent - 5]
    np.testing.assert_allclose(found.select("observed", "lower", "upper").to_numpy(), expected, atol=1e-10)


def test_brier_equals_r():
    assert brier(TIED["disease"], TIED["score_a"]) == pytest.approx(R["calibration"]["brier"], abs=1e-14)


def test_kappa_equals_the_delta_method():
    table = agreement(TIED["true_code"], TIED["predicted_code"], 4)
    assert table.row(0)[2:] == pytest.approx(R["kappa"]["accuracy"], abs=1e-12)
    for row, name in zip(table.rows()[1:], ("linear", "quadratic"), strict=True):
        kappa, se = R["kappa"][name]
        expected = [kappa, kappa - 1.959963984540054 * se, kappa + 1.959963984540054 * se]
        assert row[1] == f"kappa_{name}"
        assert row[2:] == pytest.approx(expected, abs=1e-12)


def test_prevalence_equals_the_example_of_lang_and_reiczigel():
    found = rogan_gladen(800, 2000, 0.8, 400, 0.7, 600)
    assert [found.prevalence, found.lower, found.upper] == pytest.approx([0.2000, 0.1238, 0.2730], abs=5e-5)
    none = rogan_gladen(600, 2000, 0.8, 400, 0.7, 600)
    assert [none.prevalence, none.lower, none.upper] == pytest.approx([0, 0, 0.0807], abs=5e-5)
