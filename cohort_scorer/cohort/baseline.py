"""Who the patients of the cohort are, by true category and by site, and how far apart their scans lie."""

import itertools
import math
from collections.abc import Iterator, Sequence

import polars as pl

from cohort_scorer.schemas import ALL

_ALWAYS = ("site", "days_between", "cacs", "age_years", "sex", "bmi")
_MAXIMUM_LEVELS = 12
_BIN_DAYS = (1, 2, 5, 7, 10, 15, 30, 60, 90, 180, 365)
_BINS_PER_SIDE = 6


def table(cohort: pl.DataFrame, categories: Sequence[str], declared: Sequence[str]) -> pl.DataFrame:
    """Describe the characteristics of the cohort, by true category and overall, in all patients and at each site.

    Numbers by mean, standard deviation, median and quartiles; text and booleans by count and percent of those not
    missing. Text with more than 12 levels is left out: it identifies rather than describes.

    Args:
        cohort: One row per patient, with true_category and site (never missing).
        categories: The categories, lowest first.
        declared: Clinical columns that the study file names; others may be notes or record numbers and stay inside.

    Returns:
        site (`all` first; each by itself where there are several), variable, level, statistic, one column per category,
        overall, missing; on the first row of a variable or level the largest absolute standardised difference between
        two categories and, in the rows of `all`, between two sites (Austin, Stat Med 2009;28:3083).
    """
    sites = _sites(cohort)
    rows = _rows(ALL, cohort, cohort, categories, declared, sites)
    for site, people in sites.items():
        rows += _rows(site, people, cohort, categories, [name for name in declared if name != "site"], {})
    texts = dict.fromkeys(["site", "variable", "level", "statistic"], pl.String())
    numbers = dict.fromkeys([*categories, "overall"], pl.Float64())
    others = {
        "missing": pl.Int64(),
        "standardised_difference": pl.Float64(),
        "site_standardised_difference": pl.Float64(),
    }
    return pl.DataFrame(rows, schema={**texts, **numbers, **others})


def interval(cohort: pl.DataFrame, maximum_days_between: int) -> pl.DataFrame:
    """Count patients by the days from CT to radiograph.

    Args:
        cohort: One row per patient, with site and days_between (radiograph - CT; null without a CT).
        maximum_days_between: The window of [cohort].

    Returns:
        site (`all` first; each by itself where there are several), lower_days, upper_days (both inclusive), n. The
        same day is a bin of its own, the others are equally wide and lie on one side of the CT; together they are the
        window.
    """
    known = cohort.drop_nulls("days_between")
    if known.is_empty():
        return pl.DataFrame(
            schema={"site": pl.String(), "lower_days": pl.Int64(), "upper_days": pl.Int64(), "n": pl.Int64()}
        )
    needed = maximum_days_between / _BINS_PER_SIDE
    width = next((days for days in _BIN_DAYS if days >= needed), math.ceil(needed))
    after = [
        (first, min(first + width - 1, maximum_days_between)) for first in range(1, maximum_days_between + 1, width)
    ]
    bins = [*((-upper, -lower) for lower, upper in reversed(after)), (0, 0), *after]
    return pl.concat(
        known_at.select(
            pl.lit(site).alias("site"),
            pl.lit(lower).alias("lower_days"),
            pl.lit(upper).alias("upper_days"),
            pl.col("days_between").is_between(lower, upper).sum().cast(pl.Int64).alias("n"),
        )
        for site, known_at in {ALL: known, **_sites(known)}.items()
        for lower, upper in bins
    )


