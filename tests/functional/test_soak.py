"""What takes longer than `make test` allows: real kills at random moments, and the truth under many seeds."""

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score
from studies import COMMAND, cli, copy, substitute, wait_for_the_end
from test_archive import counts, distances_of_strange_films
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
    key = image_study_run / "outputs/patient_level/training.key"
    (study / "outputs/patient_level").mkdir(parents=True)
    shutil.copy(key, study / "outputs/patient_level")  # before training: the hashes of its patients depend on it
    for earlier in ("index", "link", "train", "score"):
        if earlier == verb:
            break
        subprocess.run([*COMMAND, earlier, str(study), "--quiet"], check=True, stdout=subprocess.DEVNULL)
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


def test_no_label_leaks_into_out_of_fold_scores(image_study_done: Path, image_study_run: Path) -> None:
    """Nested stacking on permuted truths; the networks fitted on all patients show what a leak would look like."""
    study, rng = image_study_done, np.random.default_rng(5)
    shutil.copytree(image_study_run / "outputs/model/gt0-refit", study.parent / "backbone")
    nested = {"stacking": "nested", "trainable": "head", "backbone": "../backbone", "folds": 3, "epochs": 60}
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in (nested | {"learning_rate": 0.05}).items())
    substitute(study / "study.toml", "^(folds|epochs|learning_rate) = .*\n", "")
    substitute(study / "study.toml", r"^\[train\]\n", f"[train]\n{lines}")
    level = study / "outputs/patient_level"
    cohort = pl.read_parquet(level / "cohort.parquet")
    held_out, seen = [], []
    for _ in range(20):
        order = rng.permutation(len(cohort))
        permuted = cohort.with_columns(cohort[name].gather(order) for name in ("cacs", "true_category"))
        permuted.write_parquet(level / "cohort.parquet")
        shutil.rmtree(study / "outputs/model")
        assert cli("train", study, "--workers", "1").code == 0
        scores = pl.read_parquet(level / "out_of_fold.parquet").drop_nulls("integrated_gt0")
        folds, exposures = scores.partition_by("fold"), ("cxr_gt0", "integrated_gt0")
        held_out.append(np.mean([_auc(fold, exposure) for fold in folds for exposure in exposures]))
        shutil.rmtree(level / "network_outputs")
        assert cli("score", study).code == 0
        outputs = pl.read_parquet(level / "network_outputs/*.parquet")
        trained_on = permuted.filter(site="internal").join(outputs, on="image_id")
        seen.append(_auc(trained_on, "logit_gt0-refit"))
    error = np.std(held_out, ddof=1) / np.sqrt(len(held_out))
    assert abs(np.mean(held_out) - 0.5) < 3 * error
    assert error < 0.02
    assert np.mean(seen) - 0.5 > 3 * np.std(seen, ddof=1) / np.sqrt(len(seen))


def test_every_hand_and_lateral_film_lies_beyond_all_training_films(tmp_path: Path) -> None:
    study = tmp_path / "study"
    assert cli("simulate", study, "--patients", "1000").code == 0
    for key, value in {"image_size": 48, "folds": 2, "epochs": 2}.items():
        substitute(study / "study.toml", rf"^{key} = \d+", f"{key} = {value}")
    for verb in ("index", "link", "train"):
        assert cli(verb, study).code == 0
    strange, _ = distances_of_strange_films(study)
    assert len(strange) > 100
    assert (strange["feature_distance_percent"] == 100).all()


def _auc(scores: pl.DataFrame, exposure: str) -> float:
    return float(roc_auc_score(scores["true_category"] != "CAC 0", scores[exposure]))


@pytest.mark.parametrize("seed", range(20))
def test_truth_is_recovered_whatever_the_seed(tmp_path: Path, seed: int) -> None:
    assert np.abs(list(z_values(tmp_path / "study", seed).values())).max() < 4
