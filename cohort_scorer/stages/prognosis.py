"""prognosis: cohort + scores + outcomes -> analysis set -> Kaplan-Meier, Cox, predicted against true categories."""

import difflib
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl

from cohort_scorer import schemas, storage
from cohort_scorer.cohort import follow_up
from cohort_scorer.errors import ConvergenceError, EmptyCohortError, StudyFileError
from cohort_scorer.provenance import Step
from cohort_scorer.reporting import analysis_script
from cohort_scorer.reporting.release import publish
from cohort_scorer.stages import Console, Machine, inputs
from cohort_scorer.statistics import kaplan_meier
from cohort_scorer.statistics import prognosis as survival
from cohort_scorer.statistics.regression import MINIMUM_EVENTS
from cohort_scorer.study import Study

_TOLERATED_DIFFERENCE = 1e-6


def prognosis(study: Study, machine: Machine, console: Console) -> Path:
    """Make the analysis set and every survival table."""
    section = study.require("outcome")
    step = Step(study, "prognosis")
    step.forget_outputs()
    cohort = inputs.cohort(study, step)
    scored = inputs.scores(study, step)
    events = inputs.required_table(study, step, "events")
    rules = event_rules(study, events)
    found = follow_up.follow(
        cohort, inputs.unreadable(study), scored, inputs.required_table(study, step, "follow_up"), events, rules
    )
    inputs.refuse_unfit_origins(study, found.people)
    exposures = exposures_of(found.people)
    people = in_common(study, found.people, exposures)
    path = _write_analysis_set(study, step, people)
    for row in found.attrition.iter_rows(named=True):
        if row["n_excluded"]:
            console.say(f"excluded: {row['n_excluded']:,} {row['reason']}")
    compared = people.filter("in_common")
    n_events = compared.filter(pl.col("status") == follow_up.EVENT).height
    console.say(f"prognosis: {len(compared):,} patients compared, {n_events:,} with {section.name}")
    inputs.tell_dropped(step, console)
    flow = _attrition(study, found.attrition, len(people), len(compared))
    publish(step, {"attrition": flow}, inputs.stamps(study))
    if compared.is_empty():
        needed = [*(f"{name}_category" for name in exposures), *study.comparison.adjust_for]
        counts = sorted(((people[name].null_count(), name) for name in needed), reverse=True)
        raise EmptyCohortError(
            f"Nobody can be compared: 0 of {len(people):,} patients in the analysis set have everything.",
            "Expected every category and covariate in at least one patient; missing: "
            + ", ".join(f"{name} in {count:,}" for count, name in counts[:3])
            + ".",
            "Complete the clinical table, or name fewer columns in [comparison] adjust_for.",
        )
    if not n_events:
        raise EmptyCohortError(
            f"Nobody compared had an event: {len(people):,} in the analysis set, {len(compared):,} with everything.",
            f"Expected events of {', '.join(rules.components)} after t0; found 0.",
            "Look at attrition.csv, [outcome] components, blanking_days and the dates of events.",
        )
    longest = float(compared["time_days"].to_numpy().max()) / kaplan_meier.DAYS_PER_YEAR
    if max(section.horizon_years) > longest:
        console.say(
            f"warning: the horizon of {max(section.horizon_years):g} years is beyond the {longest:.2g} followed"
        )
    if found.n_after_last_contact:
        console.say(f"warning: {found.n_after_last_contact:,} events after the last contact are not used")
    declared = choices(study, exposures)
    with console.progress("prognosis: resamples", 2 * declared.replicates * survival.n_groups(compared)) as advance:
        result = survival.tables(compared, declared, np.random.default_rng(study.study.seed), advance)
    publish(step, result.tables, inputs.stamps(study))
    _write_script(study, step, compared, declared)
    step.facts |= {
        "n_patients": len(people),
        "n_in_common": len(compared),
        "n_events": n_events,
        "n_competing": compared.filter(pl.col("status") == follow_up.COMPETING).height,
        "components": list(rules.components),
        "n_blanked_events": found.n_blanked,
        "n_events_after_last_contact": found.n_after_last_contact,
        "median_follow_up_days": kaplan_meier.reverse_kaplan_meier_median(
            compared["time_days"], compared["status"] > 0
        ),
        "events_by_component": dict(
            compared.drop_nulls("first_component")["first_component"].value_counts(sort=True).iter_rows()
        ),
        "largest_difference_from_lifelines": result.lifelines_difference,
        "not_compared_with_lifelines": result.not_cross_checked,
        "bootstrap_replicates": declared.replicates,
        "failed_resamples": result.failed_resamples,
        "seed": study.study.seed,
        "penalised": result.penalised,
        "not_converged": result.not_converged,
        "not_fitted": result.hindered,
        "fewer_than_10_events_per_parameter": result.few_per_parameter,
    }
    step.finish()
    _warn(result, console)
    if result.not_converged:
        raise ConvergenceError(
            f"{len(result.not_converged):,} Cox models did not converge; their rows say not_fitted.",
            f"Expected a maximum of every partial likelihood; the first without one is {result.not_converged[0]}.",
            "Look for a covariate of [comparison] adjust_for that separates events, or name fewer.",
        )
    return path


