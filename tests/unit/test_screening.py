"""The audit tables: counts that chain, strata that add up, and the prevalence of methods.md section 5."""

import polars as pl
import pytest

from cohort_scorer import schemas
from cohort_scorer.statistics import screening
from cohort_scorer.statistics.proportions import wilson

CATEGORIES = schemas.vocabulary("cohort", "true_category")
ACCURACY = {"cxr": screening.Accuracy(0.80, 400, 0.70, 600)}


def population(n_scored: int, n_positive: int, n_unscored: int = 0, category: str = "CAC 100-399") -> pl.DataFrame:
    """People of one site; the first are positive at 100, the last have a film that nobody could read."""
    n = n_scored + n_unscored
    order = pl.int_range(n, eager=True)
    return pl.DataFrame({"order": order}).select(
        pl.lit("A").alias("site"),
        pl.when(pl.col("order") < n_scored).then(pl.lit("external")).alias("score_origin"),
        pl.when(pl.col("order") % 2 == 0).then(pl.lit("F")).otherwise(pl.lit("M")).alias("sex"),
        (pl.col("order") < n - n_unscored // 2).alias("has_radiograph"),
        (pl.col("order") < n_scored).alias("is_readable"),
        (pl.col("order") < n_scored).alias("is_scored"),
        pl.when(pl.col("order") < n_positive)
        .then(pl.lit(category))
        .when(pl.col("order") < n_scored)
        .then(pl.lit("CAC 1-99"))
        .alias("cxr_category"),
        pl.lit(None, pl.String).alias("integrated_category"),
    )


def audit(people: pl.DataFrame, strata=("sex",), threshold: int = 100, accuracy=ACCURACY):
    found = screening.tables(people, list(strata), threshold, CATEGORIES, accuracy, 0.95)
    for name, table in found.items():
        assert set(table.columns) <= set(schemas.columns(name))
    return found


# Positives, scored -> prevalence (lower, upper); Se 0.80 of 400, Sp 0.70 of 600 (Rogan & Gladen; Lang & Reiczigel).
ORACLE = [(800, 2000, 0.2000, 0.1238, 0.2730), (600, 2000, 0.0, 0.0, 0.0807)]


@pytest.mark.parametrize(("n_positive", "n", "prevalence", "lower", "upper"), ORACLE)
def test_prevalence_is_adjusted_for_misclassification(n_positive, n, prevalence, lower, upper):
    table = audit(population(n, n_positive), strata=())["audit_prevalence"]
    row = table.filter(exposure="cxr").row(0, named=True)
    assert (row["n"], row["apparent_prevalence"]) == (n, n_positive / n)
    assert [row["prevalence"], row["lower"], row["upper"]] == pytest.approx([prevalence, lower, upper], abs=5e-5)
    assert (row["sensitivity"], row["n_sensitivity"], row["specificity"], row["n_specificity"]) == (0.8, 400, 0.7, 600)
    assert row["reason"] is None


def test_without_known_accuracy_there_is_a_reason_and_no_number():
    row = audit(population(100, 20), accuracy={})["audit_prevalence"].row(0, named=True)
    assert row["reason"] == "sensitivity and specificity are not known"
    assert row["apparent_prevalence"] == 0.2
    assert row.get("prevalence") is None


def test_coverage_counts_chain_and_strata_add_up():
    table = audit(population(80, 20, n_unscored=20))["audit_coverage"]
    overall = table.filter(stratum="overall").row(0, named=True)
    counts = ("n_eligible", "n_with_cxr", "n_readable", "n_scored")
    assert [overall[name] for name in counts] == [100, 90, 80, 80]
    for name in counts:
        assert table.filter(stratum="sex")[name].sum() == overall[name]
    estimate, lower, upper = wilson(80, 100)
    assert (overall["coverage"], overall["lower"], overall["upper"]) == (estimate, lower, upper)
    assert table["uptake"].null_count() == len(table)


def test_positivity_counts_those_scored_with_a_wilson_interval():
    table = audit(population(80, 20, n_unscored=20))["audit_positivity"].filter(exposure="cxr")
    overall = table.filter(stratum="overall").row(0, named=True)
    assert (overall["n"], overall["n_positive"]) == (80, 20)
    assert [overall[name] for name in ("positivity", "lower", "upper")] == [float(value) for value in wilson(20, 80)]
    assert table.filter(stratum="sex")["n_positive"].sum() == 20
    assert table.filter(stratum="sex")["n"].sum() == 80


# Predicted category of everybody called -> positive at thresholds 0, 100, 400.
THRESHOLDS = [
    ("CAC 0", (False, False, False)),
    ("CAC 1-99", (True, False, False)),
    ("CAC 100-399", (True, True, False)),
    ("CAC 400+", (True, True, True)),
]


@pytest.mark.parametrize(("category", "positive"), THRESHOLDS)
def test_a_category_is_positive_at_the_thresholds_below_it(category, positive):
    people = population(10, 10, category=category)
    for threshold, expected in zip((0, 100, 400), positive, strict=True):
        table = audit(people, strata=(), threshold=threshold)["audit_positivity"].filter(exposure="cxr")
        assert table["n_positive"].to_list() == [10 if expected else 0]
        assert table["threshold"].to_list() == [threshold]


def test_people_whose_stratum_is_missing_form_a_level_of_their_own():
    people = population(10, 4).with_columns(pl.when(pl.int_range(pl.len()) > 2).then("sex").alias("sex"))
    table = audit(people)["audit_positivity"].filter(exposure="cxr", stratum="sex")
    assert dict(table.select("level", "n").iter_rows()) == {"F": 3, "M": 4, "unknown": 3}


def test_two_sites_are_given_apart_and_pooled():
    two = pl.concat([population(10, 4), population(30, 3).with_columns(site=pl.lit("B"))])
    table = audit(two, strata=())["audit_positivity"].filter(exposure="cxr")
    assert table.select("site", "score_origin", "n", "n_positive").rows() == [
        ("A", "external", 10, 4),
        ("B", "external", 30, 3),
        ("all", "all", 40, 7),
    ]


def test_where_nobody_is_scored_coverage_is_0_and_nothing_else_is_said():
    found = audit(population(0, 0, n_unscored=8))
    assert found["audit_coverage"].filter(stratum="overall")["coverage"].to_list() == [0]
    assert found["audit_positivity"].is_empty()
    assert found["audit_prevalence"].is_empty()


def test_an_empty_population_has_no_coverage():
    row = audit(population(0, 0), strata=())["audit_coverage"].row(0, named=True)
    assert (row["n_eligible"], row["coverage"], row["lower"]) == (0, None, None)
