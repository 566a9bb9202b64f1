"""validate: scores + true CACS -> discrimination, operating points, calibration, agreement, subgroups."""

from pathlib import Path

import numpy as np
import polars as pl

from cohort_scorer.cohort import eligibility
from cohort_scorer.errors import EmptyCohortError
from cohort_scorer.prediction import bundle, scores
from cohort_scorer.prediction.bundle import NEW
from cohort_scorer.provenance import Step
from cohort_scorer.reporting.release import publish
from cohort_scorer.stages import Console, Machine, inputs
from cohort_scorer.statistics import validation
from cohort_scorer.study import THRESHOLDS, ModelSection, Study


def validate(study: Study, machine: Machine, console: Console) -> Path:
    """Hold the scores of the cohort against the true categories."""
    step = Step(study, "validate")
    step.forget_outputs()
    cohort = inputs.cohort(study, step)
    scored = inputs.scores(study, step)
    extra = [name for name in scored.columns if name == "image_id" or name not in cohort.columns]
    people = cohort.drop_nulls("true_category").join(scored.select(extra), on="image_id", how="inner")
    if people.is_empty():
        raise EmptyCohortError(
            f"Nobody to validate on: {len(cohort):,} patients in the cohort, 0 with a score and a true CACS.",
            "Expected [tables] cacs and scores of the cohort's radiographs.",
            "Run `cohort-scorer score`, or give [tables] cacs.",
        )
    inputs.refuse_unfit_origins(study, people)
    given = (study.model or ModelSection()).category_rule
    rule = given if isinstance(given, str) else ", ".join(f"{cut:g}" for cut in given)
    if step.facts.get("n_categories_derived") and isinstance(given, str) and rule != "argmax":
        rule = f"{rule}, cuts found in these patients"
        console.say("warning: cut points were found in the patients they are judged in: margins agree by construction")
    found = validation.tables(
        people.with_columns(eligibility.age_band("age_years")),
        inputs.categories(),
        rule,
        _cut_points(study),
        study.comparison.confidence_level,
        np.random.default_rng(study.study.seed),
    )
    publish(step, found, inputs.stamps(study))
    step.facts |= {"n_patients": len(people)}
    pooled = found["discrimination"].filter(pl.col("fold").is_null())
    for row in pooled.iter_rows(named=True):
        if row["auc"] is not None:
            console.say(
                f"AUC {row['site']} {row['score_origin']} {row['exposure']} CACS {row['threshold']}: "
                f"{row['auc']:.3f} ({row['lower']:.3f} to {row['upper']:.3f}), n {row['n']:,}"
            )
    step.finish()
    return study.unprotected / "tables" / "discrimination.csv"


def _cut_points(study: Study) -> dict[tuple[str, int], float]:
    """The cuts for new patients, where a bundle and a rule with cuts made the categories."""
    if study.tables.scores or study.model is None:
        return {}
    grid = bundle.load(study.bundle, inputs.categories()).grid
    found: dict[tuple[str, int], float] = {}
    for exposure in validation.EXPOSURES:
        cuts = scores.cut_points(grid, exposure, NEW, study.model.category_rule)
        found |= {(exposure, threshold): cut for threshold, cut in zip(THRESHOLDS, cuts or (), strict=False)}
    return found