def event_rules(study: Study, events: pl.DataFrame) -> follow_up.Rules:
    """The rules of [outcome]; terminal types default to every other type that contains `death`.

    Raises:
        StudyFileError: a type that [outcome] names never occurs in the events table, or is named for two roles.
    """
    section = study.require("outcome")
    types = events["event_type"].unique().sort().to_list()
    components = follow_up.components(section.components, types)
    if not components:
        raise StudyFileError(
            f"{study.file.name}: [outcome] components is all_cause_death, and no event is a death.",
            f"Expected an event_type that contains death; found {inputs.spoken(types)}.",
            "Name the event types in [outcome] components.",
        )
    named_for = {"components": components} | {
        key: getattr(section, key) or () for key in ("competing", "terminal", "blanking_days")
    }
    for key, names in named_for.items():
        for name in names:
            if name not in types:
                nearest = difflib.get_close_matches(name, types, n=1)
                raise StudyFileError(
                    f"{study.file.name}: [outcome] {key} names {name}, which never occurs in the events table.",
                    f"Expected an event_type of that table; found {inputs.spoken(types)}.",
                    f"Did you mean {nearest[0]}?" if nearest else f"Correct [outcome] {key}.",
                )
    twice = sorted(set(components) & {*section.competing, *(section.terminal or ())})
    if twice:
        raise StudyFileError(
            f"{study.file.name}: [outcome] names {', '.join(twice)} as a component and as competing or terminal.",
            "Expected one role for every event type; found two.",
            "Name it once.",
        )
    named = {*components, *section.competing}
    terminal = section.terminal
    if terminal is None:
        terminal = [name for name in types if "death" in name.lower() and name not in named]
    return follow_up.Rules(
        components,
        section.competing,
        terminal,
        section.blanking_days,
        section.prior_events == "exclude",
        section.landmark_days,
    )


def exposures_of(people: pl.DataFrame) -> list[str]:
    """The exposures of which anybody has a category; patients without one of them leave the comparison."""
    return [
        name
        for name in ("true", "cxr", "integrated")
        if f"{name}_category" in people.columns and people[f"{name}_category"].null_count() < len(people)
    ]


def in_common(study: Study, people: pl.DataFrame, exposures: list[str]) -> pl.DataFrame:
    """Mark the patients who have a category of every exposure and every covariate: the ones compared.

    Raises:
        StudyFileError: a covariate is no column.
    """
    for name in study.comparison.adjust_for:
        if name not in people.columns:
            nearest = difflib.get_close_matches(name, people.columns, n=1)
            raise StudyFileError(
                f"{study.file.name}: [comparison] adjust_for names {name}, which is no column.",
                "Expected age_at_t0_years, sex, bmi or another column of the clinical table.",
                f"Did you mean {nearest[0]}?" if nearest else "Correct [comparison] adjust_for.",
            )
    needed = [*(f"{name}_category" for name in exposures), *study.comparison.adjust_for]
    return people.with_columns(pl.all_horizontal(pl.col(needed).is_not_null()).alias("in_common"))


