"""audit: how far scoring reaches, who is called positive, and what that says of prevalence."""

from pathlib import Path

import polars as pl

from cohort_scorer.cohort import eligibility
from cohort_scorer.errors import StudyFileError
from cohort_scorer.prediction import bundle
from cohort_scorer.prediction.integration import THRESHOLD_NAMES
from cohort_scorer.provenance import Step
from cohort_scorer.reporting.release import publish
from cohort_scorer.stages import Console, Machine, inputs
from cohort_scorer.statistics import screening
from cohort_scorer.study import THRESHOLDS, Study


def audit(study: Study, machine: Machine, console: Console) -> Path:
    """Count coverage and positivity by stratum; adjust prevalence for misclassification."""
    section = study.require("audit")
    step = Step(study, "audit")
    step.forget_outputs()
    people = _people(study, step)
    inputs.tell_dropped(step, console)
    inputs.refuse_unfit_origins(study, people.filter("is_scored"))
    missing = [name for name in section.strata if name not in people.columns]
    if missing:
        raise StudyFileError(
            f"{study.file.name}: [audit] strata names {len(missing)} columns that do not exist: {', '.join(missing)}.",
            "Expected sex, age_band, site or another column of the clinical table.",
            "Correct [audit] strata.",
        )
    level = study.comparison.confidence_level
    found = screening.tables(people, section.strata, section.threshold, inputs.categories(), _accuracy(study), level)
    publish(step, found, inputs.stamps(study))
    n_scored = people["is_scored"].sum()
    console.say(f"audit: {n_scored:,} of {len(people):,} patients scored")
    step.facts |= {"n_patients": len(people), "n_scored": n_scored, "threshold": section.threshold}
    step.finish()
    return study.unprotected / "tables" / "audit_positivity.csv"


def _people(study: Study, step: Step) -> pl.DataFrame:
    """One row per patient of the clinical table, or of the archive without one, with the first scored radiograph."""
    clinical = inputs.table(study, step, "clinical")
    films = inputs.films(study, step).drop_nulls("patient_id")
    scored = inputs.scores(study, step)
    with_film = films.filter("is_eligible")
    readable = with_film.join(inputs.unreadable(study), on="image_id", how="anti")
    first = (
        readable.join(scored.select("image_id", "score_origin", "^.*_category$"), on="image_id", how="inner")
        .sort("patient_id", "study_date", "image_id", nulls_last=True)
        .unique("patient_id", keep="first", maintain_order=True)
    )
    # Who has no scored film is still somebody: any film of theirs, or none, tells age and sex.
    named = clinical.select("patient_id") if clinical is not None else films.select("patient_id").unique()
    film = pl.concat([first, films], how="diagonal").unique("patient_id", keep="first", maintain_order=True)
    film = named.join(film, on="patient_id", how="left", maintain_order="left")
    people = eligibility.describe(film, clinical)
    return people.with_columns(
        eligibility.age_band("age_years"),
        pl.col("patient_id").is_in(with_film["patient_id"].implode()).alias("has_radiograph"),
        pl.col("patient_id").is_in(readable["patient_id"].implode()).alias("is_readable"),
        pl.col("patient_id").is_in(first["patient_id"].implode()).alias("is_scored"),
    ).sort("patient_id")


def _accuracy(study: Study) -> dict[str, screening.Accuracy]:
    """Sensitivity and specificity of the categories at the threshold, in the bundle's training patients out of fold.

    Empty where the scores were made elsewhere, or by another category rule than the bundle's: then nothing tells the
    accuracy apart from the patients audited.
    """
    section = study.require("audit")
    if study.tables.scores or study.model is None:
        return {}
    content = bundle.load(study.bundle, inputs.categories()).content
    if content["cut_points"]["rule"] != study.model.model_dump(mode="json")["category_rule"]:
        return {}
    name = THRESHOLD_NAMES[THRESHOLDS.index(section.threshold)]
    return {
        row["exposure"]: screening.Accuracy(
            row["sensitivity"], row["n_positive"], row["specificity"], row["n_negative"]
        )
        for row in content["accuracy"]
        if row["threshold"] == name and row["exposure"] in screening.EXPOSURES
    }
