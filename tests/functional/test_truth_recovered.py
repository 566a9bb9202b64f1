"""The pipeline's own linking, follow-up and Cox model give back the hazard ratios that the simulator put in."""

import json
from pathlib import Path

import numpy as np
import polars as pl

from cohort_scorer import schemas
from cohort_scorer.cohort import follow_up, pairing
from cohort_scorer.simulation.study import write_study
from cohort_scorer.statistics import cox
from cohort_scorer.study import load


def z_values(folder: Path, seed: int) -> dict[str, float]:
    """(estimate - truth) / standard error of every coefficient, for 20,000 patients."""
    study = load(write_study(folder, n_patients=20_000, seed=seed, images=False))
    truth = json.loads((study.folder / "truth.json").read_text())["log_hazard_ratios"]
    tables = {
        name: schemas.read(study.folder / getattr(study.tables, name), name, "stop", study.patient_level)
        for name in ("cacs", "clinical", "follow_up", "events", "scores")
    }
    assert study.cohort is not None and study.outcome is not None
    scores = tables["scores"].with_columns(pl.int_range(pl.len()).cast(pl.String).alias("image_id"))
    films = scores.select(
        "patient_id",
        "image_id",
        "study_date",
        *(pl.lit(None, pl.String).alias(column) for column in ("uri", "acquisition_time", "site", "sex")),
        pl.lit(None, pl.Float64).alias("age_years"),
        pl.lit(True).alias("is_radiograph"),
        pl.lit(True).alias("is_eligible"),
    )
    rules = pairing.Rules(
        maximum_days_between=study.cohort.maximum_days_between,
        pairing=study.cohort.pairing,
        minimum_age_years=study.cohort.minimum_age_years,
        exclude_if=study.cohort.exclude_if,
        exclude_between=study.cohort.exclude_between,
    )
    categories = schemas.vocabulary("cohort", "true_category")
    cohort, _ = pairing.link(films, tables["cacs"], tables["clinical"], tables["events"], rules, categories)
    outcome = follow_up.Rules(
        components=study.outcome.components,
        competing=study.outcome.competing,
        terminal=[],
        blanking_days=study.outcome.blanking_days,
        exclude_prior=True,
        landmark_days=0,
    )
    nobody = pl.DataFrame(schema={"image_id": pl.String})
    people = follow_up.follow(cohort, nobody, scores, tables["follow_up"], tables["events"], outcome).people

    columns = {name: (people["true_category"] == name).cast(pl.Float64).to_numpy() for name in categories[1:]}
    columns["age_at_t0_years"] = people["age_at_t0_years"].to_numpy()
    columns["male"] = (people["sex"] == "M").cast(pl.Float64).to_numpy()
    assert columns.keys() == truth.keys()
    fit = cox.fit(
        people["time_days"].to_numpy(), (people["status"] == 1).to_numpy(), np.column_stack(list(columns.values()))
    )
    z = (fit.coefficients - np.array(list(truth.values()))) / fit.standard_errors
    return dict(zip(truth, map(float, z), strict=True))


def test_cox_recovers_the_generators_log_hazard_ratios(tmp_path: Path) -> None:
    z = z_values(tmp_path / "study", seed=2025)
    assert max(map(abs, z.values())) < 3.3, z
