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


def cell(variable: str, statistic: str, column: str, level: str | None = None) -> float | None:
    rows = TABLE.filter(
        (pl.col("variable") == variable) & (pl.col("statistic") == statistic) & pl.col("level").eq_missing(level)
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
