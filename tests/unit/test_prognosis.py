"""The tables of prognosis: they add up to the analysis set, and no number stands where there are too few events."""

import numpy as np
import polars as pl
import pytest

from cohort_scorer import schemas
from cohort_scorer.statistics import cox, firth, prognosis
from cohort_scorer.statistics.logrank import logrank

CATEGORIES = schemas.vocabulary("cohort", "true_category")
NUMBERS = ["coef", "se", "hr", "lower", "upper", "z", "p"]


def analysis_set(n: int = 240, sites=("A", "B"), seed: int = 1) -> pl.DataFrame:
    """Two sites with different baseline hazards; tied days; competing events; category and age tell something."""
    rng = np.random.default_rng(seed)
    site = rng.choice(list(sites), n)
    level = rng.choice(4, n, p=[0.35, 0.25, 0.2, 0.2])
    predicted = np.clip(level + rng.choice([-1, 0, 0, 1], n), 0, 3)
    age = rng.normal(60, 8, n)
    hazard = np.exp(0.5 * level + 0.03 * (age - 60) + 1.5 * (site == "A"))
    event, other = rng.exponential(4000 / hazard), rng.exponential(9000, n)
    end = rng.uniform(200, 2500, n)
    time = np.ceil(np.minimum(np.minimum(event, other), end)).astype(int)
    status = np.where(event <= np.minimum(other, end), 1, np.where(other <= end, 2, 0))
    names = np.array(CATEGORIES)
    return pl.DataFrame(
        {
            "site": site,
            "score_origin": np.where(site == "A", "oof", "external"),
            "time_days": time,
            "status": status,
            "true_category": names[level],
            "cxr_category": names[predicted],
            "age_at_t0_years": age,
            "sex": rng.choice(["F", "M"], n),
            "constant": 1.0,
        }
    )


def choices(adjust_for=("age_at_t0_years", "sex"), competing: bool = True, replicates: int = 20, margin=None):
    return prognosis.Choices(
        ["true", "cxr"], CATEGORIES, list(adjust_for), [1, 3, 5], competing, 0.95, replicates, margin
    )


def tables(people: pl.DataFrame, **declared) -> prognosis.Prognosis:
    found = prognosis.tables(people, choices(**declared), np.random.default_rng(1), lambda done: None)
    for name, table in found.tables.items():
        assert set(table.columns) <= set(schemas.columns(name)), name
    return found


def whole(found: prognosis.Prognosis, **chosen) -> pl.DataFrame:
    """Rows of cox.csv on all patients and all of the follow-up."""
    rows = found.tables["cox"].filter(pl.col("subgroup").is_null(), pl.col("period").is_null())
    return rows.filter(**chosen) if chosen else rows


PEOPLE = analysis_set(600)
FOUND = tables(PEOPLE)


def rows(site: str) -> pl.DataFrame:
    return PEOPLE if site == "all" else PEOPLE.filter(site=site)


@pytest.mark.parametrize("site", ["A", "B", "all"])
@pytest.mark.parametrize("exposure", ["true", "cxr"])
def test_event_rates_add_up_to_the_analysis_set(site, exposure):
    rates = FOUND.tables["event_rates"].filter(site=site, exposure=exposure)
    people = rows(site)
    assert rates["category"].to_list() == list(CATEGORIES)
    assert rates["n"].sum() == len(people)
    assert rates["events"].sum() == (people["status"] == 1).sum()
    assert rates["person_years"].sum() == pytest.approx(people["time_days"].sum() / 365.25)
    for row in rates.iter_rows(named=True):
        mine = people.filter(pl.col(f"{exposure}_category") == row["category"])
        assert (row["n"], row["events"]) == (len(mine), (mine["status"] == 1).sum())
        assert row["rate_per_1000_py"] == pytest.approx(1000 * row["events"] / row["person_years"])
        assert row["lower"] <= row["rate_per_1000_py"] <= row["upper"]


@pytest.mark.parametrize("site", ["A", "B", "all"])
def test_discordant_cells_add_up_to_the_rates_of_either_category(site):
    cells = FOUND.tables["discordance"].filter(site=site, exposure="cxr")
    assert len(cells) == 16
    for exposure, column in (("true", "true_category"), ("cxr", "predicted_category")):
        rates = FOUND.tables["event_rates"].filter(site=site, exposure=exposure)
        sums = cells.group_by(column).agg(pl.col("n", "events", "person_years").sum())
        for row in rates.iter_rows(named=True):
            found = sums.filter(pl.col(column) == row["category"]).row(0, named=True)
            assert (found["n"], found["events"]) == (row["n"], row["events"])
            assert found["person_years"] == pytest.approx(row["person_years"])


