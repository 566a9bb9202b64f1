"""Training at the scale of the published cohort on a CUDA device, in pieces; what does not fit is extrapolated."""

import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cuda_page
import numpy as np
import polars as pl
import pytest
import torch

from cohort_scorer import study as study_file
from cohort_scorer.imaging import training
from cohort_scorer.imaging.training import Job, Settings
from cohort_scorer.simulation.study import write_study
from cohort_scorer.stages import Machine, Silent
from cohort_scorer.stages.index import index
from cohort_scorer.stages.link import link
from cohort_scorer.stages.score import score
from cohort_scorer.stages.train import train
from cohort_scorer.stages.validate import validate
from cohort_scorer.study import Study

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

PATIENTS = int(os.environ.get("PATIENTS", "10230"))
SMALL = {"image_size": "224", "folds": "10", "epochs": "6", "batch_size": "128"}
SMALL_TITLE = "Training: all networks of the small preset"
LARGE = Settings("resnet50", 0, 30, 32, 1e-4, "cuda")
LARGE_SIZE, LARGE_EPOCHS, LARGE_FILMS = 512, 3, 2048


def test_every_network_of_the_published_design(tmp_path: Path) -> None:
    """Ten folds and a refit by three thresholds with the small preset: the whole way, and what it is worth."""
    started = time.perf_counter()
    file = write_study(tmp_path / "study", n_patients=PATIENTS, seed=2025)
    seconds = {"simulate": time.perf_counter() - started}
    text = file.read_text()
    for key, value in SMALL.items():
        text = re.sub(rf"^{key} = \d+", f"{key} = {value}", text, flags=re.MULTILINE)
    file.write_text(text)
    study, machine, console = study_file.load(file), Machine("cuda", None, os.cpu_count() or 1), Silent()

    def timed(name: str, step: Callable[[Study, Machine, Silent], object], machine: Machine = machine) -> float:
        started = time.perf_counter()
        with cuda_page.BusyShare() as busy:
            step(study, machine, console)
        seconds[name] = time.perf_counter() - started
        print(f"{name}: {seconds[name]:.0f} s, GPU busy {busy.percent():.0f} %", flush=True)
        return busy.percent()

    for step in (index, link):
        timed(step.__name__, step)
    timed("train, fold 0, with decoding", train, replace(machine, folds=(0,)))
    busy = timed("train, fold 1", train, replace(machine, folds=(1,)))
    about = (
        f"{torch.cuda.get_device_name()}, {os.cpu_count()} cores, torch {torch.__version__}. SIMULATED patients: "
        f"{PATIENTS:,}; resnet-small at {SMALL['image_size']} pixels, at most {SMALL['epochs']} epochs, batches of "
        f"{SMALL['batch_size']}, bfloat16."
    )
    fold = f"Measured: {seconds['train, fold 1'] / 60:.2f} minutes per fold (three networks), GPU busy {busy:.0f} %."
    cuda_page.write(SMALL_TITLE, [about, "", fold, "", *table(seconds)])
    timed("train, the other eight folds, the refits and the bundle", train)
    timed("score", score)
    timed("validate", validate)
    found = pl.read_csv(study.unprotected / "tables" / "discrimination.csv", infer_schema_length=None)
    pooled = found.filter(pl.col("fold").is_null() & (pl.col("site") != "all"))
    curves = pl.read_csv(study.unprotected / "tables" / "training_curves.csv")
    n = pooled.filter(exposure="cxr", threshold=0, score_origin="oof")["n"][0]
    epochs = curves.select("network", "epoch").unique().height
    whole = f"{n:,} patients trained 33 networks, {epochs} epochs in all."
    lines = [about, "", fold, whole, "", *table(seconds), "", *areas(pooled)]
    cuda_page.write(SMALL_TITLE, lines)
    assert len(pooled) == 18


def table(seconds: dict[str, float]) -> list[str]:
    return ["| step | seconds |", "|---|---|", *(f"| {name} | {spent:.0f} |" for name, spent in seconds.items())]


def areas(pooled: pl.DataFrame) -> list[str]:
    lines = ["| scores | exposure | CACS | n | AUC (DeLong) |", "|---|---|---|---|---|"]
    for row in pooled.iter_rows(named=True):
        area = f"{row['auc']:.3f} ({row['lower']:.3f}-{row['upper']:.3f})"
        place = f"{row['site']}, {row['score_origin']}"
        lines.append(f"| {place} | {row['exposure']} | {row['threshold']} | {row['n']:,} | {area} |")
    return lines


def test_one_network_of_the_size_that_is_published(tmp_path: Path) -> None:
    """A few epochs of one network on noise of the right shape: what an epoch takes does not depend on what is seen."""
    n = LARGE_FILMS
    images = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint16, (n, LARGE_SIZE, LARGE_SIZE))
    tile = np.random.default_rng(0).integers(0, 65536, (64, LARGE_SIZE, LARGE_SIZE)).astype(np.uint16)
    for start in range(0, n, 64):
        images[start : start + 64] = tile[: min(64, n - start)]
    images.flush()
    rows, outcome = np.arange(n), (np.arange(n) % 3 == 0)[:, None]
    held_out, stopping, members = rows[: n // 10], rows[n // 10 : n // 5], rows[n // 5 :]
    job = Job("one", outcome, members, stopping, held_out, 1, LARGE_EPOCHS)
    moments: list[float] = []
    with cuda_page.BusyShare() as busy:
        training.train_all(
            [job], tmp_path / "images.npy", tmp_path / "networks", LARGE, 1,
            lambda n, note="": moments.append(time.perf_counter()) if note else None,
        )  # fmt: skip
    measured = float(np.mean(np.diff(moments)))
    epoch = measured * PATIENTS / n
    total = epoch * LARGE.epochs * 33
    hours, per_fold = total / 3600, epoch * LARGE.epochs * 3 / 60
    lines = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}. One network, {LARGE.backbone} at {LARGE_SIZE} "
        f"pixels, {len(members):,} images of noise per epoch, batches of {LARGE.batch_size}, bfloat16, a checkpoint "
        f"each epoch: {measured:.1f} s per epoch ({len(members) / measured:.0f} images/s), GPU busy "
        f"{busy.percent():.0f} %.",
        "",
        f"EXTRAPOLATED, not measured: for {PATIENTS:,} patients {LARGE.epochs} epochs, none stopped early, make "
        f"{per_fold:.0f} minutes per fold (three networks) and {hours:.1f} hours for ten folds and the refits.",
    ]
    cuda_page.write("Training: one network of the published size", lines)
    assert epoch > 0
