"""CPU and CUDA give the same scores in float32, to 1e-5 in probability."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from cohort_scorer.imaging import index, networks, scoring
from cohort_scorer.simulation.study import write_study

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def test_cuda_and_cpu_agree(tmp_path: Path) -> None:
    root = write_study(tmp_path / "study", n_patients=40, seed=11).parent / "archive"
    rules = index.Rules(("CR", "DX"), ("CHEST",), ("PA", "AP"), "exclude")
    files = index.find_files(root, None).with_columns(root=pl.lit("archive"))
    rows = pl.concat(rows for rows, _ in index.read_headers(files, {"archive": root}, None, rules, 1, lambda _: None))
    rows = rows.filter("eligible").unique("image_id", keep="first", maintain_order=True)
    found = {}
    for name in ("cpu", "cuda"):
        network = {"net": networks.build("resnet-small", seed=5, size=64)}
        device = networks.choose_device(name)
        outputs, refusals = scoring.score(rows, {"archive": root}, 96, network, 8, device, 2, lambda _: None)
        assert refusals.is_empty()
        found[name] = 1 / (1 + np.exp(-outputs["logit_net"].to_numpy()))
    assert len(found["cpu"]) > 30
    assert np.abs(found["cpu"] - found["cuda"]).max() < 1e-5
