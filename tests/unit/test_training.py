"""What a killed run left half written is not taken for a network."""

import os
from pathlib import Path

import numpy as np

from cohort_scorer.imaging import training
from cohort_scorer.imaging.training import Job, Settings


def test_what_a_killed_run_left_half_written_goes(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 65536, (8, 32, 32)).astype(np.uint16)
    np.save(tmp_path / "images.npy", images)
    outcome = np.arange(8) % 2 == 0
    folder = tmp_path / "networks"
    for name in (".one", f".one-{os.getpid()}", ".one-1"):
        (folder / name).mkdir(parents=True)
    job = Job("one", outcome, np.arange(8) < 2, seed=1)
    training.train_all(
        [job], tmp_path / "images.npy", folder, Settings("resnet-small", 1, 4, 1e-3, "cpu"), 1, lambda _: None
    )
    assert [path.name for path in folder.iterdir()] == ["one"]
    assert len(training.held_out_logits(folder, "one")) == 2
