"""A run that is stopped at any moment goes on where it stopped, and ends with the same scores."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from studies import COMMAND, cli, substitute

SCORES = "outputs/patient_level/scores.parquet"


def interrupt(study: Path, verb: str, ready: Callable[[], bool], number: int = signal.SIGINT) -> tuple[int, str, str]:
    """Start a command and, once `ready`, signal it and its workers, as a terminal does."""
    process = subprocess.Popen(
        [*COMMAND, verb, str(study)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, number)
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout, stderr


def said_to_be_interrupted(answer: tuple[int, str, str]) -> None:
    code, stdout, stderr = answer
    assert code == 130, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-3:] == [
        "Interrupted.",
        "What was finished stands.",
        "Run the same command again to go on.",
    ]


def scores(study: Path) -> pl.DataFrame:
    """Without model_id: it hashes training_patients.parquet, which is keyed anew by each training."""
    return pl.read_parquet(study / SCORES).drop("model_id")


def networks(study: Path) -> list[Path]:
    folder = study / "outputs/patient_level/training"
    return [path for path in folder.glob("*/networks/*") if not path.name.startswith(".")]


def test_an_interrupted_run_goes_on_and_gives_the_same_scores(
    image_study: Path, image_study_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while it trains; the networks that stand are not trained again."""
    from cohort_scorer.imaging import training

    substitute(image_study / "study.toml", r"^\[outcome\][\s\S]*", "")
    said_to_be_interrupted(interrupt(image_study, "run", lambda: len(networks(image_study)) >= 2))
    standing = {path.name for path in networks(image_study)}
    assert 2 <= len(standing) <= 9
    assert not (image_study / "outputs/model").exists()
    train_one, trained = training._train_one, set()

    def noted(job: training.Job, *others: Any) -> None:
        trained.add(job.name)
        train_one(job, *others)

    monkeypatch.setattr(training, "_train_one", noted)
    assert cli("run", image_study, "--workers", "1").code == 0
    assert not trained & standing
    assert len(trained | standing) == 9
    assert scores(image_study).equals(scores(image_study_run))
    assert not (image_study / "outputs/patient_level/training").exists()


def test_an_interrupted_score_goes_on_and_gives_the_same_bytes(image_study_done: Path, image_study_run: Path) -> None:
    outputs = image_study_done / "outputs"
    shutil.rmtree(outputs / "patient_level/network_outputs")
    (image_study_done / SCORES).unlink()
    (outputs / ".lock").unlink()
    said_to_be_interrupted(interrupt(image_study_done, "score", (outputs / ".lock").exists))
    assert cli("score", image_study_done).code == 0
    assert (image_study_done / SCORES).read_bytes() == (image_study_run / SCORES).read_bytes()


def test_index_goes_on_after_a_part(image_study: Path, image_study_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cohort_scorer.imaging import header
    from cohort_scorer.imaging import index as archive

    monkeypatch.setattr(archive, "PART_FILES", 64)
    original, opened = header.read, []

    def stopped_in_the_second(path: Path) -> Any:
        opened.append(path)
        if len(opened) == 100:
            raise KeyboardInterrupt
        return original(path)

    monkeypatch.setattr(header, "read", stopped_in_the_second)
    assert cli("index", image_study).code == 130
    folder = "outputs/patient_level/index"
    assert [path.name for path in (image_study / folder).glob("part-*")] == ["part-00000.parquet"]
    assert cli("index", image_study).code == 0
    assert len(opened) == 100 + 179 - 64
    assert not set(opened[100:]) & set(opened[:64])
    done, wanted = (
        pl.concat(pl.read_parquet(path) for path in sorted((study / folder).glob("part-*.parquet")))
        for study in (image_study, image_study_run)
    )
    apart = ["file_mtime_ns", "shard"]
    assert done.drop(apart).sort("uri").equals(wanted.drop(apart).sort("uri"))


def test_a_corrected_bmi_changes_scores_without_a_network(
    image_study_done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cohort_scorer.imaging import scoring

    def called(*_: object) -> None:
        raise AssertionError("a film was read again")

    monkeypatch.setattr(scoring, "score", called)
    before = scores(image_study_done)
    substitute(image_study_done / "tables/clinical.csv", r",(2\d\.\d),", ",39.9,")
    assert cli("score", image_study_done).code == 0
    after = scores(image_study_done)
    assert after["cxr_gt0"].equals(before["cxr_gt0"])
    assert not after["integrated_gt0"].equals(before["integrated_gt0"])
