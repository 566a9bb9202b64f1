"""link: films and tables -> one row per patient. Sees neither pixels nor scores nor outcomes."""

import difflib
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from cohort_scorer import schemas, storage
from cohort_scorer.cohort import baseline, identifiers, pairing
from cohort_scorer.errors import CohortScorerError, EmptyCohortError, InputTableError, StudyFileError
from cohort_scorer.provenance import Step
from cohort_scorer.reporting.release import publish
from cohort_scorer.schemas import ALL
from cohort_scorer.stages import Console, Machine, inputs
from cohort_scorer.study import Study


def link(study: Study, machine: Machine, console: Console) -> Path:
    """Make the cohort; write patient_level/cohort.parquet and superseded.parquet, and the tables that describe them."""
    section = study.require("cohort")
    step = Step(study, "link")
    step.forget_outputs()
    films = inputs.films(study, step)
    cacs = inputs.table(study, step, "cacs")
    clinical = inputs.table(study, step, "clinical")
    events = inputs.table(study, step, "events") if section.exclude_between else None
    for fault in name_faults(study, clinical, events):
        raise fault
    inputs.tell_dropped(step, console)
    tables = {name: table for name, table in (("cacs", cacs), ("clinical", clinical)) if table is not None}
    _match_identifiers(tables, films, "the scores" if study.tables.scores else "the index", console)
    rules = linking_rules(study)
    cohort, attrition = pairing.link(films, cacs, clinical, events, rules, inputs.categories())
    if (cohort["site"] == ALL).any():
        raise InputTableError(
            f"A site is named {ALL}: {(cohort['site'] == ALL).sum():,} of {len(cohort):,} patients.",
            f"Expected another name: in every table the rows named {ALL} are the pooled ones.",
            "Rename the site in the clinical table or the listing.",
        )
    for row in attrition.iter_rows(named=True):
        if row["n_excluded"]:
            console.say(f"excluded: {row['n_excluded']:,} {row['reason']}")
    console.say(f"cohort: {len(cohort):,} patients")
    unknown = {name: cohort[name].null_count() for name in section.exclude_if if cohort[name].null_count()}
    for name, count in unknown.items():
        console.say(f"warning: {count:,} patients stay in though {name} is not known")
    step.facts["exclude_if_unknown"] = unknown
    path = study.patient_level / "cohort.parquet"
    storage.write_parquet(schemas.conform(cohort, "cohort"), path)
    superseded = pairing.superseded(films, cohort, rules)
    storage.write_parquet(schemas.conform(superseded, "superseded"), path.with_name("superseded.parquet"))
    step.wrote(path, path.with_name("superseded.parquet"))
    step.facts |= {
        "n_patients": len(cohort),
        "exclusions": dict(attrition.select("reason", "n_excluded").iter_rows()),
        "superseded_films": dict(superseded["reason"].value_counts(sort=True).iter_rows()),
    }
    described = {
        "attrition": attrition,
        "baseline": baseline.table(cohort, inputs.categories(), declared_columns(study)),
        "interval": baseline.interval(cohort, section.maximum_days_between),
    }
    publish(step, described, inputs.stamps(study))
    step.finish()
    if cohort.is_empty():
        start = attrition["n_before"][0]
        largest = attrition.sort("n_excluded", descending=True).row(0, named=True)
        raise EmptyCohortError(
            f"The cohort is empty: all {start:,} patients are excluded.",
            f"Expected at least one patient; {largest['n_excluded']:,} are excluded for: {largest['reason']}.",
            "Compare the identifiers of archive and tables (`cohort-scorer check`), and the rules of [cohort].",
        )
    return path


def linking_rules(study: Study) -> pairing.Rules:
    """The rules of [cohort]."""
    section = study.require("cohort")
    return pairing.Rules(
        section.maximum_days_between,
        section.pairing,
        section.minimum_age_years,
        section.exclude_if,
        section.exclude_between,
    )


def _match_identifiers(tables: dict[str, pl.DataFrame], films: pl.DataFrame, known: str, console: Console) -> None:
    """Stop where a table has lost the leading zeros of its identifiers; tell a few that may have."""
    for name, table in tables.items():
        rate = identifiers.match(table["patient_id"], films["patient_id"])
        if rate.lost_zeros:
            raise inputs.lost_zeros(name, known, rate)
        if rate.n_gained:
            console.say(f"warning: {rate.n_gained:,} patients of {name} would match without leading zeros")


def declared_columns(study: Study) -> list[str]:
    """Clinical columns that the study file names: what baseline.csv may describe beside age, sex and BMI."""
    audited = study.audit.strata if study.audit else []
    return [*study.require("cohort").exclude_if, *study.comparison.adjust_for, *audited]


def name_faults(
    study: Study, clinical: pl.DataFrame | None, events: pl.DataFrame | None
) -> Iterator[CohortScorerError]:
    """What [cohort] names and the tables do not have, or have in another form."""
    section = study.require("cohort")
    columns = [] if clinical is None else clinical.columns
    for column in section.exclude_if:
        if clinical is None or column not in columns:
            yield StudyFileError(*_unknown("exclude_if", column, columns, "a column of the clinical table"))
        elif not _is_boolean(clinical[column]):
            yield InputTableError(
                f"clinical: the column {column}, named in [cohort] exclude_if, is not boolean.",
                "Expected true and false, or 1 and 0; found other values.",
                "Recode the column.",
            )
    types = [] if events is None else events["event_type"].unique().sort().to_list()
    for event_type in section.exclude_between:
        if event_type not in types:
            yield StudyFileError(*_unknown("exclude_between", event_type, types, "an event_type of the events table"))


def _is_boolean(series: pl.Series) -> bool:
    if series.dtype.is_numeric():
        return bool(((series == 0) | (series == 1)).drop_nulls().all())
    return series.dtype == pl.Boolean or series.null_count() == len(series)


def _unknown(key: str, name: str, known: list[str], kind: str) -> tuple[str, str, str]:
    nearest = difflib.get_close_matches(name, known, n=1)
    return (
        f"study.toml: [cohort] {key} names {name}, which does not occur.",
        f"Expected {kind}; found {inputs.spoken(known)}.",
        f"Did you mean {nearest[0]}?" if nearest else f"Correct [cohort] {key}.",
    )
