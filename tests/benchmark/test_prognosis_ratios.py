"""Cox models, resamples and the whole prognosis step against lifelines, single thread; and a million patients."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from lifelines import CoxPHFitter
from memory import peak_bytes
from numpy.typing import NDArray
from ratios import seconds, tell
from studies import COMMAND, cli, substitute
from threadpoolctl import threadpool_limits

from cohort_scorer.simulation.study import write_study
from cohort_scorer.statistics import bootstrap, cox

STUDY_SIZE, REPLICATES = 10_230, 1_000


def patients(n: int) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Whole days, a category of four, age and sex: p = 5; about one patient in twelve has the event."""
    rng = np.random.default_rng(2)
    category = rng.choice(4, n, p=[0.45, 0.30, 0.14, 0.11])
    age, male = rng.normal(60, 10, n), rng.random(n) < 0.5
    x = np.column_stack([category == 1, category == 2, category == 3, age, male]).astype(np.float64)
    event = rng.exponential(35_000 * np.exp(-0.5 * category - 0.03 * (age - 60)), n)
    end = rng.uniform(300, 3_600, n)
    return np.ceil(np.minimum(event, end)), event <= end, x


def lifelines_seconds(time_days: NDArray[np.float64], event: NDArray[np.bool_], x: NDArray[np.float64]) -> float:
    """Of one fit on a resample: the median of five."""
    frame = pd.DataFrame(x, columns=[f"x{k}" for k in range(x.shape[1])]).assign(time=time_days, event=event)
    draw = iter(range(100))

    def fit() -> None:
        CoxPHFitter().fit(frame.sample(len(frame), replace=True, random_state=next(draw)), "time", "event")

    return seconds(fit, 5)


def test_cox_of_1_000_000_patients_against_lifelines() -> None:
    time_days, event, x = patients(1_000_000)
    frame = pd.DataFrame(x, columns=list("abcde")).assign(time=time_days, event=event)
    with threadpool_limits(1):
        slow = seconds(lambda: CoxPHFitter().fit(frame, "time", "event"), 1)
        fast = seconds(lambda: cox.fit(time_days, event, x), 3)
    tell("Cox, 5 covariates, 1,000,000 patients, lifelines against ours", slow, fast)


def test_1000_resamples_of_the_adjusted_model_against_lifelines() -> None:
    time_days, event, x = patients(STUDY_SIZE)
    fitted = cox.fit(time_days, event, x)

    resamples = bootstrap.Resamples.drawn_by(np.random.default_rng(1), STUDY_SIZE, REPLICATES)

    def refit() -> dict[str, bootstrap.Refitted]:
        return bootstrap.refit({"m": fitted}, resamples, penalised=False, advance=lambda done: None)

    refitted = refit()

    def discriminate() -> object:
        return bootstrap.discriminate({"m": fitted}, refitted, resamples, advance=lambda done: None)

    with threadpool_limits(1):
        slow = REPLICATES * lifelines_seconds(time_days, event, x)
        fast, c = seconds(refit, 1), seconds(discriminate, 1)
    tell("1,000 refits of the adjusted model, n = 10,230, lifelines (from 5) against ours", slow, fast)
    print(f"two C of each of them besides: {c:.2f} s")


@pytest.mark.parametrize("n_groups", [1, 3])
def test_prognosis_step_against_1000_fits_of_lifelines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_groups: int
) -> None:
    """One site, as one table; or two sites and, beside them, all patients once more: twice the work."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
        monkeypatch.setenv(name, "1")
    study = write_study(tmp_path / "study", n_patients=STUDY_SIZE * 7 // 6, seed=1, images=False).parent
    if n_groups == 1:
        clinical = study / "tables/clinical.csv"
        pl.read_csv(clinical, infer_schema=False).with_columns(site=pl.lit("one")).write_csv(clinical)
    assert cli("link", study, "--quiet").code == 0
    started = time.perf_counter()
    code, peak, stderr = peak_bytes([*COMMAND, "prognosis", str(study)], 3600)
    step = time.perf_counter() - started
    assert code == 0, stderr
    print("\n" + stderr)
    with threadpool_limits(1):
        slow = REPLICATES * lifelines_seconds(*patients(STUDY_SIZE))
    print(f"prognosis, {n_groups} groups, 1,000 resamples: {step:.0f} s, {peak / 2**30:.2f} GiB")
    tell("1,000 lifelines fits of one model (from 5) against the whole prognosis step", slow, step)


def test_prognosis_of_1_000_000_patients_with_200_resamples(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", n_patients=1_100_000, seed=1, images=False).parent
    substitute(study / "study.toml", r"^\[comparison\]", "[comparison]\nbootstrap_replicates = 200")
    assert cli("link", study, "--quiet").code == 0
    started = time.perf_counter()
    code, peak, stderr = peak_bytes([*COMMAND, "prognosis", str(study)], 4 * 3600)
    assert code == 0, stderr
    print("\n" + stderr)
    print(f"prognosis of a million patients: {time.perf_counter() - started:.0f} s, {peak / 2**30:.2f} GiB")