def _sites(cohort: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The patients of each site, where there are several."""
    parts = cohort.partition_by("site", as_dict=True)
    return {str(site): people for (site,), people in sorted(parts.items())} if len(parts) > 1 else {}


def _rows(
    site: str,
    people: pl.DataFrame,
    cohort: pl.DataFrame,
    categories: Sequence[str],
    declared: Sequence[str],
    sites: dict[str, pl.DataFrame],
) -> list[dict[str, object]]:
    """The rows of one site, or of all; what is described, and its levels, are those of the whole cohort."""
    groups = {name: people.filter(pl.col("true_category") == name) for name in categories}
    rows = [_row("patients", None, "n", groups, people, pl.len())]
    wanted = dict.fromkeys([*_ALWAYS, *declared])
    if site != ALL:
        del wanted["site"]
    for variable in (name for name in wanted if name in cohort.columns):
        between_sites = {} if variable == "site" else sites
        if cohort[variable].dtype.is_numeric():
            rows += _numeric(variable, groups, people, between_sites)
        elif cohort[variable].n_unique() <= _MAXIMUM_LEVELS and cohort[variable].dtype in (pl.String, pl.Boolean):
            levels = cohort[variable].drop_nulls().unique().sort()
            rows += _levels(variable, levels, groups, people, between_sites)
    return [{"site": site, **row} for row in rows]


def _numeric(
    variable: str, groups: dict[str, pl.DataFrame], people: pl.DataFrame, sites: dict[str, pl.DataFrame]
) -> Iterator[dict[str, object]]:
    statistics = {
        "mean": pl.col(variable).mean(),
        "sd": pl.col(variable).std(),
        "median": pl.col(variable).median(),
        "lower_quartile": pl.col(variable).quantile(0.25, "linear"),
        "upper_quartile": pl.col(variable).quantile(0.75, "linear"),
    }

    def moments(parts: dict[str, pl.DataFrame]) -> list[tuple[float, float]]:
        return [
            part.select(pl.col(variable).mean().alias("mean"), pl.col(variable).var().alias("variance")).row(0)
            for part in parts.values()
            if part[variable].drop_nulls().len() > 1
        ]

    for name, expression in statistics.items():
        row = _row(variable, None, name, groups, people, expression)
        if name == "mean":
            row["standardised_difference"] = _largest_difference(moments(groups))
            row["site_standardised_difference"] = _largest_difference(moments(sites))
        yield row


def _levels(
    variable: str,
    levels: pl.Series,
    groups: dict[str, pl.DataFrame],
    people: pl.DataFrame,
    sites: dict[str, pl.DataFrame],
) -> Iterator[dict[str, object]]:
    for level in levels:
        label = str(level).lower() if isinstance(level, bool) else str(level)
        hit = pl.col(variable) == level

        def moments(parts: dict[str, pl.DataFrame], hit: pl.Expr = hit) -> list[tuple[float, float]]:
            shares = [part.select(hit.cast(pl.Float64).mean()).item() for part in parts.values()]
            return [(share, share * (1 - share)) for share in shares if share is not None]

        count = _row(variable, label, "n", groups, people, hit.sum())
        count["standardised_difference"] = _largest_difference(moments(groups))
        count["site_standardised_difference"] = _largest_difference(moments(sites))
        yield count
        yield _row(variable, label, "percent", groups, people, 100 * hit.mean())


def _row(
    variable: str,
    level: str | None,
    statistic: str,
    groups: dict[str, pl.DataFrame],
    people: pl.DataFrame,
    value: pl.Expr,
) -> dict[str, object]:
    def of(part: pl.DataFrame) -> float | None:
        return None if part.is_empty() else part.select(value.cast(pl.Float64)).item()

    return {
        "variable": variable,
        "level": level,
        "statistic": statistic,
        **{name: of(part) for name, part in groups.items()},
        "overall": of(people),
        "missing": 0 if variable == "patients" else people[variable].null_count(),
        "standardised_difference": None,
        "site_standardised_difference": None,
    }


def _largest_difference(moments: Sequence[tuple[float, float]]) -> float | None:
    """|difference of means| / sqrt(mean of the two variances), the largest over all pairs of groups."""
    found = [
        abs(mean_a - mean_b) / math.sqrt((variance_a + variance_b) / 2)
        for (mean_a, variance_a), (mean_b, variance_b) in itertools.combinations(moments, 2)
        if variance_a + variance_b > 0
    ]
    return max(found, default=None)
