"""The tables of validate: who counts as positive, what sums to what, and where a p value may stand."""

from functools import partial
from itertools import product

import numpy as np
import polars as pl
import polars.testing
import pytest

from cohort_scorer import schemas
from cohort_scorer.statistics import validation
from cohort_scorer.statistics.agreement import agreement
from cohort_scorer.statistics.discrimination import auc, paired_auc_difference
from cohort_scorer.statistics.roc import roc

CATEGORIES = schemas.vocabulary("cohort", "true_category")
EXPOSURES = ("cxr", "integrated", "clinical")
NAMES = {"gt0": 0, "ge100": 100, "ge400": 400}


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "roc", partial(roc, replicates=50))


def patients(origins: dict[str, str], n: int = 200, seed: int = 1) -> pl.DataFrame:
    """`n` patients per site; origins: site -> score_origin."""
    rng = np.random.default_rng(seed)
    total = n * len(origins)
    level = rng.choice(4, total, p=[0.4, 0.3, 0.2, 0.1])
    columns: dict[str, object] = {
        "site": np.repeat(list(origins), n),
        "score_origin": np.repeat(list(origins.values()), n),
        "true_category": np.array(CATEGORIES)[level],
        "sex": rng.choice(["F", "M"], total),
        "age_band": rng.choice(["40-49", "50-59", "60-69"], total),
    }
    for exposure in EXPOSURES:
        latent = rng.normal(level, 1.5)
        columns[f"{exposure}_category"] = np.array(CATEGORIES)[np.searchsorted([0.8, 1.6, 2.6], latent)]
        for position, name in enumerate(NAMES):
            columns[f"{exposure}_{name}"] = 1 / (1 + np.exp(-(latent - position - 0.5)))
    fold = pl.when(pl.col("score_origin") == "oof").then(pl.int_range(pl.len()) % 4)
    return pl.DataFrame(columns).with_columns(fold.alias("fold"))


def tables(people: pl.DataFrame, cuts=None) -> dict[str, pl.DataFrame]:
    found = validation.tables(people, CATEGORIES, "prevalence", cuts or {}, 0.95, np.random.default_rng(1))
    for name, table in found.items():
        assert set(table.columns) <= {*schemas.columns(name), "reason"}
    return found


# Site -> origin, and where discrimination_tests may have a p.
MAY_HAVE_P = [
    ({"A": "external"}, {"A": True}),
    ({"A": "oof"}, {"A": False}),
    ({"A": "external", "B": "external"}, {"A": True, "B": True, "all": True}),
    ({"A": "oof", "B": "external"}, {"A": False, "B": True, "all": False}),
    ({"A": "oof", "B": "oof"}, {"A": False, "B": False, "all": False}),
    ({"A": "unknown", "B": "external"}, {"A": False, "B": True, "all": False}),
    ({"A": "in_sample", "B": "external"}, {"A": False, "B": True, "all": False}),
]


@pytest.mark.parametrize(("origins", "has_p"), MAY_HAVE_P)
def test_p_of_paired_tests_stands_only_where_every_score_is_external(origins, has_p):
    tests = tables(patients(origins))["discrimination_tests"]
    assert tests["p"].dtype == pl.Float64
    found = {
        site: part["p"].is_not_null().to_list() for (site,), part in tests.partition_by("site", as_dict=True).items()
    }
    assert found == {site: [given] * 9 for site, given in has_p.items()}
    assert tests.select("auc_a", "auc_b", "auc_difference", "lower", "upper").null_count().row(0) == (0,) * 5


def test_paired_tests_are_those_of_delong():
    people = patients({"A": "external"})
    for row in tables(people)["discrimination_tests"].iter_rows(named=True):
        name = next(name for name, threshold in NAMES.items() if threshold == row["threshold"])
        truth = people["true_category"].is_in(CATEGORIES[list(NAMES).index(name) + 1 :])
        scores = (people[f"{row[key]}_{name}"] for key in ("exposure_a", "exposure_b"))
        wanted = paired_auc_difference(truth, *scores)
        assert (row["auc_difference"], row["p"]) == (wanted.auc_difference, wanted.p)
        assert row["auc_difference"] == pytest.approx(row["auc_a"] - row["auc_b"])


def test_discrimination_gives_folds_and_their_mean_out_of_fold_only():
    people = patients({"A": "oof", "B": "external"})
    table = tables(people)["discrimination"].filter(exposure="cxr", threshold=100)
    folds = {site: part["fold"].to_list() for (site,), part in table.partition_by("site", as_dict=True).items()}
    assert folds == {"A": [None, "0", "1", "2", "3", "mean"], "B": [None], "all": [None]}
    mine = table.filter(site="A")
    single = mine.filter(pl.col("fold").is_in(["0", "1", "2", "3"]))
    assert single["n"].sum() == mine["n"][0] == 200
    assert single["n_positive"].sum() == mine["n_positive"][0]
    assert mine.filter(fold="mean")["auc"][0] == pytest.approx(single["auc"].mean())
    first = people.filter(pl.col("fold") == 0)
    wanted = auc(first["true_category"].is_in(CATEGORIES[2:]), first["cxr_ge100"])
    assert mine.filter(fold="0")["auc"][0] == wanted.auc


