"""The tables of `audit`: coverage, positivity, and prevalence adjusted for misclassification. Knows no file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from cohort_scorer.statistics import prevalence, proportions
from cohort_scorer.statistics.groups import by_site_and_origin, joined, labelled

EXPOSURES = ("cxr", "integrated")
_OVERALL = "overall"


@dataclass(frozen=True)
class Accuracy:
    """Sensitivity and specificity with the numbers of diseased and healthy people they were measured in."""

    sensitivity: float
    n_diseased: int
    specificity: float
    n_healthy: int


def tables(
    people: pl.DataFrame,
    strata: Sequence[str],
    threshold: int,
    categories: Sequence[str],
    accuracy: Mapping[str, Accuracy],
    level: float,
) -> dict[str, pl.DataFrame]:
    """Make audit_coverage, audit_positivity and audit_prevalence.

    Args:
        people: One row per patient: site, score_origin, the strata, has_radiograph, is_readable, is_scored (bool),
            cxr_category and integrated_category (null where not scored).
        strata: Columns that form the strata.
        threshold: Agatston units; a predicted category at or above it (above, for 0) is positive.
        categories: The four categories, lowest first.
        accuracy: Of each exposure, where known.
        level: Confidence level.
    """
    positive = categories[[0, 100, 400].index(threshold) + 1 :]
    coverage = [_coverage(part, level, stratum, name) for stratum, name, part in _strata(people, strata)]
    positivity, adjusted = [], []
    for site, origin, group in by_site_and_origin(people.filter("is_scored")):
        for exposure in EXPOSURES:
            if f"{exposure}_category" not in group.columns:
                continue
            classified = group.drop_nulls(f"{exposure}_category")
            for stratum, name, part in _strata(classified, strata):
                n_positive = part.filter(pl.col(f"{exposure}_category").is_in(positive)).height
                place = {"site": site, "score_origin": origin, "exposure": exposure, "threshold": threshold}
                place |= {"stratum": stratum, "level": name}
                positivity.append(labelled(_positivity(n_positive, len(part), level), **place))
                adjusted.append(labelled(_prevalence(n_positive, len(part), accuracy.get(exposure), level), **place))
    found = {"audit_coverage": coverage, "audit_positivity": positivity, "audit_prevalence": adjusted}
    return {name: joined(parts, name) for name, parts in found.items()}


def _strata(people: pl.DataFrame, strata: Sequence[str]) -> Iterator[tuple[str, str | None, pl.DataFrame]]:
    """Everybody, then each level of each stratum; people whose level is missing form the level `unknown`."""
    yield _OVERALL, None, people
    for stratum in strata:
        named = people.with_columns(pl.col(stratum).cast(pl.String).fill_null("unknown").alias("stratum_level"))
        for level in named["stratum_level"].unique().sort():
            yield stratum, level, named.filter(pl.col("stratum_level") == level).drop("stratum_level")


def _coverage(part: pl.DataFrame, level: float, stratum: str, name: str | None) -> pl.DataFrame:
    n_scored = int(part["is_scored"].sum())
    estimate, lower, upper = proportions.wilson(n_scored, len(part), level)
    row = {
        "n_eligible": len(part),
        "n_with_cxr": int(part["has_radiograph"].sum()),
        "n_readable": int(part["is_readable"].sum()),
        "n_scored": n_scored,
        "coverage": float(estimate),
        "lower": float(lower),
        "upper": float(upper),
        "uptake": None,
    }
    frame = pl.DataFrame([row], schema_overrides={"uptake": pl.Float64}).fill_nan(None)
    return labelled(frame, stratum=stratum, level=name)


def _positivity(n_positive: int, n: int, level: float) -> pl.DataFrame:
    estimate, lower, upper = proportions.wilson(n_positive, n, level)
    row: dict[str, float] = {"n": n, "n_positive": n_positive}
    row |= {"positivity": float(estimate), "lower": float(lower), "upper": float(upper)}
    return pl.DataFrame([row]).fill_nan(None)


def _prevalence(n_positive: int, n: int, accuracy: Accuracy | None, level: float) -> pl.DataFrame:
    row: dict[str, object] = {"n": n, "apparent_prevalence": n_positive / n if n else None}
    if accuracy is None:
        return pl.DataFrame([row | {"reason": "sensitivity and specificity are not known"}])
    found = prevalence.rogan_gladen(
        n_positive,
        n,
        accuracy.sensitivity,
        accuracy.n_diseased,
        accuracy.specificity,
        accuracy.n_healthy,
        level,
    )
    return pl.DataFrame(
        [
            row
            | {
                "sensitivity": accuracy.sensitivity,
                "n_sensitivity": accuracy.n_diseased,
                "specificity": accuracy.specificity,
                "n_specificity": accuracy.n_healthy,
                "prevalence": found.prevalence,
                "lower": found.lower,
                "upper": found.upper,
                "reason": found.reason,
            }
        ]
    )
