"""Linking a million patients, five million films and ten million events: seconds, memory, and how both grow."""

import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
from memory import peak_bytes
from numpy.typing import NDArray
from studies import COMMAND

from cohort_scorer import schemas

TYPES = ["myocardial_infarction", "stroke", "death", "late_revascularization", "admission", "revascularization"]
STUDY = """\
[study]
title = "Many patients"
dates_shifted_per_subject = true
[archive]
root = "archive"
[tables]
cacs = "cacs.parquet"
clinical = "clinical.parquet"
follow_up = "follow_up.parquet"
events = "events.parquet"
[cohort]
exclude_if = ["prior_pci"]
exclude_between = ["revascularization"]
"""
FOLLOW = """
import sys, time
from pathlib import Path
import polars as pl
from cohort_scorer.cohort import follow_up

folder = Path(sys.argv[1])
started = time.perf_counter()
cohort = pl.read_parquet(folder / "outputs" / "patient_level" / "cohort.parquet")
events, seen = (pl.read_parquet(folder / f"{name}.parquet") for name in ("events", "follow_up"))
rules = follow_up.Rules(["myocardial_infarction", "stroke"], ["death"], [], {"late_revascularization": 90}, False, 0)
none = pl.DataFrame(schema={"image_id": pl.String})
found = follow_up.follow(cohort, none, cohort.select("image_id"), seen, events, rules)
print(len(found.people), time.perf_counter() - started)
"""


def dates(days: NDArray[np.int64]) -> pl.Series:
    return pl.Series(np.datetime64("2010-01-01") + days.astype("timedelta64[D]"))


def write_study(folder: Path, n: int) -> None:
    rng = np.random.default_rng(n)
    ids = pl.Series(rng.permutation(n)).cast(pl.String).str.zfill(9)
    (folder / "archive").mkdir(parents=True)
    (folder / "study.toml").write_text(STUDY)
    ct, whose = rng.integers(0, 3000, n), rng.integers(0, n, 5 * n)
    radiograph, frontal = rng.random(5 * n) < 0.95, rng.random(5 * n) < 0.75
    films = pl.DataFrame(
        {
            "uri": pl.Series(np.arange(5 * n)).cast(pl.String) + ".dcm",
            "root": pl.repeat("archive", 5 * n, eager=True),
            "patient_id": ids.gather(whose),
            "image_id": pl.Series(rng.permutation(5 * n)).cast(pl.String),
            "study_date": dates(ct[whose] + rng.integers(-400, 400, 5 * n)),
            "acquisition_time": pl.Series(rng.integers(100_000, 235_959, 5 * n)).cast(pl.String),
            "age_years": rng.integers(20, 90, 5 * n).astype(float),
            "sex": np.where(rng.random(5 * n) < 0.5, "F", "M"),
            "site": np.where(rng.random(5 * n) < 0.5, "A", "B"),
            "eligible": radiograph & frontal,
            "reason": np.where(radiograph, np.where(frontal, "", "view"), "modality"),
        }
    ).with_columns(pl.col("reason").replace("", None))
    index = folder / "outputs" / "patient_level" / "index"
    index.mkdir(parents=True)
    schemas.conform(films, "index").write_parquet(index / "part-00000.parquet")
    pl.DataFrame(
        {"patient_id": ids, "ct_date": dates(ct), "cacs": np.where(rng.random(n) < 0.4, 0, rng.exponential(150, n))}
    ).write_parquet(folder / "cacs.parquet")
    pl.DataFrame(
        {
            "patient_id": ids,
            "sex": np.where(rng.random(n) < 0.5, "F", "M"),
            "birth_date": dates(-rng.integers(9_000, 30_000, n)),
            "bmi": rng.normal(25, 3, n).clip(12, 60),
            "site": np.where(rng.random(n) < 0.5, "A", "B"),
            "prior_pci": rng.random(n) < 0.03,
        }
    ).write_parquet(folder / "clinical.parquet")
    pl.DataFrame({"patient_id": ids, "last_contact_date": dates(ct + rng.integers(0, 4000, n))}).write_parquet(
        folder / "follow_up.parquet"
    )
    whom = rng.integers(0, n, 10 * n)
    pl.DataFrame(
        {
            "patient_id": ids.gather(whom),
            "event_type": pl.Series(TYPES).gather(rng.integers(0, len(TYPES), 10 * n)),
            "event_date": dates(ct[whom] + rng.integers(-1000, 4000, 10 * n)),
        }
    ).write_parquet(folder / "events.parquet")


def seconds_and_gib(command: list[str]) -> tuple[float, float]:
    started = time.perf_counter()
    code, peak, stderr = peak_bytes(command, 1200)
    assert code == 0, stderr
    return time.perf_counter() - started, peak / 2**30


def test_link_and_follow_up_of_a_million_patients(tmp_path: Path) -> None:
    found = {}
    for n in (100_000, 1_000_000):
        folder = tmp_path / str(n)
        write_study(folder, n)
        check = seconds_and_gib([*COMMAND, "check", str(folder)])
        link = seconds_and_gib([*COMMAND, "link", str(folder), "--quiet"])
        follow = seconds_and_gib([sys.executable, "-c", FOLLOW, str(folder)])
        found[n] = (link, follow)
        print(f"\n{n:,} patients: `check` {check[0]:.1f} s, {check[1]:.2f} GiB")
        print(
            f"{n:,} patients, {5 * n:,} films, {10 * n:,} events: `link` {link[0]:.1f} s, {link[1]:.2f} GiB; "
            f"follow-up {follow[0]:.1f} s, {follow[1]:.2f} GiB"
        )
    few, many = (sum(part[0] for part in found[n]) for n in (100_000, 1_000_000))
    print(f"ten times the patients: {many / few:.1f} x the time")
    assert max(part[1] for part in found[1_000_000]) < 6