def test_everybody_is_at_risk_at_time_0_and_nobody_is_lost_after():
    rates = FOUND.tables["event_rates"].select("site", "exposure", "category", "n", "events")
    keys = ["site", "exposure", "category"]
    curves = FOUND.tables["kaplan_meier"].filter(pl.col("time_days") == 0).join(rates, on=keys)
    assert len(curves) == len(rates) == 24
    assert curves["n_at_risk"].to_list() == curves["n"].to_list()
    assert curves["survival"].to_list() == [1] * 24
    table = FOUND.tables["at_risk"].join(rates, on=keys)
    assert table.filter(time_years=0)["n_at_risk"].to_list() == table.filter(time_years=0)["n"].to_list()
    whole = FOUND.tables["kaplan_meier"].group_by(keys).agg(pl.col("n_events", "n_censored").sum()).join(rates, on=keys)
    assert (whole["n_events"] == whole["events"]).all()
    assert (whole["n_events"] + whole["n_censored"] == whole["n"]).all()
    assert set(table["time_years"]) == {0, 1, 2, 3, 4, 5}


def design(people: pl.DataFrame, exposure: str, covariates: bool) -> np.ndarray:
    columns = [(people[f"{exposure}_category"] == name).to_numpy() for name in CATEGORIES[1:]]
    if covariates:
        columns += [people["age_at_t0_years"].to_numpy(), (people["sex"] == "M").to_numpy()]
    return np.column_stack(columns).astype(float)


@pytest.mark.parametrize("exposure", ["true", "cxr"])
def test_pooled_models_are_stratified_by_site_and_origin(exposure):
    matrix = design(PEOPLE, exposure, covariates=True)
    event = PEOPLE["status"] == 1
    stratified = cox.fit(PEOPLE["time_days"], event, matrix, strata=PEOPLE["site"])
    plain = cox.fit(PEOPLE["time_days"], event, matrix)
    mine = whole(FOUND, site="all", model=f"covariates+{exposure}").drop_nulls("coef")
    np.testing.assert_allclose(mine["coef"], stratified.coefficients, rtol=1e-8)
    assert np.abs(mine["coef"].to_numpy() - plain.coefficients).max() > 0.01
    fit = FOUND.tables["cox_fit"].filter(site="all", model=f"covariates+{exposure}").row(0, named=True)
    assert fit["loglik"] == pytest.approx(stratified.loglik)
    codes = PEOPLE[f"{exposure}_category"].replace_strict(dict(zip(CATEGORIES, range(4), strict=True)))
    tests = FOUND.tables["logrank"].filter(site="all", exposure=exposure)
    wanted = logrank(PEOPLE["time_days"], event, codes, CATEGORIES, PEOPLE["site"])
    assert tests["chi2"].to_list() == pytest.approx(wanted["chi2"].to_list())
    assert tests["chi2"][0] != pytest.approx(logrank(PEOPLE["time_days"], event, codes, CATEGORIES)["chi2"][0])


def test_models_of_one_site_are_those_of_its_patients():
    people = PEOPLE.filter(site="A")
    fitted = cox.fit(people["time_days"], people["status"] == 1, design(people, "cxr", covariates=False))
    mine = whole(FOUND, site="A", model="crude:cxr")
    assert mine["level"].to_list() == list(CATEGORIES)
    assert (mine["hr"][0], mine["coef"][0], mine["method"][0]) == (1, None, "efron")
    np.testing.assert_allclose(mine["coef"][1:], fitted.coefficients, rtol=1e-8)
    counts = people.group_by("cxr_category").agg(pl.len().alias("n"), (pl.col("status") == 1).sum().alias("events"))
    for row in mine.iter_rows(named=True):
        wanted = counts.filter(cxr_category=row["level"]).row(0, named=True)
        assert (row["n"], row["n_events"]) == (wanted["n"], wanted["events"])


