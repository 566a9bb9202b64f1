"""Who the patients of the cohort are, by true category."""

import itertools
import math
from collections.abc import Iterator, Sequence

import polars as pl

_ALWAYS = ("site", "days_between", "cacs", "age_years", "sex", "bmi")
_MAXIMUM_LEVELS = 12


def table(cohort: pl.DataFrame, categories: Sequence[str], declared: Sequence[str]) -> pl.DataFrame:
    """Describe the characteristics of the cohort by true category and overall.

    Numbers by mean, standard deviation, median and quartiles; text and booleans by count and percent of those not
    missing. Text with more than 12 levels is left out: it identifies rather than describes.

    Args:
        cohort: One row per patient, with true_category.
        categories: The categories, lowest first.
        declared: Clinical columns that the study file names; others may be notes or record numbers and stay inside.

    Returns:
        variable, level, statistic, one column per category, overall, missing, and on the first row of a variable or
        level the largest absolute standardised difference between two categories (Austin, Stat Med 2009;28:3083).
    """
    groups = {name: cohort.filter(pl.col("true_category") == name) for name in categories}
    rows = [_row("patients", None, "n", groups, cohort, pl.len())]
    for variable in (name for name in dict.fromkeys([*_ALWAYS, *declared]) if name in cohort.columns):
        if cohort[variable].dtype.is_numeric():
            rows += _numeric(variable, groups, cohort)
        elif cohort[variable].n_unique() <= _MAXIMUM_LEVELS and cohort[variable].dtype in (pl.String, pl.Boolean):
            rows += _levels(variable, groups, cohort)
    texts = dict.fromkeys(["variable", "level", "statistic"], pl.String())
    numbers = dict.fromkeys([*categories, "overall"], pl.Float64())
    others = {"missing": pl.Int64(), "standardised_difference": pl.Float64()}
    return pl.DataFrame(rows, schema={**texts, **numbers, **others})


def _numeric(variable: str, groups: dict[str, pl.DataFrame], cohort: pl.DataFrame) -> Iterator[dict[str, object]]:
    statistics = {
        "mean": pl.col(variable).mean(),
        "sd": pl.col(variable).std(),
        "median": pl.col(variable).median(),
        "lower_quartile": pl.col(variable).quantile(0.25, "linear"),
        "upper_quartile": pl.col(variable).quantile(0.75, "linear"),
    }
    moments: list[tuple[float, float]] = [
        people.select(pl.col(variable).mean().alias("mean"), pl.col(variable).var().alias("variance")).row(0)
        for people in groups.values()
        if people[variable].drop_nulls().len() > 1
    ]
    for name, expression in statistics.items():
        row = _row(variable, None, name, groups, cohort, expression)
        if name == "mean":
            row["standardised_difference"] = _largest_difference(moments)
        yield row


def _levels(variable: str, groups: dict[str, pl.DataFrame], cohort: pl.DataFrame) -> Iterator[dict[str, object]]:
    for level in cohort[variable].drop_nulls().unique().sort():
        label = str(level).lower() if isinstance(level, bool) else str(level)
        hit = pl.col(variable) == level
        shares = [
            share
            for people in groups.values()
            if (share := people.select(hit.cast(pl.Float64).mean()).item()) is not None
        ]
        count = _row(variable, label, "n", groups, cohort, hit.sum())
        count["standardised_difference"] = _largest_difference([(share, share * (1 - share)) for share in shares])
        yield count
        yield _row(variable, label, "percent", groups, cohort, 100 * hit.mean())


def _row(
    variable: str,
    level: str | None,
    statistic: str,
    groups: dict[str, pl.DataFrame],
    cohort: pl.DataFrame,
    value: pl.Expr,
) -> dict[str, object]:
    def of(people: pl.DataFrame) -> float | None:
        return None if people.is_empty() else people.select(value.cast(pl.Float64)).item()

    return {
        "variable": variable,
        "level": level,
        "statistic": statistic,
        **{name: of(people) for name, people in groups.items()},
        "overall": of(cohort),
        "missing": 0 if variable == "patients" else cohort[variable].null_count(),
        "standardised_difference": None,
    }


def _largest_difference(moments: Sequence[tuple[float, float]]) -> float | None:
    """|difference of means| / sqrt(mean of the two variances), the largest over all pairs of groups."""
    found = [
        abs(mean_a - mean_b) / math.sqrt((variance_a + variance_b) / 2)
        for (mean_a, variance_a), (mean_b, variance_b) in itertools.combinations(moments, 2)
        if variance_a + variance_b > 0
    ]
    return max(found, default=None)
