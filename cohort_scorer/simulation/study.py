"""A whole simulated study on disk: archive, tables, study file and the truth behind them; labelled simulated."""

import json
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.special import ndtr

from cohort_scorer import workers
from cohort_scorer.errors import MachineError
from cohort_scorer.simulation import films as film_files
from cohort_scorer.simulation.films import Film
from cohort_scorer.simulation.patients import (
    BLANKING_DAYS,
    CATEGORIES,
    COMPETING,
    COMPONENTS,
    FATES,
    FATES_OF_FILMS,
    LOG_HAZARD_RATIOS,
    Days,
    Floats,
    Outcomes,
    Patients,
    category_cuts,
    draw_outcomes,
    draw_patients,
    expected_prevalence,
)

# Correlation of a simulated CXR score with the calcium propensity: gives AUCs of about .73, .74 and .77.
CXR_CORRELATION = 0.50
SHARED_NOISE = 0.7  # correlation of the noise of two thresholds: outputs sometimes contradict each other
THRESHOLD_NAMES = ("gt0", "ge100", "ge400")

_PATIENTS_AT_ONCE = 50
_KILLED = MachineError(
    "A process that wrote films was killed; the simulated archive is not whole.",
    "Expected memory for a few films in each process; found too little, perhaps.",
    "Remove the folder and run the same command again.",
)

_STUDY = """\
# A simulated study: every patient, film and event in it is made up. truth.json tells the model behind it.
[study]
title = "Simulated chest X-ray cohort"
seed = {seed}
simulated = true
{archive}
[tables]
cacs = "tables/cacs.csv"
clinical = "tables/clinical.csv"
follow_up = "tables/follow_up.csv"
events = "tables/events.csv"
{scores}
[cohort]
exclude_if = ["prior_pci", "prior_cabg"]
exclude_between = ["revascularization"]
{model}
[outcome]
name = "MACE"
components = ["cardiac_death", "myocardial_infarction", "revascularization"]
competing = ["noncardiac_death"]
blanking_days = {{ revascularization = {blanking} }}
horizon_years = [1, 3, 5]

[comparison]
adjust_for = ["age_at_t0_years", "sex", "bmi"]

[sensitivity]
maximum_days_between = [90]
pairing = ["nearest_before"]
landmark_days = [365]

[audit]
strata = ["sex", "age_band", "site"]
threshold = 100

[release]
disclosure = "none"
"""
_ARCHIVE = """
[archive]
root = "archive"
"""
_MODEL = """
[model]
bundle = "outputs/model"
category_rule = "prevalence"

[train]
sites = ["internal"]
image_size = 96
folds = 10
epochs = 8
batch_size = 32
learning_rate = 2e-3
integrate = ["age_years", "sex", "bmi"]
"""