def test_every_model_of_the_contract_is_there():
    wanted = ["crude:true", "crude:cxr", "covariates", "covariates+true", "covariates+cxr", "covariates+true+cxr"]
    for site in ("A", "B", "all"):
        fit = FOUND.tables["cox_fit"].filter(site=site)
        assert fit["model"].to_list() == wanted
        assert fit["n"].unique().to_list() == [len(rows(site))]
        assert fit["df"].to_list() == [3, 3, 2, 5, 5, 8]
    assert FOUND.lifelines_difference < 1e-6
    assert FOUND.not_converged == FOUND.hindered == []


def with_events(people: pl.DataFrame, exposure: str, category: str, n_events: int) -> pl.DataFrame:
    """The same people, but exactly so many events in a category; who had one more is censored."""
    column = pl.col(f"{exposure}_category") == category
    rank = pl.int_range(pl.len()).rank("ordinal").over(f"{exposure}_category")
    return people.with_columns(
        pl.when(column & (rank <= n_events))
        .then(1)
        .when(column)
        .then(0)
        .otherwise("status")
        .cast(pl.Int64)
        .alias("status")
    )


@pytest.mark.parametrize("n_events", [0, 1, 4])
@pytest.mark.parametrize("category", ["CAC 0", "CAC 400+"])
def test_a_category_with_fewer_than_5_events_has_all_models_of_its_group_penalised(category, n_events):
    people = with_events(PEOPLE.filter(site="A"), "cxr", category, n_events)
    found = tables(people)
    assert found.penalised == ["A oof"]
    models = whole(found)
    assert set(models["method"]) == {"firth"}
    assert models.select("hr", "lower", "upper").null_count().row(0)[0] == 0
    assert models["hr"].is_finite().all()
    assert (models["hr"] > 0).all()
    assert models["z"].null_count() == len(models)
    counted = models.filter(model="crude:cxr", level=category).row(0, named=True)
    assert (counted["n"], counted["n_events"]) == (people.filter(cxr_category=category).height, n_events)
    slow = firth.fit(people["time_days"], people["status"] == 1, design(people, "cxr", covariates=False))
    mine = models.filter(model="crude:cxr").drop_nulls("coef")
    np.testing.assert_allclose(mine["coef"], slow.coefficients, rtol=1e-8)
    np.testing.assert_allclose(mine["lower"], np.exp(slow.profile()[0]), rtol=1e-6)
    fit = found.tables["cox_fit"].filter(model="crude:cxr").row(0, named=True)
    assert (fit["method"], fit.get("aic")) == ("firth", None)
    assert fit["harrell_c"] > 0.5
    assert not found.not_converged
    hazards = found.tables["proportional_hazards"]
    assert hazards["chi2"].null_count() == len(hazards)
    assert set(hazards["reason"]) == {"the score test is not defined for a penalised likelihood"}
    shares = found.tables["comparison"].filter(pl.col("statistic").is_in(["adequacy_predicted", "relative_lr"]))
    assert shares["estimate"].null_count() == len(shares) == 2
    rates = found.tables["event_rates"].filter(exposure="cxr", category=category).row(0, named=True)
    assert rates["events"] == n_events
    assert rates["upper"] > 0


@pytest.mark.parametrize(("n_events", "replicates", "method"), [(5, 0, "efron"), (5, 500, "firth"), (40, 20, "efron")])
def test_five_events_are_enough_unless_a_resample_has_none_of_them(n_events, replicates, method):
    people = with_events(PEOPLE.filter(site="A"), "cxr", "CAC 400+", n_events)
    found = tables(people, replicates=replicates)
    mine = whole(found, model="crude:cxr")
    assert mine["method"].to_list() == [method] * 4
    assert mine["coef"].is_finite().sum() == 3
    assert not found.hindered


def test_no_other_category_takes_the_place_of_an_empty_reference():
    people = PEOPLE.filter(pl.col("cxr_category") != "CAC 0")
    models = whole(tables(people)).filter(pl.col("model").str.contains("cxr"))
    assert len(models) > 0
    assert models["hr"].null_count() == len(models)
    assert set(models["reason"]) == {"nobody is in CAC 0, the reference"}


