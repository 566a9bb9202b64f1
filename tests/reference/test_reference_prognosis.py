"""Comparisons of models, resamples and risks equal R (values/prognosis.json, made by r/prognosis.R)."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.special import expit
from scipy.stats import chi2 as chi_squared
from test_reference_survival import assert_close

from cohort_scorer.statistics import absolute_risk, bootstrap, comparison, cox, residuals
from cohort_scorer.statistics.comparison import Compared
from cohort_scorer.statistics.concordance import difference, harrell_c, uno_c
from cohort_scorer.statistics.horizons import Horizons
from cohort_scorer.statistics.regression import People, fit_model, models
from cohort_scorer.statistics.restricted_mean import restricted_mean

HERE = Path(__file__).parent
R = json.loads((HERE / "values/prognosis.json").read_text())
LUNG = pl.read_csv(HERE / "fixtures/lung.csv").drop_nulls("ph_ecog")
TIED = pl.read_csv(HERE / "fixtures/tied.csv").with_columns(event=pl.col("status") == 1)
COLON = pl.read_csv(HERE / "fixtures/colon.csv")
MGUS2 = pl.read_csv(HERE / "fixtures/mgus2.csv")
LEVELS = ("none", "low", "middle", "high")
TAU = 20.5


def people_of(frame: pl.DataFrame, predicted: str, true: str, covariate: str, stratum: str | None) -> People:
    """As an analysis set: two gradings of the same patients as the predicted and the true category."""
    names = dict(enumerate(LEVELS))
    return People.of(
        frame.select(
            pl.lit("one").alias("site") if stratum is None else pl.col(stratum).cast(pl.String).alias("site"),
            pl.lit("external").alias("score_origin"),
            pl.col("time").alias("time_days"),
            pl.col("status"),
            pl.col(predicted).replace_strict(names).alias("cxr_category"),
            pl.col(true).replace_strict(names).alias("true_category"),
            pl.col(covariate).cast(pl.Float64),
        ),
        LEVELS,
        0.95,
    )


def rows(people: People, covariate: str) -> pl.DataFrame:
    fits = {model.name: fit_model(people, model, penalised=False) for model in models(["true", "cxr"], [covariate])}
    score = {name: fitted.fit.linear_predictor for name, fitted in fits.items()}
    harrell = {name: harrell_c(people.time, people.event, values, people.strata) for name, values in score.items()}
    uno = {name: uno_c(people.time, people.event, values, TAU, people.strata) for name, values in score.items()}
    compared = Compared(fits, harrell, uno, {}, {}, ["true", "cxr"], 0.95)
    return pl.DataFrame(list(comparison.rows(compared, 0.02)), schema=comparison.COLUMNS)


@pytest.mark.parametrize(("stratum", "name"), [(None, "tied_pair"), ("stratum", "tied_pair_strata")])
def test_ratios_of_hazard_ratios_equal_a_stacked_coxph_and_differences_of_c_equal_concordance(stratum, name):
    found = rows(people_of(TIED, "predicted_code", "true_code", "age", stratum), "age")
    mine = found.filter(comparison="covariates+cxr v covariates+true")
    ratios = mine.filter(statistic="ratio_of_hazard_ratios")
    assert ratios["level"].to_list() == list(LEVELS[1:])
    assert_close(ratios["estimate"].log(), R[name]["stacked"]["log_ratio"], 1e-9)
    assert_close(ratios["se"], R[name]["stacked"]["se"], 1e-9)
    half = 1.959963984540054 * ratios["se"]
    assert_close(ratios["lower"], np.exp(ratios["estimate"].log() - half), 1e-12)
    assert_close(ratios["upper"], np.exp(ratios["estimate"].log() + half), 1e-12)
    for statistic, expected in (("harrell_c_difference", "harrell"), ("uno_c_difference", "uno")):
        row = mine.filter(statistic=statistic).row(0, named=True)
        assert_close([row["estimate"], row["se"]], R[name][expected])


def test_ratio_of_hazard_ratios_of_colon_equals_the_published_oracle():
    frame = COLON.with_columns(pl.col("differ") - 1, pl.max_horizontal("extent", pl.lit(2)) - 2)
    found = rows(people_of(frame, "differ", "extent", "age", None), "age").filter(statistic="ratio_of_hazard_ratios")
    assert_close(found["estimate"].log(), [-0.609783711921, -0.574479193210], 5e-10)
    assert_close(found["se"], [0.226594519926, 0.314524310806], 5e-10)
    assert_close(found["estimate"].log(), R["colon"]["log_ratio"], 1e-9)
    assert_close(found["se"], R["colon"]["se"], 1e-9)


def test_likelihood_ratios_of_nested_models_equal_anova_and_adequacy_follows_from_them():
    found = rows(people_of(TIED, "predicted_code", "true_code", "age", None), "age")
    tests = {row["comparison"]: row for row in found.filter(statistic="lr_chi2").iter_rows(named=True)}
    first, second, both = "covariates+cxr", "covariates+true", "covariates+true+cxr"
    for larger, smaller, name in (
        (first, "covariates", "m1_m0"),
        (second, "covariates", "m2_m0"),
        (both, second, "m3_m2"),
        (both, first, "m3_m1"),
    ):
        row, expected = tests[f"{larger} v {smaller}"], R["nested"][name]
        assert_close([row["estimate"], row["df"], row["p"]], [expected["chi2"], expected["df"], expected["p"]], 1e-9)
    assert set(tests) == {f"{first} v covariates", f"{second} v covariates", f"{both} v {second}", f"{both} v {first}"}
    share = dict(
        found.filter(pl.col("statistic").str.contains("adequacy|relative"))["statistic", "estimate"].iter_rows()
    )
    m1, m2 = R["nested"]["m1_m0"]["chi2"], R["nested"]["m2_m0"]["chi2"]
    whole = m2 + R["nested"]["m3_m2"]["chi2"]
    assert_close(
        [share["adequacy_predicted"], share["adequacy_true"], share["relative_lr"]],
        [m1 / whole, m2 / whole, m1 / m2],
        1e-9,
    )


def test_a_resample_equals_coxph_with_its_weights_on_those_who_were_drawn():
    x = np.column_stack([*(TIED["true_code"].to_numpy() == k for k in (1, 2, 3)), TIED["age"].to_numpy()]).astype(float)
    fitted = cox.fit(TIED["time"], TIED["event"], x, strata=TIED["stratum"])
    counts = np.array(R["resample"]["weights"])
    assert (counts == 0).sum() > 100

    class Given(bootstrap.Resamples):
        def __iter__(self):
            yield counts

    given = Given(len(TIED), [])
    refitted = bootstrap.refit({"m": fitted}, given, penalised=False, advance=lambda n: None)
    c = bootstrap.discriminate({"m": fitted}, refitted, given, advance=lambda n: None)["m"]
    found = refitted["m"]
    assert_close(found.coefficients[0], R["resample"]["coef"], 1e-9)
    loglik = R["resample"]["loglik"]
    assert_close(found.lr_chi2[0], 2 * (loglik[1] - loglik[0]), 1e-10)
    again = x @ found.coefficients[0]
    drawn = np.repeat(np.arange(len(TIED)), counts)
    own = harrell_c(
        TIED["time"].to_numpy()[drawn], TIED["event"].to_numpy()[drawn], again[drawn], TIED["stratum"].to_numpy()[drawn]
    )
    # Pairs of a patient with his own copy are none, and copies of one time and event are none: as replicated rows.
    assert c.resample[0] == pytest.approx(own.c, abs=1e-12)
    original = harrell_c(TIED["time"], TIED["event"], again, TIED["stratum"])
    assert c.original[0] == pytest.approx(original.c, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "frame", "score", "tau", "strata"),
    [
        ("lung", LUNG, "age", 500.5, None),
        ("tied", TIED, "score_a", TAU, None),
        ("category", TIED, "true_code", TAU, None),
        ("strata", TIED, "score_a", TAU, "stratum"),
    ],
)
def test_uno_c_and_its_error_equal_concordance(name, frame, score, tau, strata):
    found = uno_c(frame["time"], frame["event"], frame[score], tau, None if strata is None else frame[strata])
    assert_close([found.c, found.se], R["uno"][name])
    assert difference(found, found) == (0, 0)


def test_restricted_means_equal_survfit():
    for frame, tau, name in ((LUNG, 600, "lung"), (TIED, 15, "tied")):
        assert_close(restricted_mean(frame["time"], frame["event"], tau), R["restricted_mean"][name])


def test_smoothed_schoenfeld_residuals_equal_plot_cox_zph():
    fitted = cox.fit(LUNG["time"], LUNG["event"], LUNG.select("age", "sex", "ph_ecog").to_numpy())
    found, expected = residuals.coefficient_over_time(fitted, 2, 0.95), R["schoenfeld"]
    assert_close(found["time_days"], expected["time"])
    assert_close(found["coef"], expected["y"])
    assert_close((found["upper"] - found["coef"]) / 1.959963984540054, expected["se"])
    assert_close(found["upper"] - found["coef"], found["coef"] - found["lower"])


def test_risks_equal_survfit_of_coxph():
    x = np.column_stack([*(TIED["true_code"].to_numpy() == k for k in (1, 2, 3)), TIED["age"].to_numpy()]).astype(float)
    fitted = cox.fit(TIED["time"], TIED["event"], x, strata=TIED["stratum"])
    assert_close(np.array([absolute_risk.risk(fitted, time)[:5] for time in (5, 10)]), R["risk"])
    event, competing = (cox.fit(TIED["time"], TIED["status"] == kind, x) for kind in (1, 2))
    assert_close(absolute_risk.incidence(event, competing, [5, 10])[:, :3], R["incidence"])


@pytest.mark.parametrize(
    ("name", "frame", "status", "risk"),
    [
        (
            "lung",
            LUNG,
            LUNG["event"].cast(int),
            expit((LUNG["age"].to_numpy() - 62) / 10 + 0.5 * LUNG["ph_ecog"].to_numpy() - 1),
        ),
        ("tied", TIED, TIED["event"].cast(int), expit(TIED["score_a"] * 3 - 1)),
        ("tied_competing", TIED, TIED["status"], expit(TIED["score_a"] * 3 - 1)),
        ("mgus2", MGUS2, MGUS2["status"], expit(MGUS2["mspike"] - 3)),
    ],
)
def test_auc_brier_and_ipa_at_a_horizon_equal_riskregression(name, frame, status, risk):
    expected = R["horizons"][name]
    times = [part["time"] for part in expected]
    risks = np.tile(np.asarray(risk), (len(times), 1, 1))
    found = Horizons.build(frame["time"], status, times, risks).judge(np.ones(len(frame)))
    for statistic in ("auc", "brier", "ipa"):
        assert_close(getattr(found, statistic)[:, 0], [part[statistic] for part in expected])


def test_noninferiority_is_the_one_sided_test_against_the_margin():
    found = rows(people_of(TIED, "predicted_code", "true_code", "age", None), "age")
    row = found.filter(statistic="noninferiority_c").row(0, named=True)
    z = (R["tied_pair"]["harrell"][0] + 0.02) / R["tied_pair"]["harrell"][1]
    assert row["p"] == pytest.approx(chi_squared.sf(z**2, 1) / 2, rel=1e-9)
