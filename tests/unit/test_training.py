"""Children of a pool end with their parent, and what a killed run left half written is not taken for a network."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from cohort_scorer.imaging import training
from cohort_scorer.imaging.training import Job, Settings

# A parent with two children that have nothing to do: it says who they are, and waits.
PARENT = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from cohort_scorer.imaging.workers import begin
if __name__ == "__main__":
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), begin) as pool:
        list(pool.map(time.sleep, [0.2, 0.2]))
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        time.sleep(60)
"""


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_children_do_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [int(word) for word in parent.stdout.readline().split()]
    assert len(children) == 2 and all(map(is_alive, children))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while any(map(is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, children))
    parent.stdout.close()


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
