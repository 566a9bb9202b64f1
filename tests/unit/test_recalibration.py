"""The ladder of updates at a new site: chosen by patients on whom it was not fitted."""

import numpy as np
import polars as pl
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit

from cohort_scorer.prediction import recalibration
from cohort_scorer.prediction.bundle import FIRST_PART, NEW
from cohort_scorer.prediction.integration import EXPOSURES, THRESHOLD_NAMES, Layer
from cohort_scorer.prediction.recalibration import UPDATES, Update, fit_update

PARTS = 5


def site(intercept: float, slope: float, n: int = 4000, seed: int = 1) -> pl.DataFrame:
    """Patients whose true logit is intercept + slope x the predicted one."""
    rng = np.random.default_rng(seed)
    predicted = rng.normal(-0.5, 1.2, n)
    truth = {name: rng.random(n) < expit(intercept + slope * predicted) for name in THRESHOLD_NAMES}
    given = {f"{exposure}_{name}": expit(predicted) for exposure in EXPOSURES for name in THRESHOLD_NAMES}
    return pl.DataFrame({"layer_fold": FIRST_PART - np.arange(n) % PARTS, **truth, **given})


# What the site needs -> the updates that do: chance may ask for more, never for less.
SITES = [
    ("nothing", 0.0, 1.0, UPDATES),
    ("another prevalence", -0.8, 1.0, UPDATES[1:]),
    ("predictions too extreme, and another prevalence", 0.5, 0.5, UPDATES[2:]),
]


@pytest.mark.parametrize(("needs", "intercept", "slope", "enough"), SITES)
def test_an_update_that_does_what_the_site_needs_is_chosen(needs, intercept, slope, enough):
    people = site(intercept, slope)
    updates, table = recalibration.recalibrate(people)
    assert len(table) == 27
    assert table.filter("chosen").group_by("exposure", "threshold").len()["len"].to_list() == [1] * 9
    assert set(table.filter("chosen")["update"]) <= set(enough)
    best = table.group_by("exposure", "threshold").agg(pl.col("update").sort_by("log_likelihood").last())
    assert best.join(table.filter("chosen"), on=["exposure", "threshold", "update"]).height == 9
    for name in THRESHOLD_NAMES:
        found = updates["cxr", name, NEW]
        assert found.intercept == pytest.approx(intercept, abs=0.15)
        assert found.slope == pytest.approx(slope, abs=0.12)
    assert {fold for _, _, fold in updates} == {NEW, *range(FIRST_PART, FIRST_PART - PARTS, -1)}
    shuffled, _ = recalibration.recalibrate(people.sample(fraction=1, shuffle=True, seed=3))
    for key, update in updates.items():
        assert shuffled[key].intercept == pytest.approx(update.intercept, abs=1e-6)


def test_each_update_maximises_the_likelihood():
    """Against a general-purpose optimiser (scipy, Nelder-Mead)."""
    people = site(0.4, 0.7, n=300)
    linear, passed = logit(people["cxr_gt0"].to_numpy()), people["gt0"].to_numpy()

    def loss(intercept: float, slope: float) -> float:
        new = intercept + slope * linear
        return float(np.log1p(np.exp(np.where(passed, -new, new))).sum())

    one = minimize(lambda a: loss(a[0], 1), [0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    two = minimize(lambda a: loss(*a), [0.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    assert fit_update("none", linear, passed) == Update(0.0, 1.0)
    assert fit_update("intercept", linear, passed).intercept == pytest.approx(one.x[0], abs=1e-6)
    found = fit_update("intercept_slope", linear, passed)
    assert (found.intercept, found.slope) == pytest.approx(two.x, abs=1e-5)


def test_the_log_likelihood_is_that_of_patients_who_were_not_fitted_on():
    """Part by part, in plain Python."""
    people = site(-0.5, 0.8, n=400)
    _, table = recalibration.recalibrate(people)
    for kind in UPDATES:
        total = 0.0
        for part in people["layer_fold"].unique():
            fitted, judged = people.filter(pl.col("layer_fold") != part), people.filter(layer_fold=part)
            update = fit_update(kind, logit(fitted["cxr_gt0"].to_numpy()), fitted["gt0"].to_numpy())
            for p, is_positive in judged.select("cxr_gt0", "gt0").iter_rows():
                new = expit(update.intercept + update.slope * logit(p))
                total += np.log(new if is_positive else 1 - new)
        row = table.filter(exposure="cxr", threshold=0, update=kind).row(0, named=True)
        assert row["log_likelihood"] == pytest.approx(total, rel=1e-9)


def test_the_updates_of_a_part_know_nothing_of_it():
    people = site(-0.5, 0.8, n=600)
    turned = people.with_columns(
        pl.when(pl.col("layer_fold") == FIRST_PART).then(~pl.col(name)).otherwise(pl.col(name)).alias(name)
        for name in THRESHOLD_NAMES
    )
    linear, part = logit(people["cxr_gt0"].to_numpy()), people["layer_fold"].to_numpy()
    for kind in ("intercept", "intercept_slope"):
        before, after = (
            fit_update(kind, linear[part != FIRST_PART], table["gt0"].to_numpy()[part != FIRST_PART])
            for table in (people, turned)
        )
        assert before == after
    updates, _ = recalibration.recalibrate(people)
    wanted = fit_update("intercept_slope", linear[part != FIRST_PART], people["gt0"].to_numpy()[part != FIRST_PART])
    assert updates["cxr", "gt0", FIRST_PART] == wanted


def test_an_updated_layer_gives_the_updated_probability_at_once():
    layer = Layer(0.3, {"logit": 1.2, "age_years": 0.05})
    people = pl.DataFrame({"logit": [0.4, -1.0], "age_years": [50.0, 70.0], "gt0": [True, False]})
    before = people.select(layer.probability().alias("cxr_gt0"))
    update = Update(-0.7, 0.6)
    key = ("cxr", "gt0", FIRST_PART)
    layers = recalibration.updated_layers({("cxr", "gt0", NEW): layer}, {key: update})
    at_once = people.select(layers[key].probability().alias("p"))["p"].to_list()
    assert at_once == pytest.approx(recalibration.updated(before, {key: update}, FIRST_PART)["cxr_gt0"].to_list())
    assert layers["cxr", "gt0", NEW] == layer


def test_patients_without_a_probability_take_no_part_and_get_none():
    people = site(0.0, 1.0, n=400).with_columns(
        integrated_gt0=pl.when(pl.int_range(pl.len()) >= 40).then("integrated_gt0")
    )
    updates, table = recalibration.recalibrate(people)
    assert table.filter(exposure="integrated", threshold=0)["n"].unique().to_list() == [360]
    assert recalibration.updated(people, updates, NEW)["integrated_gt0"].null_count() == 40
