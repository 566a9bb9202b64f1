"""sensitivity: the main Cox models once more, under other windows, pairings and landmarks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from cohort_scorer import schemas
from cohort_scorer.cohort import follow_up, pairing
from cohort_scorer.errors import EmptyCohortError
from cohort_scorer.provenance import Step
from cohort_scorer.reporting.release import publish
from cohort_scorer.stages import Console, Machine, inputs
from cohort_scorer.stages.link import linking_rules, name_faults
from cohort_scorer.stages.prognosis import choices, event_rules, exposures_of, in_common, tell_difference
from cohort_scorer.statistics import prognosis as survival
from cohort_scorer.study import Study

MAIN = "main"
_SECTIONS = {"maximum_days_between": "cohort", "pairing": "cohort", "landmark_days": "outcome"}


def sensitivity(study: Study, machine: Machine, console: Console) -> Path:
    """Make cohort and analysis set anew under each value of [sensitivity]; write sensitivity.csv.

    The first rows are the main analysis, made in the same way; every other differs from it in one value. Predicted
    categories are those of the main analysis: cut points that are found in a cohort are not found anew.
    """
    step = Step(study, "sensitivity")
    step.forget_outputs()
    films = inputs.films(study, step)
    cacs, clinical = inputs.table(study, step, "cacs"), inputs.table(study, step, "clinical")
    events, contacts = (inputs.required_table(study, step, name) for name in ("events", "follow_up"))
    for fault in name_faults(study, clinical, events):
        raise fault
    scored, unreadable = inputs.scores(study, step), inputs.unreadable(study)
    exposures: list[str] = []
    parts, not_fitted, difference, n_not_compared = [], [], 0.0, 0
    for analysis, value, varied in _analyses(study):
        linked, _ = pairing.link(films, cacs, clinical, events, linking_rules(varied), inputs.categories())
        cohort = schemas.conform(linked, "cohort")
        found = follow_up.follow(cohort, unreadable, scored, contacts, events, event_rules(varied, events))
        inputs.refuse_unfit_origins(study, found.people)
        exposures = exposures or exposures_of(found.people)
        compared = in_common(varied, found.people, exposures).filter("in_common")
        n_events = compared.filter(pl.col("status") == follow_up.EVENT).height
        if analysis == MAIN and compared.is_empty():
            raise EmptyCohortError(
                f"Nobody can be compared in the main analysis: {len(cohort):,} patients in the cohort.",
                "Expected patients with a score, follow-up, and every category and covariate; found none.",
                "Run `cohort-scorer prognosis`: its attrition.csv says where they leave.",
            )
        label = f"{analysis} {value}".strip()
        console.say(f"{label}: {len(compared):,} patients compared, {n_events:,} with {varied.require('outcome').name}")
        generator = np.random.default_rng(study.study.seed)
        result = survival.hazard_ratios(compared, choices(study, exposures), generator)
        difference = max(difference, result.lifelines_difference or 0.0)
        n_not_compared += len(result.not_cross_checked)
        rows = result.tables["cox"] if len(compared) else _nobody(exposures)
        parts.append(rows.with_columns(pl.lit(analysis).alias("analysis"), pl.lit(value).alias("value")))
        not_fitted += [f"{label}: {model}" for model in (*result.not_converged, *result.hindered)]
    inputs.tell_dropped(step, console)
    publish(step, {"sensitivity": pl.concat(parts, how="diagonal_relaxed")}, inputs.stamps(study))
    step.facts |= {"analyses": len(parts), "not_fitted": not_fitted}
    step.facts["largest_difference_from_lifelines"] = difference
    step.finish()
    if not_fitted:
        console.say(f"warning: {len(not_fitted):,} models not fitted; sensitivity.csv has the reasons")
    tell_difference(difference, n_not_compared, console)
    return study.unprotected / "tables" / "sensitivity.csv"


def _analyses(study: Study) -> Iterator[tuple[str, str, Study]]:
    """The main analysis, then the study with one value changed at a time; its own values are not tried again."""
    yield MAIN, "", study
    for key, section in _SECTIONS.items():
        held = study.require(section)
        for value in dict.fromkeys(getattr(study.require("sensitivity"), key)):
            if value != getattr(held, key):
                yield key, str(value), study.model_copy(update={section: held.model_copy(update={key: value})})


def _nobody(exposures: list[str]) -> pl.DataFrame:
    whole = {"site": schemas.ALL, "score_origin": schemas.ALL, "n_model": 0, "n_events_model": 0, "n": 0, "n_events": 0}
    told = {"method": "not_fitted", "reason": "nobody can be compared"}
    return pl.DataFrame([{**whole, **told, "model": f"covariates+{name}", "exposure": name} for name in exposures])
