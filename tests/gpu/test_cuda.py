"""CPU and CUDA give the same scores in float32, to 1e-5 in probability; on CUDA, too, nothing else changes a bit."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from cohort_scorer.imaging import decoding, index, networks, scoring
from cohort_scorer.simulation.study import write_study

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pl.DataFrame]:
    root = write_study(tmp_path_factory.mktemp("gpu") / "study", n_patients=40, seed=11).parent / "archive"
    rules = index.Rules(("CR", "DX"), ("CHEST",), ("PA", "AP"), "exclude")
    files = index.find_files(root, None).with_columns(root=pl.lit("archive"))
    rows = pl.concat(rows for rows, _ in index.read_headers(files, {"archive": root}, None, rules, 1, lambda _: None))
    rows = rows.filter("eligible").unique("image_id", keep="first", maintain_order=True)
    return root, rows.with_columns(shard=pl.lit("00000-00000"))


def logits(archive: tuple[Path, pl.DataFrame], name: str, batch_size: int, workers: int = 2) -> np.ndarray:
    root, rows = archive
    model = scoring.Model({"net": networks.build("resnet-small", seed=5, size=96)}, {"net": ["net"]}, 96)
    device = networks.choose_device(name)
    films = decoding.radiographs(rows.iter_rows(named=True), {"archive": root}, 96, workers)
    parts = list(scoring.score(rows, films, model, batch_size, device, workers, lambda _: None))
    assert all(part.refusals.is_empty() for part in parts)
    return pl.concat(part.outputs for part in parts)["logit_net"].to_numpy()


def probabilities(found: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-found))


def test_cuda_and_cpu_agree(archive: tuple[Path, pl.DataFrame]) -> None:
    found = {name: probabilities(logits(archive, name, 8)) for name in ("cpu", "cuda")}
    assert len(found["cpu"]) > 30
    assert np.abs(found["cpu"] - found["cuda"]).max() < 1e-5


def test_workers_change_no_bit_and_batch_sizes_no_more_than_rounding(archive: tuple[Path, pl.DataFrame]) -> None:
    plain = logits(archive, "cuda", 8)
    assert np.array_equal(plain, logits(archive, "cuda", 8, workers=5))
    assert np.abs(probabilities(plain) - probabilities(logits(archive, "cuda", 3))).max() < 1e-5