def choices(study: Study, exposures: list[str]) -> survival.Choices:
    """What the study declares of the comparison."""
    outcome, comparison = study.require("outcome"), study.comparison
    margin = comparison.noninferiority_margin_c
    return survival.Choices(
        exposures=exposures,
        categories=inputs.categories(),
        adjust_for=comparison.adjust_for,
        horizon_years=outcome.horizon_years,
        competing=bool(outcome.competing),
        level=comparison.confidence_level,
        replicates=comparison.bootstrap_replicates,
        margin=None if margin == "" else margin,
    )


def _write_script(study: Study, step: Step, people: pl.DataFrame, declared: survival.Choices) -> None:
    """release/analysis.R, with which anybody who holds the analysis set can refit the models."""
    path = study.release_folder / "analysis.R"
    script = analysis_script.render(
        study.study.title,
        {name: people[name].dtype.is_numeric() for name in declared.adjust_for},
        declared.categories,
        declared.level,
        max(declared.horizon_years) * kaplan_meier.DAYS_PER_YEAR,
        declared.competing,
    )
    storage.write_text(script, path)
    step.wrote(path)


def _write_analysis_set(study: Study, step: Step, people: pl.DataFrame) -> Path:
    path = study.patient_level / "analysis_set.parquet"
    declared = list(schemas.columns("analysis_set"))
    covariates = [name for name in study.comparison.adjust_for if name not in declared]
    kept = schemas.conform(people, "analysis_set").select(*declared, *covariates)
    storage.write_parquet(kept, path)
    storage.write_csv(kept, path.with_suffix(".csv"))
    step.wrote(path, path.with_suffix(".csv"))
    return path


def _attrition(study: Study, analysis: pl.DataFrame, n_people: int, n_compared: int) -> pl.DataFrame:
    """attrition.csv of `link` followed by this step's rows, down to the patients compared."""
    last = ["analysis", len(analysis) + 1, "missing category or covariate", n_people, n_people - n_compared, n_compared]
    analysis = pl.concat([analysis, pl.DataFrame([last], schema=analysis.schema, orient="row")])
    written = study.unprotected / "tables" / "attrition.csv"
    if not written.is_file():
        return analysis
    linked = pl.read_csv(written, schema=schemas.columns("attrition")).filter(pl.col("step") == "cohort")
    return pl.concat([linked, analysis])


def _warn(result: survival.Prognosis, console: Console) -> None:
    if result.penalised:
        console.say(
            f"warning: {len(result.penalised):,} groups have a category with fewer than {MINIMUM_EVENTS} events, or a "
            "resample without any: their models are fitted by Firth's likelihood"
        )
    reasons = Counter(label.split(": ", 1)[1] for label in result.hindered)
    for reason, count in sorted(reasons.items()):
        console.say(f"warning: {count:,} models not fitted: {reason}")
    if result.few_per_parameter:
        console.say(f"warning: {len(result.few_per_parameter):,} models have fewer than 10 events per parameter")
    if result.failed_resamples:
        worst = max(result.failed_resamples.values())
        console.say(
            f"warning: {len(result.failed_resamples):,} models have no fit in some resamples, at most {worst:,} of them"
        )
    tell_difference(result.lifelines_difference or 0.0, len(result.not_cross_checked), console)


def tell_difference(difference: float, n_not_compared: int, console: Console) -> None:
    """Warn where a coefficient is farther from that of lifelines than rounding brings it, or could not be compared."""
    if difference > _TOLERATED_DIFFERENCE:
        console.say(f"warning: a coefficient differs from lifelines by {difference:.1e}")
    if n_not_compared:
        console.say(f"warning: {n_not_compared:,} models were not compared with lifelines")
