"""Ratios measured within one run; `make bench` prints them. Nothing here passes or fails by the clock."""

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
from lifelines import CoxPHFitter
from ratios import seconds, tell

from cohort_scorer.simulation.study import write_study
from cohort_scorer.statistics import cox


def test_cox_of_100_000_patients_against_lifelines() -> None:
    generator = np.random.default_rng(2)
    covariates = generator.standard_normal((100_000, 5))
    time_days = np.ceil(generator.exponential(2_000 * np.exp(-covariates @ np.array([0.3, -0.2, 0.1, 0.0, 0.4]))))
    event = generator.random(100_000) < 0.3
    frame = pd.DataFrame(covariates, columns=list("abcde")).assign(time=time_days, event=event)
    slow = seconds(lambda: CoxPHFitter().fit(frame, "time", "event"), 1)
    tell(
        "Cox, 5 covariates, 100,000 patients, lifelines against ours",
        slow,
        seconds(lambda: cox.fit(time_days, event, covariates), 3),
    )


def test_link_of_100_000_patients(tmp_path: Path) -> None:
    """Scale, as the ratio of 100,000 to 10,000 patients: 10 is linear."""
    from cohort_scorer.cohort import pairing

    def linked(n: int) -> float:
        tables = write_study(tmp_path / str(n), n_patients=n, seed=1, images=False).parent / "tables"
        scores = pl.read_csv(tables / "scores.csv", infer_schema=False, try_parse_dates=True)
        scores = scores.with_columns(pl.col("study_date").cast(pl.String).str.to_date())
        films = scores.select(
            "patient_id",
            pl.format("{} {}", "patient_id", "study_date").alias("image_id"),
            pl.lit("").alias("uri"),
            "study_date",
            pl.lit(None, pl.String).alias("acquisition_time"),
            pl.lit(None, pl.String).alias("site"),
            pl.lit(60.0).alias("age_years"),
            pl.lit("F").alias("sex"),
            pl.lit(True).alias("is_radiograph"),
            pl.lit(True).alias("is_eligible"),
        )
        cacs = pl.read_csv(
            tables / "cacs.csv", schema={"patient_id": pl.String, "ct_date": pl.Date, "cacs": pl.Float64}
        )
        rules = pairing.Rules(180, "nearest", 18, (), ())
        names = ("CAC 0", "CAC 1-99", "CAC 100-399", "CAC 400+")
        return seconds(lambda: pairing.link(films, cacs, None, None, rules, names), 3)

    tell("link of 100,000 against 10,000 patients", linked(100_000), linked(10_000))
