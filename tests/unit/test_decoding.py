"""What hangs, dies or wants too much memory costs one film; every row comes back once, whatever happens to children."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from films import EXPLICIT, JPEG_2000_LOSSLESS, JPEG_LS, LOSSLESS_SV1, RLE, film, write_film
from test_codecs import index_of

from cohort_scorer.errors import MachineError
from cohort_scorer.imaging import decoding, radiograph
from cohort_scorer.imaging.decoding import fingerprints, radiographs
from cohort_scorer.imaging.refusal import Refused

SIZE = 48


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    syntaxes = (EXPLICIT, JPEG_LS, RLE, LOSSLESS_SV1, JPEG_2000_LOSSLESS)
    for number in range(20):
        write_film(folder / f"{number:02}", film(80 + number, 90, seed=number), syntaxes[number % 5])
    return folder, index_of(folder).rows(named=True)


def large_film(folder: Path) -> Path:
    """Half a second of work for a decoder, and more memory than the others."""
    pixels = np.tile(film(300, 300), (8, 8))
    return write_film(folder / "large", pixels, JPEG_2000_LOSSLESS)


def outcomes(rows, folder, workers=2, size=SIZE):
    """Reason or image by row number; each row must come back once."""
    found = list(radiographs(iter(rows), {"archive": folder}, size, workers))
    assert sorted(number for number, _ in found) == list(range(len(rows)))
    return {number: film.reason if isinstance(film, Refused) else film for number, film in found}


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_children_make_the_images_that_one_process_makes(archive, workers):
    folder, rows = archive
    for number, found in outcomes(rows, folder, workers).items():
        alone = radiograph.read(rows[number], folder, SIZE)
        assert np.array_equal(found.image, alone.image)
        assert found.pixel_sha256 == alone.pixel_sha256
        assert found.quality == alone.quality


def test_children_hash_what_one_process_hashes(archive):
    folder, rows = archive
    alone = [radiograph.fingerprint(row, radiograph.fetch(row, folder)) for row in rows]
    assert dict(fingerprints(rows, {"archive": folder}, 2)) == dict(enumerate(alone))
    assert len(set(alone)) == 20


def test_what_is_wrong_with_a_film_is_its_refusal(archive):
    folder, rows = archive
    wrong = [
        rows[0] | {"uri": "absent"},
        rows[1] | {"uri": "../escaped"},
        rows[2] | {"file_size": 1},
        rows[3] | {"transfer_syntax": "1.2.3"},
        rows[4] | {"bits_stored": None},
    ]
    found = outcomes([*rows[:3], *wrong, *rows[3:]], folder)
    reasons = [found[number] for number in range(3, 8)]
    assert reasons == ["missing_file", "outside_root", "changed_file", "decode_failed", "decode_failed"]
    assert not any(isinstance(found[number], str) for number in (*range(3), *range(8, 25)))


def test_a_film_that_takes_too_long_is_refused_and_no_other(tmp_path, archive, monkeypatch):
    _, rows = archive
    for row in rows:
        (tmp_path / row["uri"]).write_bytes((archive[0] / row["uri"]).read_bytes())
    large_film(tmp_path)
    rows = index_of(tmp_path).rows(named=True)
    assert isinstance(outcomes(rows, tmp_path)[20], radiograph.Radiograph)
    monkeypatch.setattr(decoding, "LIMIT_SECONDS", 0.15)
    found = outcomes(rows, tmp_path)
    assert {number for number, film in found.items() if isinstance(film, str)} == {20}
    assert found[20] == "decoder_timeout"


def test_a_film_that_wants_too_much_memory_is_refused_and_no_other(tmp_path, monkeypatch):
    for number in range(6):
        write_film(tmp_path / f"{number}", film(seed=number))
    large_film(tmp_path)
    rows = index_of(tmp_path).rows(named=True)
    monkeypatch.setattr(decoding, "LIMIT_BYTES", 32 * 2**20)
    found = outcomes(rows, tmp_path)
    assert {number for number, film in found.items() if isinstance(film, str)} == {6}
    assert found[6] in ("too_large", "decode_failed", "decoder_crash")


def test_a_film_is_too_large_only_where_nothing_but_the_film_took_memory(tmp_path, monkeypatch):
    """A child may hold memory of earlier films: what does not fit there is tried once more, alone."""
    write_film(tmp_path / "large", np.tile(film(300, 300), (16, 16)), EXPLICIT)
    start, alone = decoding._Crew._start, []

    def noted(crew, is_alone):
        alone.append(is_alone)
        return start(crew, is_alone)

    monkeypatch.setattr(decoding._Crew, "_start", noted)
    monkeypatch.setattr(decoding, "LIMIT_BYTES", 32 * 2**20)
    assert outcomes(index_of(tmp_path).rows(named=True), tmp_path, workers=1) == {0: "too_large"}
    assert alone == [False, True]


def test_children_that_are_killed_lose_no_film(archive):
    """As a system short of memory does it; the film that a child had is tried once more, alone."""
    folder, rows = archive
    every = rows * 5
    found = {}
    for count, (number, outcome) in enumerate(radiographs(every, {"archive": folder}, SIZE, 2)):
        assert number not in found
        found[number] = outcome
        if count % 15 == 0:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
    assert len(found) == 100
    assert not [outcome for outcome in found.values() if isinstance(outcome, Refused)]


def test_rows_are_taken_as_children_are_free(archive):
    folder, rows = archive
    taken = []
    films = radiographs((taken.append(row) or row for row in itertools.cycle(rows)), {"archive": folder}, SIZE, 2)
    for _ in range(40):
        next(films)
    films.close()
    assert len(taken) <= 40 + 2 * 4 + 1
    assert not multiprocessing.active_children()


def test_children_that_cannot_start_are_a_fault_of_the_machine(archive, monkeypatch):
    folder, rows = archive
    monkeypatch.setattr(decoding, "_serve", os.abort)  # which takes no arguments
    with pytest.raises(MachineError):
        outcomes(rows, folder)


def test_children_end_with_a_parent_that_is_killed(archive):
    folder, _ = archive
    script = f"""
import itertools, multiprocessing, sys
sys.path[:0] = {[str(Path(__file__).parent)]}
from pathlib import Path
from test_codecs import index_of
from cohort_scorer.imaging.decoding import radiographs
rows = index_of(Path({str(folder)!r})).rows(named=True)
for _ in radiographs(itertools.cycle(rows), {{"archive": Path({str(folder)!r})}}, 48, 2):
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [int(pid) for line in itertools.islice(parent.stdout, 30) for pid in line.split()]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