def write_study(
    folder: Path, *, n_patients: int, seed: int, images: bool = True, advance: Callable[[int], None] = lambda _: None
) -> Path:
    """Writes a simulated study.

    Args:
        folder: Where; must be absent or empty.
        n_patients: How many patients, those with faults included.
        seed: Every byte depends on it alone, whatever the number of workers.
        images: False: no archive but a table of scores, as if made elsewhere.
        advance: Called with the number of patients just written.

    Returns:
        The path of study.toml.

    Raises:
        MachineError: the folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MachineError(
            f"{folder.name}: the folder for the simulated study is not empty.",
            "Expected an absent or empty folder, so that nothing is overwritten; found something there.",
            "Name another folder, or remove this one.",
        )
    for_tables, for_films = np.random.SeedSequence(seed).spawn(2)
    rng = np.random.default_rng(for_tables)
    patients = draw_patients(n_patients, rng, FATES | FATES_OF_FILMS if images else FATES)
    outcomes = draw_outcomes(patients, rng)
    tables = folder / "tables"
    tables.mkdir(parents=True)
    _cacs(patients).write_csv(tables / "cacs.csv")
    _clinical(patients).write_csv(tables / "clinical.csv")
    _follow_up(patients, outcomes).write_csv(tables / "follow_up.csv")
    _events(patients, outcomes).write_csv(tables / "events.csv")
    planted: dict[str, Any] = {"patients": _count(patients.fate), "events": outcomes.planted}
    if images:
        plans = film_files.plan_films(patients, rng)
        _write_archive(folder / "archive", patients, plans, for_films, advance)
        planted["films"] = _count_films(plans)
    else:
        _scores(patients, rng).write_csv(tables / "scores.csv")
        advance(n_patients)
    _write_truth(folder / "truth.json", patients, planted, seed)
    study = _STUDY.format(
        seed=seed,
        archive=_ARCHIVE if images else "",
        scores="" if images else 'scores = "tables/scores.csv"\n',
        model=_MODEL if images else "",
        blanking=BLANKING_DAYS,
    )
    (folder / "study.toml").write_text(study, encoding="utf-8")
    return folder / "study.toml"


def _write_archive(
    archive: Path,
    patients: Patients,
    plans: list[list[Film]],
    seed: np.random.SeedSequence,
    advance: Callable[[int], None],
) -> None:
    """Writes all films, in processes where there are many: threads mostly wait for one another."""
    archive.mkdir()
    seeds = seed.spawn(len(patients))
    size = min(_PATIENTS_AT_ONCE, len(patients))
    parts = [range(start, min(start + size, len(patients))) for start in range(0, len(patients), size)]
    n_workers = min(os.cpu_count() or 1, len(parts))
    tasks = [(archive, patients, i, [plans[j] for j in i], [seeds[j] for j in i]) for i in parts]
    if n_workers == 1:
        for task in tasks:
            advance(_write_films(*task))
        return
    with workers.pool(n_workers, _KILLED) as submit:
        for future in as_completed([submit(_write_films, *task) for task in tasks]):
            advance(future.result())


def _write_films(
    archive: Path, patients: Patients, some: range, plans: list[list[Film]], seeds: list[np.random.SeedSequence]
) -> int:
    """The films of some patients, whose number is returned."""
    for i, plan, seed in zip(some, plans, seeds, strict=True):
        film_files.write_films(archive, patients, i, plan, seed)
    return len(some)


def _cacs(patients: Patients) -> pl.DataFrame:
    """patient_id, ct_date, cacs; an earlier CT where there was one, with a little less calcium."""
    ids, fate = np.array(patients.patient_id), patients.fate
    scanned = fate != "without_ct"
    again = patients.extra_ct >= 0
    return pl.DataFrame(
        {
            "patient_id": np.concatenate([ids[scanned], ids[again]]),
            "ct_date": _dates(np.concatenate([patients.ct[scanned], patients.extra_ct[again]])),
            "cacs": np.concatenate([patients.cacs[scanned], np.round(0.8 * patients.cacs[again], 1)]),
        }
    ).sort("patient_id", "ct_date")


def _clinical(patients: Patients) -> pl.DataFrame:
    """One row per patient."""
    return pl.DataFrame(
        {
            "patient_id": patients.patient_id,
            "sex": np.where(patients.male, "M", "F"),
            "birth_date": _dates(patients.birth),
            "bmi": pl.Series(patients.bmi).fill_nan(None),
            "site": patients.site,
            **patients.flags,
        }
    )


def _follow_up(patients: Patients, outcomes: Outcomes) -> pl.DataFrame:
    """patient_id, last_contact_date; no row for those who were never followed."""
    table = pl.DataFrame({"patient_id": patients.patient_id, "last_contact_date": _dates(outcomes.last_contact)})
    return table.filter(pl.Series(patients.fate != "without_follow_up"))


def _events(patients: Patients, outcomes: Outcomes) -> pl.DataFrame:
    """patient_id, event_type, event_date: any number of rows per patient."""
    return pl.DataFrame(
        {
            "patient_id": np.array(patients.patient_id)[outcomes.patient],
            "event_type": outcomes.event_type,
            "event_date": _dates(outcomes.event_date),
        }
    )


def _scores(patients: Patients, rng: np.random.Generator) -> pl.DataFrame:
    """Probabilities per film, calibrated under the generator; integrated ones are empty without a body mass index.

    A CXR signal with correlation CXR_CORRELATION to the propensity, and its combination with what age, sex and body
    mass index explain: in a normal model the probability of lying above a cut is a normal distribution function.
    """
    n = len(patients)
    noise = SHARED_NOISE**0.5 * rng.standard_normal((n, 1)) + (1 - SHARED_NOISE) ** 0.5 * rng.standard_normal((n, 3))
    film = CXR_CORRELATION * patients.propensity[:, None] + (1 - CXR_CORRELATION**2) ** 0.5 * noise
    clinical = np.repeat(patients.explained[:, None], 3, axis=1)
    explained = float(patients.explained.var())
    # Covariance of (film, clinical), and of each with the propensity.
    weights = np.linalg.solve(
        [[1.0, CXR_CORRELATION * explained], [CXR_CORRELATION * explained, explained]], [CXR_CORRELATION, explained]
    )
    both = weights[0] * film + weights[1] * clinical
    means = {"cxr": CXR_CORRELATION * film, "integrated": both, "clinical": clinical}
    variances = {
        "cxr": CXR_CORRELATION**2,
        "integrated": float(weights @ [CXR_CORRELATION, explained]),
        "clinical": explained,
    }
    incomplete = np.isnan(patients.bmi)
    columns: dict[str, Any] = {"patient_id": patients.patient_id, "study_date": _dates(patients.film)}
    for exposure, mean in means.items():
        probability = ndtr((mean - category_cuts()) / (1 - variances[exposure]) ** 0.5)
        if exposure != "cxr":
            probability = np.where(incomplete[:, None], np.nan, probability)
        for name, column in zip(THRESHOLD_NAMES, probability.T, strict=True):
            columns[f"{exposure}_{name}"] = pl.Series(np.round(column, 6)).fill_nan(None)
    table = pl.DataFrame(columns).with_columns(
        pl.lit("external").alias("score_origin"),
        pl.Series("score_status", np.where(incomplete, "missing_bmi", "ok")),
    )
    again = patients.extra_film >= 0
    earlier = table.with_columns(_dates(patients.extra_film).alias("study_date")).filter(pl.Series(again))
    filmed = table.filter(pl.Series(patients.fate != "without_film"))
    return pl.concat([filmed, earlier]).sort("patient_id", "study_date")


def _write_truth(path: Path, patients: Patients, planted: dict[str, Any], seed: int) -> None:
    """The model behind the study, and what was planted in it."""
    realised = np.bincount(patients.category, minlength=4) / len(patients)
    truth = {
        "simulated": True,
        "seed": seed,
        "n_patients": len(patients),
        "log_hazard_ratios": LOG_HAZARD_RATIOS,
        "hazard_ratios": {term: float(np.exp(value)) for term, value in LOG_HAZARD_RATIOS.items()},
        "reference": {"category": CATEGORIES[0], "sex": "F"},
        "meaning": (
            "Cause-specific hazard of the first of "
            + ", ".join(COMPONENTS)
            + f" from t0 = max(film date, CT date), constant in time, proportional in true category, age at t0 (per "
            f"year) and male sex, with {COMPETING} censoring and revascularizations up to {BLANKING_DAYS} days after "
            "the CT left out."
        ),
        "prevalences": {
            "expected": dict(zip(CATEGORIES, expected_prevalence(patients).tolist(), strict=True)),
            "realised": dict(zip(CATEGORIES, realised.tolist(), strict=True)),
        },
        "sites": _count(patients.site),
        "planted": planted,
    }
    path.write_text(json.dumps(truth, indent=2) + "\n", encoding="utf-8")


def _count(words: Any) -> dict[str, int]:
    """How often each word occurs, by name."""
    names, counts = np.unique(words, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def _count_films(plans: list[list[Film]]) -> dict[str, int]:
    """How many files there are, of which kinds and with which flaws."""
    flat = [film for plan in plans for film in plan]
    counts: Counter[str] = Counter(film.flaw for film in flat if film.flaw)
    counts["lateral"] = sum(film.picture == "lateral" for film in flat)
    counts["view_in_series_description_only"] = sum(film.told_by == "series_description" for film in flat)
    counts["files"] = len(flat)
    return dict(sorted(counts.items()))


def _dates(days: Days | Floats) -> pl.Series:
    """Days since 1970-01-01 as dates."""
    return pl.Series(np.asarray(days, dtype=np.int32)).cast(pl.Date)
