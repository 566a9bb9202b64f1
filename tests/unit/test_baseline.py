"""The baseline table against numbers worked out by hand."""

import polars as pl
import pytest

from cohort_scorer import schemas
from cohort_scorer.cohort import baseline

CATEGORIES = schemas.vocabulary("cohort", "true_category")
PEOPLE = pl.DataFrame(
    {
        "patient_id": list("abcdef"),
        "site": ["A", "A", "B", "B", "A", "B"],
        "true_category": ["CAC 0", "CAC 0", "CAC 0", "CAC 400+", "CAC 400+", None],
        "age_years": [40.0, 50.0, 60.0, 70.0, 80.0, 55.0],
        "sex": ["F", "F", "M", "M", None, "F"],
        "diabetes": [False, True, False, True, True, False],
        "note": ["call 555-0", None, None, None, None, None],
    }
)
TABLE = baseline.table(PEOPLE, CATEGORIES, ["diabetes"])


def cell(variable: str, statistic: str, column: str, level: str | None = None, site: str = "all") -> float | None:
    rows = TABLE.filter(
        (pl.col("site") == site)
        & (pl.col("variable") == variable)
        & (pl.col("statistic") == statistic)
        & pl.col("level").eq_missing(level)
    )
    assert len(rows) == 1
    return rows[column][0]


def test_patients_are_counted_by_true_category_and_overall():
    assert [cell("patients", "n", column) for column in (*CATEGORIES, "overall")] == [3, None, None, 2, 6]


def test_numbers_are_described_and_their_difference_standardised():
    assert (cell("age_years", "mean", "CAC 0"), cell("age_years", "sd", "CAC 0")) == (50, 10)
    assert (cell("age_years", "mean", "CAC 400+"), cell("age_years", "median", "CAC 400+")) == (75, 75)
    assert cell("age_years", "lower_quartile", "CAC 0") == 45
    # |75 - 50| / sqrt((100 + 50) / 2)
    assert cell("age_years", "mean", "standardised_difference") == pytest.approx(25 / 75**0.5)


def test_levels_are_counted_in_percent_of_those_who_are_known():
    assert (cell("sex", "n", "CAC 400+", "M"), cell("sex", "percent", "CAC 400+", "M")) == (1, 100)
    assert cell("sex", "percent", "overall", "F") == pytest.approx(60)
    assert cell("sex", "n", "missing", "F") == 1
    assert cell("diabetes", "percent", "CAC 0", "true") == pytest.approx(100 / 3)
    # |1 - 1/3| / sqrt((0 + 2/9) / 2)
    assert cell("diabetes", "n", "standardised_difference", "true") == pytest.approx(2)


def test_identifiers_describe_nobody():
    assert not {"patient_id", "true_category"} & set(TABLE["variable"])


def test_columns_that_no_study_file_names_stay_inside():
    assert "note" not in set(TABLE["variable"])


def test_the_order_of_patients_changes_nothing():
    assert baseline.table(PEOPLE.reverse(), CATEGORIES, ["diabetes"]).equals(TABLE)


def test_each_site_is_described_by_itself_and_the_sites_are_compared():
    assert TABLE["site"].unique(maintain_order=True).to_list() == ["all", "A", "B"]
    assert [cell("patients", "n", "overall", site=site) for site in "AB"] == [3, 3]
    assert cell("patients", "n", "CAC 0", site="A") == 2
    assert cell("age_years", "mean", "overall", site="B") == pytest.approx(185 / 3)
    assert (cell("sex", "n", "missing", "F", site="A"), cell("sex", "n", "missing", "F", site="B")) == (1, 0)
    # Ages 40, 50, 80 and 60, 70, 55: |170/3 - 185/3| / sqrt((1300/3 + 175/3) / 2)
    assert cell("age_years", "mean", "site_standardised_difference") == pytest.approx(5 / (1475 / 6) ** 0.5)
    # Two of two are women at A, one of three at B: |1 - 1/3| / sqrt((0 + 2/9) / 2)
    assert cell("sex", "n", "site_standardised_difference", "F") == pytest.approx(2)
    assert TABLE.filter(pl.col("site") != "all")["site_standardised_difference"].null_count() == len(
        TABLE.filter(pl.col("site") != "all")
    )
    assert "site" not in TABLE.filter(pl.col("site") != "all")["variable"]


def test_a_level_that_a_site_has_nobody_in_stands_there_with_zero():
    men = PEOPLE.with_columns(sex=pl.when(pl.col("site") == "A").then(pl.lit("M")).otherwise("sex"))
    table = baseline.table(men, CATEGORIES, [])
    at_a = table.filter((pl.col("site") == "A") & (pl.col("level") == "F") & (pl.col("statistic") == "n"))
    assert at_a["overall"].to_list() == [0]


def test_one_site_is_not_described_twice():
    assert set(baseline.table(PEOPLE.with_columns(site=pl.lit("A")), CATEGORIES, [])["site"]) == {"all"}


@pytest.mark.parametrize("window", [0, 1, 7, 30, 180, 365, 5000])
def test_the_days_between_the_scans_are_counted_once_each(window):
    days = pl.int_range(-window, window + 1, eager=True)
    people = pl.DataFrame({"site": ["A"] * len(days), "days_between": days})
    found = baseline.interval(people, window)
    assert found.filter((pl.col("lower_days") == 0) & (pl.col("upper_days") == 0))["n"].to_list() == [1]
    assert found["n"].to_list() == (found["upper_days"] - found["lower_days"] + 1).to_list()
    assert (found["lower_days"].min(), found["upper_days"].max()) == (-window, window)
    assert (found["lower_days"][1:] == found["upper_days"][:-1] + 1).all()
    assert len(found) <= 13


def test_the_days_between_the_scans_are_counted_by_site_too_and_without_a_ct_not_at_all():
    people = PEOPLE.with_columns(days_between=pl.Series([-30, -1, 0, 0, 31, None]))
    found = baseline.interval(people, 180)
    rows = {(site, lower): n for site, lower, _, n in found.iter_rows()}
    assert [rows["all", lower] for lower in (-60, -30, 0, 1, 31)] == [0, 2, 2, 0, 1]
    assert [rows["A", -30], rows["B", 0]] == [2, 2]
    assert baseline.interval(people.with_columns(days_between=pl.lit(None, pl.Int64)), 180).is_empty()
