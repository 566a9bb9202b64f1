"""Films per second on a CUDA device by transfer syntax, written to docs/benchmarks.md with the device's name."""

import os
import time
from pathlib import Path

import cuda_page
import numpy as np
import polars as pl
import pytest
import torch
from films import EXPLICIT, HTJ2K, JPEG_2000_LOSSLESS, JPEG_LS, LOSSLESS_SV1, RLE
from test_scoring_ratios import DenseNet121, archive

from cohort_scorer.imaging import decoding, networks, scoring

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

SIZE, FILMS = 512, {EXPLICIT: 1500, LOSSLESS_SV1: 600, JPEG_LS: 300, RLE: 600, HTJ2K: 300, JPEG_2000_LOSSLESS: 100}
SPOKEN = {
    EXPLICIT: "uncompressed",
    LOSSLESS_SV1: "JPEG lossless",
    JPEG_LS: "JPEG-LS",
    RLE: "RLE",
    HTJ2K: "HTJ2K",
    JPEG_2000_LOSSLESS: "JPEG 2000",
}


def run(rows: pl.DataFrame, folder: Path, device: str) -> tuple[pl.Series, float]:
    """Logits and films per second."""
    model = scoring.Model({"gt0": DenseNet121()}, {"gt0": ["gt0"]}, SIZE)
    place = networks.choose_device(device)
    size = scoring.batch_size_for(place, SIZE)
    workers = os.cpu_count() or 1

    def scored(some: pl.DataFrame) -> pl.DataFrame:
        films = decoding.radiographs(some.iter_rows(named=True), {"root": folder}, SIZE, workers)
        parts = list(scoring.score(some, films, model, size, place, workers, lambda _: None))
        return pl.concat(part.outputs for part in parts)

    scored(rows.head(size))
    started = time.perf_counter()
    outputs = scored(rows)
    return outputs["logit_gt0"], len(rows) / (time.perf_counter() - started)


def test_films_per_second_by_transfer_syntax(tmp_path: Path) -> None:
    name, cores = torch.cuda.get_device_name(), os.cpu_count()
    lines = [
        f"{name}, {cores} cores, torch {torch.__version__}; films of 2500 x 2048 x 12 bits from the page cache, "
        f"densenet121 at {SIZE} in float32 (no TF32).",
        "",
        "| syntax | films | films/s | decoding alone, films/s | GPU busy, % |",
        "|---|---|---|---|---|",
    ]
    for syntax, n in FILMS.items():
        folder = tmp_path / SPOKEN[syntax].replace(" ", "_")
        folder.mkdir()
        rows = archive(folder, n, syntax)
        with cuda_page.BusyShare() as busy:
            _, rate = run(rows, folder, "cuda")
        started = time.perf_counter()
        for _ in decoding.radiographs(rows.iter_rows(named=True), {"root": folder}, SIZE, cores or 1):
            pass
        alone = n / (time.perf_counter() - started)
        lines.append(f"| {SPOKEN[syntax]} | {n} | {rate:.0f} | {alone:.0f} | {busy.percent():.0f} |")
        if syntax == EXPLICIT:
            few = rows.head(32)
            found = [1 / (1 + np.exp(-run(few, folder, device)[0].to_numpy())) for device in ("cpu", "cuda")]
            difference = float(np.abs(found[0] - found[1]).max())
    lines += ["", f"Largest difference of a probability between CPU and CUDA, 32 films: {difference:.1e}."]
    cuda_page.write("Scoring", lines)
    assert difference < 1e-5
