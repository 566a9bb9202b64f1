"""One CT and one radiograph per patient, whatever the order of rows. Sees neither pixels, scores nor outcomes."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from cohort_scorer.cohort.eligibility import Attrition, describe

_FILM_ORDER = ("acquisition_time", "image_id")


@dataclass(frozen=True)
class Rules:
    """The rules of [cohort] in the study file.

    Attributes:
        maximum_days_between: Largest distance between radiograph and CT, in days, inclusive.
        pairing: `nearest`, `nearest_before` or `nearest_after`: the film's side of the CT.
        minimum_age_years: Youngest age on study_date; 0 asks for no age, and a missing one stays in.
        exclude_if: Boolean clinical columns that exclude.
        exclude_between: Event types that exclude when dated between the two scans, both days included.
    """

    maximum_days_between: int
    pairing: str
    minimum_age_years: float
    exclude_if: Sequence[str]
    exclude_between: Sequence[str]


def pair(films: pl.DataFrame, cacs: pl.DataFrame, maximum_days_between: int, pairing: str) -> pl.DataFrame:
    """Choose for every patient the earliest CT that has a film in the window, and its nearest film.

    Ties between films go to the one before the CT, then by acquisition_time (missing last), then by image_id.

    Args:
        films: Eligible, dated films.
        cacs: patient_id, ct_date, cacs.
        maximum_days_between: |CXR - CT| in days, inclusive.
        pairing: The film's side of the CT.

    Returns:
        One row per patient that has a pair: the film's columns with ct_date, cacs and days_between (CXR - CT).
    """
    days = (pl.col("study_date") - pl.col("ct_date")).dt.total_days()
    side = {"nearest": pl.lit(True), "nearest_before": days <= 0, "nearest_after": days >= 0}[pairing]
    return (
        films.join(cacs.select("patient_id", "ct_date", "cacs"), on="patient_id", how="inner")
        .with_columns(days.alias("days_between"))
        .filter((pl.col("days_between").abs() <= maximum_days_between) & side)
        .sort(
            "patient_id",
            "ct_date",
            pl.col("days_between").abs(),
            pl.col("days_between") > 0,
            *_FILM_ORDER,
            nulls_last=True,
        )
        .unique("patient_id", keep="first", maintain_order=True)
    )


def superseded(films: pl.DataFrame, cohort: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    """List the eligible films of the cohort's patients that were not taken, each with the first rule that it lost by.

    Args:
        films: As for `link`.
        cohort: What `link` made of them.
        rules: The rules that it made it by.

    Returns:
        patient_id, image_id, uri, study_date, ct_date of the patient's pair, days_between from it, reason; sorted by
        patient_id and image_id. With the cohort's films these are the eligible films of its patients.
    """
    chosen = (
        films.filter("is_eligible")
        .select("image_id", pl.col("acquisition_time").alias("chosen_time"))
        .join(cohort.select("patient_id", "image_id", "ct_date", "study_date"), on="image_id")
        .select("patient_id", "ct_date", "chosen_time", pl.col("study_date").alias("chosen_date"))
    )
    others = films.filter("is_eligible").join(cohort, on="image_id", how="anti").join(chosen, on="patient_id")
    days = (pl.col("study_date") - pl.col("ct_date")).dt.total_days()
    chosen_days = (pl.col("chosen_date") - pl.col("ct_date")).dt.total_days()
    wrong_side = {"nearest": pl.lit(False), "nearest_before": days > 0, "nearest_after": days < 0}[rules.pairing]
    reason = (
        pl.when(pl.col("study_date").is_null())
        .then(pl.lit("no_date"))
        .when(days.abs() > rules.maximum_days_between)
        .then(pl.lit("outside_window"))
        .when(wrong_side)
        .then(pl.lit("other_side"))
        .when(days.abs() > chosen_days.abs())
        .then(pl.lit("farther"))
        .when(days > chosen_days)
        .then(pl.lit("after_ct"))
        .when(pl.col("study_date") > pl.col("chosen_date"))
        .then(pl.lit("later_date"))
        .when(pl.col("acquisition_time").ne_missing(pl.col("chosen_time")))
        .then(pl.lit("later_time"))
        .otherwise(pl.lit("later_image_id"))
    )
    return others.select(
        "patient_id", "image_id", "uri", "study_date", "ct_date", days.alias("days_between"), reason.alias("reason")
    ).sort("patient_id", "image_id")


def true_category(cacs: str, categories: Sequence[str]) -> pl.Expr:
    """CAC 0 = {0}; CAC 1-99 = (0, 100), fractions included; CAC 100-399 = [100, 400); CAC 400+ = [400, inf)."""
    score = pl.col(cacs)
    level = (score > 0).cast(pl.Int8) + (score >= 100).cast(pl.Int8) + (score >= 400).cast(pl.Int8)
    return level.replace_strict(dict(enumerate(categories)), return_dtype=pl.String)


def link(
    films: pl.DataFrame,
    cacs: pl.DataFrame | None,
    clinical: pl.DataFrame | None,
    events: pl.DataFrame | None,
    rules: Rules,
    categories: Sequence[str],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Link films, truth and clinical facts into a cohort of one row per patient.

    Args:
        films: patient_id, image_id, uri, study_date, acquisition_time, site, age_years, sex, is_radiograph (bool),
            is_eligible (bool). A film without patient_id counts as a patient of its own.
        cacs: The table of true scores, or None where the study has no truth: then the first eligible film is taken.
        clinical: The clinical table, or None.
        events: The events table; only types in `exclude_between` are looked at.
        rules: The study's rules.
        categories: Names of the four categories, lowest first.

    Returns:
        The cohort sorted by patient_id, and attrition.csv of step `cohort`.
    """
    attrition = Attrition("cohort")
    usable = films.filter(pl.col("is_eligible") & pl.col("study_date").is_not_null())
    people = _everybody(films, cacs)
    people = attrition.keep(people, "no linkable id", pl.col("patient_id").is_not_null())
    people = attrition.keep(people, "no radiograph", _among(films.filter("is_radiograph")))
    # A frontal film without a date is one: with CTs its patient leaves at the window, which nobody can judge.
    people = attrition.keep(people, "no frontal view", _among(usable if cacs is None else films.filter("is_eligible")))
    if cacs is None:
        first = usable.sort("patient_id", "study_date", *_FILM_ORDER, nulls_last=True)
        pairs = first.unique("patient_id", keep="first", maintain_order=True).with_columns(
            pl.lit(None, pl.Date).alias("ct_date"),
            pl.lit(None, pl.Float64).alias("cacs"),
            pl.lit(None, pl.Int64).alias("days_between"),
        )
    else:
        people = attrition.keep(people, "no CACS", _among(cacs))
        pairs = pair(usable, cacs, rules.maximum_days_between, rules.pairing)
        people = attrition.keep(people, "no CACS in the window", _among(pairs))
    people = describe(pairs.join(people, on="patient_id", how="semi"), clinical)
    people = attrition.keep(
        people,
        "age missing or under the minimum",
        (pl.col("age_years") >= rules.minimum_age_years).fill_null(rules.minimum_age_years == 0),
    )
    for column in rules.exclude_if:
        people = attrition.keep(people, f"exclude_if {column}", ~pl.col(column).cast(pl.Boolean).fill_null(False))
    for event_type in rules.exclude_between:
        between = _events_between(people, events, event_type)
        people = attrition.keep(people, f"exclude_between {event_type}", ~_among(between))
    cohort = people.with_columns(true_category("cacs", categories).alias("true_category")).drop(
        "is_radiograph", "is_eligible", "acquisition_time"
    )
    return cohort.sort("patient_id"), attrition.table()


def _everybody(films: pl.DataFrame, cacs: pl.DataFrame | None) -> pl.DataFrame:
    """One row per patient of index and cacs together; a film without an id stands for itself."""
    nameless = films.filter(pl.col("patient_id").is_null()).select("patient_id")
    named = [films.select("patient_id")] + ([] if cacs is None else [cacs.select("patient_id")])
    return pl.concat([pl.concat(named).drop_nulls().unique(), nameless])


def _among(frame: pl.DataFrame) -> pl.Expr:
    return pl.col("patient_id").is_in(frame["patient_id"].drop_nulls().unique().implode())


def _events_between(people: pl.DataFrame, events: pl.DataFrame | None, event_type: str) -> pl.DataFrame:
    if events is None:
        return people.clear()
    scans = pl.min_horizontal("study_date", "ct_date"), pl.max_horizontal("study_date", "ct_date")
    return people.join(events.filter(pl.col("event_type") == event_type), on="patient_id", how="inner").filter(
        pl.col("event_date").is_between(*scans)
    )
