"""link: films and tables -> one row per patient. Sees neither pixels nor scores nor outcomes."""

import difflib
from pathlib import Path

import polars as pl

from cohort_scorer import schemas, storage
from cohort_scorer.cohort import baseline, identifiers, pairing
from cohort_scorer.errors import EmptyCohortError, InputTableError, StudyFileError
from cohort_scorer.provenance import Step
from cohort_scorer.reporting.release import publish
from cohort_scorer.stages import Console, Machine, inputs
from cohort_scorer.study import Study


def link(study: Study, machine: Machine, console: Console) -> Path:
    """Make the cohort; write patient_level/cohort.parquet, attrition.csv and baseline.csv."""
    section = study.require("cohort")
    step = Step(study, "link")
    step.forget_outputs()
    films = inputs.films(study, step)
    cacs = inputs.table(study, step, "cacs")
    clinical = inputs.table(study, step, "clinical")
    events = inputs.table(study, step, "events") if section.exclude_between else None
    _check_names(study, clinical, events)
    for name, table in (("cacs", cacs), ("clinical", clinical)):
        rate = identifiers.match(films["patient_id"] if table is None else table["patient_id"], films["patient_id"])
        if rate.lost_zeros:
            raise inputs.lost_zeros(name, "the archive", rate)
    rules = pairing.Rules(
        section.maximum_days_between,
        section.pairing,
        section.minimum_age_years,
        section.exclude_if,
        section.exclude_between,
    )
    cohort, attrition = pairing.link(films, cacs, clinical, events, rules, inputs.categories())
    for row in attrition.iter_rows(named=True):
        if row["n_excluded"]:
            console.say(f"excluded: {row['n_excluded']:,} {row['reason']}")
    console.say(f"cohort: {len(cohort):,} patients")
    path = study.patient_level / "cohort.parquet"
    storage.write_parquet(schemas.conform(cohort, "cohort"), path)
    step.wrote(path)
    step.facts |= {"n_patients": len(cohort), "exclusions": dict(attrition.select("reason", "n_excluded").iter_rows())}
    publish(step, {"attrition": attrition, "baseline": baseline.table(cohort, inputs.categories())})
    step.finish()
    if cohort.is_empty():
        start = attrition["n_before"][0]
        raise EmptyCohortError(
            f"The cohort is empty: all {start:,} patients are excluded.",
            "Expected at least one patient; unprotected/tables/attrition.csv counts every reason.",
            "Compare the identifiers of archive and tables (`cohort-scorer check`), and the rules of [cohort].",
        )
    return path


def _check_names(study: Study, clinical: pl.DataFrame | None, events: pl.DataFrame | None) -> None:
    section = study.require("cohort")
    known = [] if clinical is None else clinical.columns
    for column in section.exclude_if:
        if column not in known:
            raise StudyFileError(*_unknown("exclude_if", column, known, "column of the clinical table"))
        if clinical is not None and clinical[column].dtype not in (pl.Boolean, pl.Float64, pl.Int64, pl.Null):
            raise InputTableError(
                f"clinical: the column {column}, named in [cohort] exclude_if, is not boolean.",
                "Expected true and false (or 1 and 0) in it; found text.",
                "Recode the column.",
            )
    types = [] if events is None else events["event_type"].unique().sort().to_list()
    for event_type in section.exclude_between:
        if event_type not in types:
            raise StudyFileError(*_unknown("exclude_between", event_type, types, "event type of the events table"))
    reserved = set(schemas.columns("index")) | set(schemas.columns("analysis_set")) | set(schemas.columns("scores"))
    taken = sorted((set(known) & reserved) - set(schemas.columns("clinical")))
    taken += sorted(set(known) & {"ct_date", "cacs", "days_between", "true_category"})
    if taken:
        raise InputTableError(
            f"clinical: {len(taken)} columns have names that the tool gives: {', '.join(taken)}.",
            "Expected other names for covariates; `cohort-scorer schema` lists the names in use.",
            "Rename or drop these columns.",
        )


def _unknown(key: str, name: str, known: list[str], kind: str) -> tuple[str, str, str]:
    nearest = difflib.get_close_matches(name, known, n=1)
    return (
        f"study.toml: [cohort] {key} names {name}, which does not occur.",
        f"Expected a {kind}; found {', '.join(known[:12]) or 'none'}.",
        f"Did you mean {nearest[0]}?" if nearest else f"Correct [cohort] {key}.",
    )
