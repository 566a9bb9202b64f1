"""Kept images are those that decoding makes, for as long as their files do not change."""

import os

import numpy as np
import polars as pl
import pytest
from films import JPEG_LS, film, write_film
from test_codecs import index_of

from cohort_scorer.errors import MachineError
from cohort_scorer.imaging import cache, decoding
from cohort_scorer.imaging.radiograph import Radiograph
from cohort_scorer.imaging.refusal import Refused

SIZE = 32


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """Nine films and one that cannot be decoded, in parts of four."""
    folder = tmp_path / "archive"
    folder.mkdir()
    for number in range(9):
        write_film(folder / f"{number}", film(60 + number, 50, seed=number))
    broken = write_film(folder / "broken", film(), JPEG_LS)
    broken.write_bytes(broken.read_bytes()[:-400])
    monkeypatch.setattr(cache, "_PART_BYTES", 4 * SIZE * SIZE * 2)
    return folder


def images(folder, kept, rows=None):
    rows = index_of(folder) if rows is None else rows
    found = dict(cache.radiographs(rows, {"archive": folder}, SIZE, 2, kept))
    assert sorted(found) == list(range(len(rows)))
    return found


def decoded(monkeypatch) -> list[str]:
    """The uris that are decoded from now on."""
    seen: list[str] = []
    original = decoding.radiographs

    def noted(rows, *others):
        rows = list(rows)
        seen.extend(row["uri"] for row in rows)
        return original(rows, *others)

    monkeypatch.setattr(decoding, "radiographs", noted)
    return seen


def test_a_film_is_decoded_once_and_its_image_is_the_same(archive, tmp_path, monkeypatch):
    plain = dict(decoding.radiographs(index_of(archive).iter_rows(named=True), {"archive": archive}, SIZE, 2))
    first = images(archive, tmp_path / "kept")
    seen = decoded(monkeypatch)
    second = images(archive, tmp_path / "kept")
    assert seen == ["broken"]
    for number, film_ in plain.items():
        for found in (first[number], second[number]):
            if isinstance(film_, Refused):
                assert found.reason == film_.reason
            else:
                assert np.array_equal(found.image, film_.image)
                assert (found.pixel_sha256, found.quality) == (film_.pixel_sha256, film_.quality)
    assert len(list((tmp_path / "kept").glob("*.npy"))) == 3


def test_a_film_that_changed_is_decoded_again(archive, tmp_path, monkeypatch):
    images(archive, tmp_path / "kept")
    write_film(archive / "3", film(40, 40, seed=99))
    os.utime(archive / "5", ns=(1, 1))
    seen = decoded(monkeypatch)
    found = images(archive, tmp_path / "kept")
    assert sorted(seen) == ["3", "5", "broken"]
    assert found[3].quality["aspect"] == 1.0


def test_what_was_made_is_kept_when_a_run_is_stopped(archive, tmp_path, monkeypatch):
    rows = index_of(archive)
    films = cache.radiographs(rows, {"archive": archive}, SIZE, 1, tmp_path / "kept")
    made = [next(films)[0] for _ in range(6)]
    films.close()
    seen = decoded(monkeypatch)
    images(archive, tmp_path / "kept")
    assert not {rows["uri"][number] for number in made if rows["uri"][number] != "broken"} & set(seen)


def test_rows_in_another_order_get_their_own_images(archive, tmp_path):
    plain = images(archive, tmp_path / "kept")
    rows = index_of(archive)
    turned = images(archive, tmp_path / "kept", rows.reverse())
    for number, found in turned.items():
        if isinstance(found, Radiograph):
            assert np.array_equal(found.image, plain[len(rows) - 1 - number].image)


def test_a_damaged_folder_is_told(archive, tmp_path):
    images(archive, tmp_path / "kept")
    part = next((tmp_path / "kept").glob("*.npy"))
    part.write_bytes(b"nothing")
    with pytest.raises(MachineError):
        images(archive, tmp_path / "kept")
    part.unlink()
    with pytest.raises(MachineError):
        images(archive, tmp_path / "kept")


def test_two_runs_that_kept_the_same_film_count_it_once(archive, tmp_path):
    images(archive, tmp_path / "kept")
    part = next((tmp_path / "kept").glob("*.parquet"))
    pl.read_parquet(part).write_parquet(part.with_name("part-other.parquet"))
    images(archive, tmp_path / "kept")
