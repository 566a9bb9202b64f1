"""From cohort, scores and events to the analysis set: t0, blanking, prior events, landmark, status, time.

Follow-up starts at the later of the two scans (Suissa, Am J Epidemiol 2008;167:492: starting at the earlier makes
immortal time). Sees no pixel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from cohort_scorer.cohort.eligibility import DAYS_PER_YEAR, Attrition, age_years

EVENT, COMPETING, CENSORED = 1, 2, 0
_MACE3 = ("cardiovascular_death", "myocardial_infarction", "stroke")
PRESETS = {
    "mace3": _MACE3,
    "mace4": (*_MACE3, "unstable_angina"),
    "mace5": (*_MACE3, "unstable_angina", "heart_failure"),
}
"""Composite outcomes by name, as Bosco E and others, BMC Med Res Methodol 2021;21:241 tell them. Other papers mean
other composites by the same names: what counted is written out in the report."""


@dataclass(frozen=True)
class Rules:
    """The rules of [outcome] in the study file.

    Attributes:
        components: Event types that are the outcome.
        competing: Event types that compete with it.
        terminal: Event types that end follow-up though neither of the above.
        blanking_days: For an event type, events from day 0 to this day after the CT (t0 without CT) are dropped.
        exclude_prior: Whether a component or competing event dated before the first scan excludes the patient.
        landmark_days: Time counts from t0 plus this many days.
    """

    components: Sequence[str]
    competing: Sequence[str]
    terminal: Sequence[str]
    blanking_days: Mapping[str, int]
    exclude_prior: bool
    landmark_days: int


def components(named: Sequence[str] | str, types: Sequence[str]) -> Sequence[str]:
    """The event types of an outcome: as listed, of a preset, or, for `all_cause_death`, all that contain `death`."""
    if named == "all_cause_death":
        return [name for name in types if "death" in name.lower()]
    return PRESETS[named] if isinstance(named, str) else named


@dataclass(frozen=True)
class FollowUp:
    """The analysis set and what was left out of it.

    Attributes:
        people: One row per patient: what came in, with t0, time_days, status, first_component, age_at_t0_years.
        attrition: attrition.csv of step `analysis`.
        n_blanked: Events dropped by blanking.
        n_after_last_contact: Events not used because they lie after the last contact.
    """

    people: pl.DataFrame
    attrition: pl.DataFrame
    n_blanked: int
    n_after_last_contact: int


def follow(
    cohort: pl.DataFrame,
    unreadable: pl.DataFrame,
    scores: pl.DataFrame,
    follow_up: pl.DataFrame,
    events: pl.DataFrame,
    rules: Rules,
) -> FollowUp:
    """Make the analysis set.

    Args:
        cohort: patient_id, image_id, study_date, ct_date (null without truth), age_years, birth_date.
        unreadable: image_id of films that scoring refused.
        scores: image_id and score columns.
        follow_up: patient_id, last_contact_date.
        events: patient_id, event_type, event_date.
        rules: The study's rules.
    """
    attrition = Attrition("analysis")
    people = attrition.keep(cohort, "unreadable", ~pl.col("image_id").is_in(unreadable["image_id"].implode()))
    people = attrition.keep(people, "no score", pl.col("image_id").is_in(scores["image_id"].implode()))
    extra = [name for name in scores.columns if name == "image_id" or name not in people.columns]
    people = people.join(scores.select(extra), on="image_id", how="left")
    people = people.join(follow_up.select("patient_id", "last_contact_date"), on="patient_id", how="left")
    people = attrition.keep(people, "no follow-up", pl.col("last_contact_date").is_not_null())
    people = people.with_columns(
        pl.min_horizontal("study_date", "ct_date").alias("first_scan"),
        pl.max_horizontal("study_date", "ct_date").alias("t0"),
    ).with_columns((pl.col("t0") + pl.duration(days=rules.landmark_days)).alias("start"))

    relevant, n_blanked, n_late = _relevant_events(people, events, rules)
    major = pl.col("kind").is_in([EVENT, COMPETING])
    between = relevant.filter(major & pl.col("event_date").is_between("first_scan", "t0"))
    people = attrition.keep(people, "event between the scans", ~_among(between))
    if rules.exclude_prior:
        prior = relevant.filter(major & (pl.col("event_date") < pl.col("first_scan")))
        people = attrition.keep(people, "prior event", ~_among(prior))
    # Earlier components and competing events are judged above; a terminal event ends follow-up whenever it lies.
    over = relevant.filter((pl.col("event_date") <= pl.col("start")) & (~major | (pl.col("event_date") > pl.col("t0"))))
    lost = pl.col("last_contact_date") <= pl.col("start")
    reason = "event or lost by the landmark" if rules.landmark_days > 0 else "no time after t0"
    people = attrition.keep(people, reason, ~(_among(over) | lost))
    people = _status(people, relevant)
    people = people.with_columns(
        pl.coalesce(
            age_years("birth_date", "t0"),
            pl.col("age_years") + (pl.col("t0") - pl.col("study_date")).dt.total_days() / DAYS_PER_YEAR,
        ).alias("age_at_t0_years")
    ).drop("first_scan", "start", "last_contact_date")
    return FollowUp(people.sort("patient_id"), attrition.table(), n_blanked, n_late)


def _among(frame: pl.DataFrame) -> pl.Expr:
    return pl.col("patient_id").is_in(frame["patient_id"].unique().implode())


def _relevant_events(people: pl.DataFrame, events: pl.DataFrame, rules: Rules) -> tuple[pl.DataFrame, int, int]:
    """Events of the people that the rules name, with their kind, less blanked ones and those after the last contact."""
    kinds = dict.fromkeys(rules.terminal, CENSORED)
    kinds |= dict.fromkeys(rules.competing, COMPETING) | dict.fromkeys(rules.components, EVENT)
    named = (
        events.select("patient_id", "event_type", "event_date")
        .filter(pl.col("event_type").is_in(list(kinds)))
        .with_columns(pl.col("event_type").replace_strict(kinds, return_dtype=pl.Int64).alias("kind"))
        .join(
            people.select("patient_id", "first_scan", "t0", "start", "ct_date", "last_contact_date"),
            on="patient_id",
            how="inner",
        )
    )
    blanking = (
        pl.col("event_type").replace_strict(dict(rules.blanking_days), default=None, return_dtype=pl.Int64)
        if rules.blanking_days
        else pl.lit(None, pl.Int64)
    )
    days = (pl.col("event_date") - pl.coalesce("ct_date", "t0")).dt.total_days()
    blanked = ((days >= 0) & (days <= blanking)).fill_null(False)
    kept = named.filter(~blanked)
    in_time = kept.filter(pl.col("event_date") <= pl.col("last_contact_date"))
    return in_time, len(named) - len(kept), len(kept) - len(in_time)


def _status(people: pl.DataFrame, relevant: pl.DataFrame) -> pl.DataFrame:
    """The first of component, competing, terminal, last contact; on one day in this order."""
    rank = pl.col("kind").replace_strict({EVENT: 0, COMPETING: 1, CENSORED: 2}, return_dtype=pl.Int64)
    first = (
        relevant.filter(pl.col("event_date") > pl.col("start"))
        .sort("patient_id", "event_date", rank, "event_type")
        .unique("patient_id", keep="first", maintain_order=True)
        .select("patient_id", "event_date", "event_type", "kind")
    )
    joined = people.join(first, on="patient_id", how="left")
    end = pl.coalesce("event_date", "last_contact_date")
    return joined.with_columns(
        (end - pl.col("start")).dt.total_days().alias("time_days"),
        pl.col("kind").fill_null(CENSORED).alias("status"),
        pl.when(pl.col("kind") == EVENT).then("event_type").alias("first_component"),
    ).drop("event_date", "event_type", "kind")
