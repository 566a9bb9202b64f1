"""What takes longer than `make test` allows: real kills at random moments, and the truth under many seeds."""

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from studies import COMMAND, copy, wait_for_the_end
from test_archive import counts
from test_truth_recovered import z_values

pytestmark = pytest.mark.soak

KILLS = 8


def kill_after(seconds: float, verb: str, study: Path) -> None:
    """Kill a command, not its children: these must end by themselves."""
    process = subprocess.Popen(
        [*COMMAND, verb, str(study), "--quiet", "--workers", "2"], stdout=subprocess.DEVNULL, start_new_session=True
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for_the_end(process.pid)


@pytest.mark.parametrize("verb", ["index", "train", "score"])
def test_step_killed_at_random_moments_ends_as_if_it_had_not_been(
    image_study_run: Path, tmp_path: Path, verb: str
) -> None:
    study = copy(image_study_run, tmp_path / "study")
    for earlier in ("index", "link", "train", "score"):
        if earlier == verb:
            break
        subprocess.run([*COMMAND, earlier, str(study), "--quiet"], check=True, stdout=subprocess.DEVNULL)
    key = image_study_run / "outputs/patient_level/training.key"
    (study / "outputs/patient_level").mkdir(parents=True, exist_ok=True)
    shutil.copy(key, study / "outputs/patient_level")  # the hashes of the bundle's patients depend on it
    moments = random.Random(7)
    for _ in range(KILLS):
        kill_after(moments.uniform(0.5, 14), verb, study)
    for step in ("index", "link", "train", "score"):
        subprocess.run([*COMMAND, step, str(study), "--quiet"], check=True, stdout=subprocess.DEVNULL)
    assert counts(study) == counts(image_study_run)
    made, wanted = (folder / "outputs/model/bundle.json" for folder in (study, image_study_run))
    assert made.read_bytes() == wanted.read_bytes()
    untouched = image_study_run / "outputs" / "patient_level"
    resumed = study / "outputs" / "patient_level"
    for table in ("cohort", "scores"):
        assert pl.read_parquet(resumed / f"{table}.parquet").equals(pl.read_parquet(untouched / f"{table}.parquet"))


@pytest.mark.parametrize("seed", range(20))
def test_truth_is_recovered_whatever_the_seed(tmp_path: Path, seed: int) -> None:
    assert np.abs(list(z_values(tmp_path / "study", seed).values())).max() < 4