def test_auc_brier_and_calibration_use_the_probability_as_it_is_given():
    people = patients({"A": "external"})
    turned = people.with_columns(cxr_ge100=1 - pl.col("cxr_ge100"))
    first, second = (tables(frame)["discrimination"].filter(exposure="cxr") for frame in (people, turned))
    assert second.filter(threshold=100)["auc"][0] == pytest.approx(1 - first.filter(threshold=100)["auc"][0])
    assert second.filter(threshold=400)["auc"].equals(first.filter(threshold=400)["auc"])
    outcome = people["true_category"].is_in(CATEGORIES[2:]).to_numpy()
    assert first.filter(threshold=100)["brier"][0] == pytest.approx(((people["cxr_ge100"] - outcome) ** 2).mean())


def test_positive_at_an_operating_point_is_a_predicted_category_above_the_threshold():
    people = patients({"A": "external"})
    # Probabilities that say the opposite of the categories change nothing: the category decides.
    probabilities = [f"{exposure}_{name}" for exposure in EXPOSURES for name in NAMES]
    people = people.with_columns((1 - pl.col(name)).alias(name) for name in probabilities)
    table = tables(people)["operating_points"]
    for exposure, (position, threshold) in product(EXPOSURES, enumerate(NAMES.values())):
        row = table.filter(exposure=exposure, threshold=threshold).row(0, named=True)
        true = people["true_category"].is_in(CATEGORIES[position + 1 :])
        called = people[f"{exposure}_category"].is_in(CATEGORIES[position + 1 :])
        assert row["n"] == 200
        assert row["sensitivity"] == pytest.approx((true & called).sum() / true.sum())
        assert row["specificity"] == pytest.approx((~true & ~called).sum() / (~true).sum())
        assert row["ppv"] == pytest.approx((true & called).sum() / called.sum())
        assert row["npv"] == pytest.approx((~true & ~called).sum() / (~called).sum())
        assert (row["predicted_margin"], row["true_margin"]) == (called.mean(), true.mean())
        for name in ("sensitivity", "specificity", "ppv", "npv"):
            assert row[f"{name}_lower"] <= row[name] <= row[f"{name}_upper"]


def test_the_cut_is_named_for_external_patients_only_since_each_fold_has_its_own():
    cuts = {("cxr", 0): 0.5, ("cxr", 100): 0.3, ("cxr", 400): 0.1}
    table = tables(patients({"A": "oof", "B": "external"}), cuts)["operating_points"].filter(exposure="cxr")
    assert table.filter(site="B")["cut_point"].to_list() == [0.5, 0.3, 0.1]
    assert table.filter(pl.col("site") != "B")["cut_point"].to_list() == [None] * 6


def test_crosstabs_have_every_cell_and_sum_to_the_patients_classified():
    people = patients({"A": "oof", "B": "external"}).with_columns(
        pl.when(pl.int_range(pl.len()) % 10 > 0).then("integrated_category").alias("integrated_category")
    )
    table = tables(people)["crosstab"]
    totals = {(site, exposure): part["n"].sum() for (site, exposure), part in parts(table).items()}
    assert totals == {
        **{(site, "cxr"): 200 for site in "AB"},
        **{(site, "integrated"): 180 for site in "AB"},
        ("all", "cxr"): 400,
        ("all", "integrated"): 360,
    }
    for part in parts(table).values():
        assert part.select("true_category", "predicted_category").rows() == list(product(CATEGORIES, CATEGORIES))
    pooled = sum(part["n"] for (site, exposure), part in parts(table).items() if exposure == "cxr" and site != "all")
    assert pooled.to_list() == parts(table)["all", "cxr"]["n"].to_list()
    cell = table.filter(site="A", exposure="cxr", true_category="CAC 0", predicted_category="CAC 400+")["n"][0]
    wanted = people.filter(site="A", true_category="CAC 0", cxr_category="CAC 400+")
    assert cell == len(wanted) > 0


def parts(table: pl.DataFrame) -> dict[tuple[str, str], pl.DataFrame]:
    return table.partition_by("site", "exposure", as_dict=True)


