"""How index grows with the archive, as ratios within one run; `make bench` prints them."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from many_films import write_films
from ratios import seconds, tell

from cohort_scorer import study as study_file
from cohort_scorer.provenance import Step
from cohort_scorer.stages import Machine, Silent
from cohort_scorer.stages.index import index

_COMMAND = [sys.executable, "-c", "from cohort_scorer.cli import main; main()", "index"]
# Not ru_maxrss: a process begins with the peak of the one that started it.
_PEAK_MEMORY = """
import re, sys
from cohort_scorer.cli import app
app(["index", *sys.argv[1:], "--quiet"], standalone_mode=False)
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def new_study(folder: Path, n_films: int) -> Path:
    write_films(folder / "archive", n_films)
    (folder / "study.toml").write_text('[study]\ntitle = "Many films"\n[archive]\nroot = "archive"\n')
    return folder


def test_second_index_of_an_unchanged_archive_of_5_000_films(tmp_path: Path) -> None:
    study = study_file.load(new_study(tmp_path / "study", 5_000))

    def again() -> None:
        index(study, Machine(workers=1), Silent())

    started = time.perf_counter()
    again()
    first = time.perf_counter() - started
    tell("the step in one process, first against second", first, seconds(again, 5))
    facts = json.loads(Step(study, "index").path.read_text())["facts"]
    assert (facts["n_files"], facts["n_eligible"], facts["n_opened"]) == (5_000, 5_000, 0)


def test_second_command_on_an_unchanged_archive_of_5_000_films(tmp_path: Path) -> None:
    folder = new_study(tmp_path / "study", 5_000)

    def command() -> None:
        subprocess.run([*_COMMAND, str(folder), "--quiet"], check=True, stdout=subprocess.DEVNULL)

    started = time.perf_counter()
    command()
    first = time.perf_counter() - started
    tell("the whole command, first against second", first, seconds(command, 3))


def test_index_in_two_processes_against_one(tmp_path: Path) -> None:
    took = {}
    for workers in (1, 2):
        study = study_file.load(new_study(tmp_path / f"{workers}", 5_000))
        started = time.perf_counter()
        index(study, Machine(workers=workers), Silent())
        took[workers] = time.perf_counter() - started
    tell("5,000 films, one process against two", took[1], took[2])


@pytest.mark.parametrize("workers", [1, 2])
def test_peak_memory_of_20_000_films_against_2_000(tmp_path: Path, workers: int) -> None:
    peaks = []
    for n_films in (20_000, 2_000):
        folder = new_study(tmp_path / f"{n_films}", n_films)
        words = [sys.executable, "-c", _PEAK_MEMORY, str(folder), "--workers", str(workers)]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    large, small = peaks
    print(f"\npeak memory, --workers {workers}: {large / small:.3f} x ({large:.0f} MB against {small:.0f} MB)")