@pytest.mark.parametrize("empty", ["CAC 1-99", "CAC 400+"])
def test_an_empty_category_is_dropped_from_the_models_and_the_others_stay(empty):
    people = PEOPLE.filter(pl.col("cxr_category") != empty)
    found = tables(people)
    left = [name for name in CATEGORIES if name != empty]
    for site in ("A", "B", "all"):
        mine = whole(found).filter(site=site, model="crude:cxr")
        assert mine["level"].to_list() == left
        assert mine["method"].to_list() == ["efron"] * 3
        assert found.tables["cox_fit"].filter(site=site, model="crude:cxr")["df"].to_list() == [2]
    assert set(found.tables["kaplan_meier"].filter(exposure="cxr")["category"]) == set(left)
    rate = found.tables["event_rates"].filter(site="A", exposure="cxr", category=empty).row(0, named=True)
    assert (rate["n"], rate["events"], rate["rate_per_1000_py"]) == (0, 0, None)


@pytest.mark.parametrize("kind", ["number", "text"])
def test_a_constant_covariate_is_not_fitted_and_the_others_are(kind):
    people = PEOPLE if kind == "number" else PEOPLE.with_columns(constant=pl.lit("yes"))
    adjusted = tables(people, adjust_for=("age_at_t0_years", "sex", "constant"))
    for model, df in (("covariates", 2), ("covariates+true", 5)):
        mine = whole(adjusted).filter(site="all", model=model)
        constant = mine.filter(term="constant").row(0, named=True)
        assert constant["method"] == "not_fitted"
        assert [constant[name] for name in NUMBERS] == [None] * len(NUMBERS)
        assert set(mine.filter(pl.col("term") != "constant")["method"]) == {"efron"}
        without = whole(FOUND, site="all", model=model).drop_nulls("coef")
        np.testing.assert_allclose(mine.drop_nulls("coef")["coef"], without["coef"], rtol=1e-8)
        assert adjusted.tables["cox_fit"].filter(site="all", model=model)["df"].to_list() == [df]
    assert not adjusted.not_converged


def test_a_site_without_events_has_counts_and_no_model():
    people = PEOPLE.with_columns(
        pl.when(pl.col("site") == "B").then(0).otherwise("status").cast(pl.Int64).alias("status")
    )
    found = tables(people)
    mine = whole(found).filter(site="B")
    assert set(mine["method"]) == {"not_fitted"}
    assert mine.select(NUMBERS).null_count().row(0) == (len(mine),) * len(NUMBERS)
    assert found.tables["event_rates"].filter(site="B")["events"].sum() == 0
    assert found.tables["logrank"].filter(site="B").is_empty()
    assert not found.not_converged
    pooled = whole(found).filter(site="all", model="crude:true").drop_nulls("coef")
    alone = whole(found).filter(site="A", model="crude:true").drop_nulls("coef")
    np.testing.assert_allclose(pooled["coef"], alone["coef"], rtol=1e-7)


def test_competing_events_are_censored_in_curves_and_told_apart_in_incidences():
    incidence = FOUND.tables["cumulative_incidence"]
    assert set(incidence["cause"]) == {"event", "competing"}
    assert "cumulative_incidence" not in tables(PEOPLE, competing=False).tables
    censored = PEOPLE.with_columns(pl.when(pl.col("status") == 2).then(0).otherwise("status").alias("status"))
    other = tables(censored)
    for name in ("kaplan_meier", "cox", "event_rates", "logrank"):
        assert other.tables[name].equals(FOUND.tables[name]), name


def test_one_site_of_one_origin_has_no_pooled_rows():
    found = tables(PEOPLE.filter(site="A"))
    for name, table in found.tables.items():
        assert table["site"].unique().to_list() == ["A"], name


def test_models_with_fewer_than_10_events_per_parameter_are_named():
    people = PEOPLE.filter(site="B").head(90)
    found = tables(people)
    fit = found.tables["cox_fit"]
    few = fit.filter(pl.col("events_per_parameter") < 10)["model"].to_list()
    assert few == [name.removeprefix("B external ") for name in found.few_per_parameter]
    assert few
    assert len(few) < len(fit)


def only(event: pl.Expr) -> pl.Expr:
    """The status with events where they are wanted alone."""
    return pl.when((pl.col("status") == 1) & ~event).then(0).otherwise("status").cast(pl.Int64).alias("status")