def test_agreement_is_that_of_the_crosstab():
    found = tables(patients({"A": "oof", "B": "external"}))
    for key, table in parts(found["agreement"]).items():
        assert table["statistic"].to_list() == ["accuracy", "kappa_linear", "kappa_quadratic"]
        counts = parts(found["crosstab"])[key]["n"].to_numpy().reshape(4, 4)
        assert table["n"].to_list() == [counts.sum()] * 3
        assert table["estimate"][0] == pytest.approx(np.trace(counts) / counts.sum())
        distance = np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
        expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
        for power, row in ((1, 1), (2, 2)):
            kappa = 1 - (distance**power * counts).sum() / (distance**power * expected).sum()
            assert table["estimate"][row] == pytest.approx(kappa)
        true, predicted = (np.repeat(code, counts.ravel()) for code in np.indices((4, 4)).reshape(2, -1))
        assert table["lower"].to_list() == pytest.approx(agreement(true, predicted, 4)["lower"].to_list())


def test_scores_without_probabilities_give_the_tables_of_categories_alone():
    people = patients({"A": "external"}).with_columns(
        pl.lit(None, pl.Float64).alias(f"{exposure}_{name}") for exposure in EXPOSURES for name in NAMES
    )
    found = tables(people)
    empty = ["calibration", "calibration_curve", "decision_curve", "discrimination", "discrimination_tests", "roc"]
    assert sorted(name for name, table in found.items() if table.is_empty()) == empty
    for name in empty:
        assert found[name].columns == list(schemas.columns(name))
    assert found["operating_points"]["sensitivity"].null_count() == 0
    assert found["subgroups"].select("sensitivity", "specificity").null_count().row(0) == (0, 0)
    assert found["subgroups"].select("auc", "observed_expected").null_count().row(0) == (len(found["subgroups"]),) * 2


def test_an_exposure_that_nobody_has_is_in_no_table():
    people = patients({"A": "external"}).with_columns(
        *(pl.lit(None, pl.Float64).alias(f"integrated_{name}") for name in NAMES),
        pl.lit(None, pl.String).alias("integrated_category"),
    )
    for name, table in tables(people).items():
        columns = [column for column in ("exposure", "exposure_a", "exposure_b") if column in table.columns]
        assert len(table)
        for column in columns:
            assert "integrated" not in table[column].to_list(), name


def test_curves_have_a_part_for_each_row_of_discrimination():
    found = tables(patients({"A": "oof", "B": "external"}))
    keys = ["site", "score_origin", "exposure", "threshold"]
    pooled = found["discrimination"].filter(pl.col("fold").is_null()).select(keys)
    for name in ("roc", "calibration_curve"):
        assert found[name].select(keys).unique(maintain_order=True).equals(pooled)
    assert found["roc"].group_by(keys).len()["len"].unique().to_list() == [101]
    assert found["roc"].null_count().sum_horizontal().item() == 0


def test_tables_do_not_depend_on_the_order_of_the_patients():
    people = patients({"A": "oof", "B": "external"})
    found, again = tables(people), tables(people.sample(fraction=1, shuffle=True, seed=3))
    assert found["roc"].equals(again["roc"])
    for name in ("calibration_curve", "subgroups"):
        pl.testing.assert_frame_equal(found[name], again[name])


def test_where_one_outcome_is_absent_there_is_no_roc_curve_and_the_calibration_curve_says_why():
    people = patients({"A": "external"}).filter(pl.col("true_category") != "CAC 400+")
    found = tables(people)
    assert found["roc"].filter(threshold=400).is_empty()
    assert found["calibration_curve"].filter(threshold=400)["reason"].to_list() == ["nobody with the outcome"] * 3
    assert found["subgroups"].filter(threshold=400).select("auc", "sensitivity").null_count().row(0) == (15, 15)


def test_subgroups_part_the_patients_and_say_what_each_part_alone_would_say():
    people = patients({"A": "external"})
    found = tables(people.with_columns(pl.when(pl.col("sex") == "F").then("sex").alias("sex")))
    by_sex = found["subgroups"].filter(subgroup="sex")
    assert by_sex["level"].unique(maintain_order=True).to_list() == ["F", "unknown"]
    for subgroup in ("sex", "age_band"):
        parts = found["subgroups"].filter(subgroup=subgroup, exposure="cxr", threshold=100)
        assert parts["n"].sum() == 200
        assert parts["n_positive"].sum() == people["true_category"].is_in(CATEGORIES[2:]).sum()
    alone = tables(people.filter(sex="F"))
    area = alone["discrimination"].select("exposure", "threshold", "n", "n_positive", "auc", "lower", "upper")
    mine = by_sex.filter(level="F")
    assert (
        mine.select("exposure", "threshold", "n", "n_positive", "auc", "auc_lower", "auc_upper").rows() == area.rows()
    )
    for name in ("sensitivity", "specificity"):
        limits = [name, f"{name}_lower", f"{name}_upper"]
        assert mine.select(limits).equals(alone["operating_points"].select(limits))
    ratio = alone["calibration"].filter(statistic="observed_expected").select("estimate", "lower", "upper")
    columns = ["observed_expected", "observed_expected_lower", "observed_expected_upper"]
    assert mine.select(columns).rows() == ratio.rows()