SMALL = analysis_set(120, sites=("A",))
HOSTILE = {
    "one event": (SMALL.with_columns(only(pl.int_range(pl.len()) == 3)), {}),
    "no events": (SMALL.with_columns(only(pl.lit(False))), {}),
    "events in one category": (SMALL.with_columns(only(pl.col("cxr_category") == "CAC 0")), {}),
    "one predicted category": (SMALL.with_columns(cxr_category=pl.lit("CAC 0")), {}),
    "predictions that are the truth": (SMALL.with_columns(cxr_category="true_category"), {}),
    "one time": (SMALL.with_columns(time_days=pl.lit(100)), {}),
    "everybody has the event": (SMALL.with_columns(status=pl.lit(1, pl.Int64)), {}),
    "three patients": (SMALL.head(3), {}),
    "no covariates": (SMALL, {"adjust_for": ()}),
    "no resamples": (SMALL, {"replicates": 0}),
    "one resample": (SMALL, {"replicates": 1}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_the_data_a_cell_holds_a_number_or_nothing(name):
    people, declared = HOSTILE[name]
    found = tables(people, **{"replicates": 4, "margin": 0.03, **declared})
    for table in found.tables.values():
        numbers = table.select(pl.selectors.float())
        assert numbers.select(pl.all().is_finite().all()).row(0, named=True) == dict.fromkeys(numbers.columns, True)
    for table in ("cox", "cox_fit", "proportional_hazards", "horizon", "comparison"):
        rows = schemas.conform(found.tables[table], table)
        value = {"cox": "hr", "cox_fit": "loglik", "proportional_hazards": "chi2", "horizon": "brier"}.get(
            table, "estimate"
        )
        absent = rows.filter(pl.col(value).is_null())
        assert absent["reason"].null_count() == 0, table
    hazards = found.tables["cox"]["hr"].drop_nulls()
    assert (hazards > 0).all()


def with_probabilities(people: pl.DataFrame) -> pl.DataFrame:
    rank = pl.col("cxr_category").replace_strict(dict(zip(CATEGORIES, (0.1, 0.3, 0.5, 0.7), strict=True)))
    return people.with_columns(cxr_ge100=rank + pl.int_range(pl.len()).mod(97) / 1000)


def test_a_horizon_that_one_site_does_not_reach_has_no_performance_of_all_sites():
    days = pl.col("time_days")
    short = (pl.col("site") == "B") & (days > 800)
    people = with_probabilities(PEOPLE).with_columns(
        time_days=pl.when(short).then(800).otherwise(days), status=pl.when(short).then(0).otherwise("status")
    )
    found = tables(people)
    pooled = found.tables["horizon"].filter(site="all", horizon_years=3.0)
    assert set(pooled["reason"]) == {"in a site nobody was followed that long"}
    assert pooled["auc"].null_count() == pooled["brier"].null_count() == len(pooled)
    assert found.tables["horizon"].filter(site="A", horizon_years=3.0)["auc"].null_count() == 0
    expected = found.tables["comparison"].filter(site="all", statistic="observed_expected")
    assert set(expected["horizon_years"]) == {1}
    curves = found.tables["risk_curve"]
    assert curves.filter(site="A")["incidence"].null_count() == 0
    for site in ("B", "all"):
        mine = curves.filter(site=site)
        assert mine.select("incidence", "reason").rows() == [(None, "in a site nobody was followed that long")]


def test_what_was_declared_and_cannot_be_computed_keeps_a_row_with_the_reason():
    people = PEOPLE.filter(pl.col("site") == "A", pl.col("cxr_category") != "CAC 0")
    rows = tables(people, margin=0.03).tables["comparison"]
    asked = ["noninferiority_c", "ratio_of_hazard_ratios", "harrell_c_difference", "auc_difference", "brier_difference"]
    for statistic in asked:
        mine = rows.filter(statistic=statistic, comparison="covariates+cxr v covariates+true")
        assert len(mine), statistic
        assert mine["estimate"].null_count() == len(mine)
        assert mine["reason"].null_count() == 0
    one = tables(PEOPLE.filter(pl.col("site") == "A", pl.col("cxr_category") != "CAC 400+")).tables["comparison"]
    absent = one.filter(statistic="ratio_of_hazard_ratios", level="CAC 400+")
    assert absent["reason"].to_list() == ["nobody is predicted it, or nobody has it"]


def test_models_that_lifelines_was_not_asked_for_are_counted(monkeypatch):
    monkeypatch.setattr(prognosis, "_CROSS_CHECK_ROWS", 350)
    found = tables(PEOPLE)
    assert len(PEOPLE.filter(site="A")) < 350 < len(PEOPLE)
    wanted = ["crude:true", "crude:cxr", "covariates+true", "covariates+cxr"]
    assert found.not_cross_checked == [f"all all {name}" for name in wanted]
    assert found.lifelines_difference < 1e-6
