"""An archive grows, shrinks and changes; its index follows, opens no file twice, and a shard stays what it was."""

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest
from films import film, write_film

from cohort_scorer import storage
from cohort_scorer import study as study_file
from cohort_scorer.errors import StudyFileError
from cohort_scorer.imaging import header, index, ledger
from cohort_scorer.provenance import Step
from cohort_scorer.stages import Machine, Silent
from cohort_scorer.stages.index import index as index_step

FACTS = ("n_new", "n_changed", "n_removed", "n_opened")


class Archive:
    """A study with an archive of tiny films."""

    opened: ClassVar[list[str]] = []

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "archive"
        self.root.mkdir(parents=True)
        self.settings("")

    def settings(self, more: str, root: str = '"archive"') -> None:
        text = f'[study]\ntitle = "t"\n[archive]\nroot = {root}\nmaximum_refused_percent = 100\n{more}\n'
        (self.folder / "study.toml").write_text(text)

    def add(self, *names: str, seed: int = 0, **attributes: Any) -> None:
        for name in names:
            facts = {"SOPInstanceUID": f"1.2.3.{int.from_bytes(name.encode())}"} | attributes
            write_film(self.root / name, film(8, 8, seed=seed), **facts)

    def index(self) -> dict[str, int]:
        """Run the step; returns how many files were new, changed, removed and opened."""
        study = study_file.load(self.folder)
        self.opened.clear()
        index_step(study, Machine(workers=1), Silent())
        facts = json.loads(Step(study, "index").path.read_text())["facts"]
        assert facts["n_files"] == len(self.rows()) + len(self.refusals())
        assert facts["n_opened"] == len(self.opened)
        return {name: facts[name] for name in FACTS}

    def parts(self) -> list[pl.DataFrame]:
        return [pl.read_parquet(path) for path in sorted(self.folder.glob("outputs/patient_level/index/part-*"))]

    def rows(self) -> pl.DataFrame:
        found = pl.concat(self.parts()).sort("root", "uri")
        assert not found.select("root", "uri").is_duplicated().any()
        return found

    def shards(self) -> dict[str, str]:
        return dict(self.rows().select("uri", "shard").iter_rows())

    def refusals(self) -> pl.DataFrame:
        paths = sorted(self.folder.glob("outputs/patient_level/refusals/index-*"))
        return pl.concat([pl.read_parquet(path) for path in paths])

    def reasons(self) -> dict[str, str]:
        return dict(self.refusals().select("uri", "reason").iter_rows())

    def written(self) -> dict[str, tuple[int, int]]:
        """Every file of patient_level: which it is and when it was written."""
        paths = sorted((self.folder / "outputs/patient_level").rglob("*"))
        return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of four files and shards of two rows; files that are opened are noted."""
    monkeypatch.setattr(index, "PART_FILES", 4)
    monkeypatch.setattr(index, "_BATCH_FILES", 3)
    monkeypatch.setattr(ledger, "_SHARD_ROWS", 2)
    read = header.read

    def noted(path: Path) -> Any:
        Archive.opened.append(path.name)
        return read(path)

    monkeypatch.setattr(header, "read", noted)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "study")


def test_parts_and_shards_are_ranges_of_the_files_as_they_came(archive: Archive) -> None:
    archive.add(*"abcdef")
    (archive.root / "c").write_text("no film")
    assert archive.index() == dict(zip(FACTS, (6, 0, 0, 6), strict=True))
    assert [part["uri"].to_list() for part in archive.parts()] == [["a", "b", "d"], ["e", "f"]]
    assert archive.shards() == {
        "a": "00000-00000",
        "b": "00000-00000",
        "d": "00000-00002",
        "e": "00001-00000",
        "f": "00001-00000",
    }
    assert archive.reasons() == {"c": "not_dicom"}


def test_an_unchanged_archive_is_not_opened_and_nothing_is_written(archive: Archive) -> None:
    archive.add(*"abcdef")
    archive.add("g", "h", SOPInstanceUID="1.2.9")
    (archive.root / "text").write_text("no film")
    os.mkfifo(archive.root / "pipe")
    archive.index()
    before = archive.written()
    assert archive.index() == dict(zip(FACTS, (0, 0, 0, 0), strict=True))
    assert archive.written() == before


def test_a_growing_archive_keeps_its_parts(archive: Archive) -> None:
    archive.add(*"bcdfg")
    archive.index()
    before = archive.written()
    shards = archive.shards()
    archive.add("a", "e")
    assert archive.index() == dict(zip(FACTS, (2, 0, 0, 2), strict=True))
    assert archive.opened == ["a", "e"]
    assert archive.shards() == shards | {"a": "00002-00000", "e": "00002-00000"}
    parts = {path: stamp for path, stamp in before.items() if "part-" in path}
    assert parts.items() <= archive.written().items()


def test_removed_and_changed_files_leave_their_part_and_the_others_keep_their_shard(archive: Archive) -> None:
    archive.add(*"abcdef")
    archive.index()
    shards = archive.shards()
    (archive.root / "b").unlink()
    archive.add("e", seed=1, PatientID="another")
    assert archive.index() == dict(zip(FACTS, (0, 1, 1, 1), strict=True))
    assert [part["uri"].to_list() for part in archive.parts()] == [["a", "c", "d"], ["f"], ["e"]]
    del shards["b"]
    assert archive.shards() == shards | {"e": "00002-00000"}
    assert archive.rows().filter(pl.col("uri") == "e")["patient_id"].item() == "another"


def test_the_number_of_a_part_is_not_given_again_when_all_its_rows_are_gone(archive: Archive) -> None:
    archive.add(*"abcdef")
    archive.index()
    for name in "ef":
        (archive.root / name).unlink()
    archive.index()
    archive.add("g")
    archive.index()
    assert archive.shards()["g"] == "00002-00000"


def test_a_refused_file_that_goes_or_becomes_a_film_is_no_longer_refused(archive: Archive) -> None:
    archive.add("a")
    for name in "bc":
        (archive.root / name).write_text("no film")
    archive.index()
    (archive.root / "b").unlink()
    archive.add("c")
    assert archive.index() == dict(zip(FACTS, (0, 1, 1, 1), strict=True))
    assert archive.reasons() == {}
    assert set(archive.shards()) == {"a", "c"}


def test_a_film_replaced_by_a_pipe_and_a_pipe_by_a_film_change_sides(archive: Archive) -> None:
    archive.add("a", "b")
    os.mkfifo(archive.root / "c")
    archive.index()
    (archive.root / "b").unlink()
    (archive.root / "c").unlink()
    os.mkfifo(archive.root / "b")
    archive.add("c")
    assert archive.index() == dict(zip(FACTS, (0, 2, 0, 1), strict=True))
    assert archive.reasons() == {"b": "not_a_file"}
    assert set(archive.shards()) == {"a", "c"}


def test_a_duplicate_leaves_its_part_and_comes_back_in_a_new_shard(archive: Archive) -> None:
    archive.add("b", "c", SOPInstanceUID="1.2.9")
    archive.add("d")
    archive.index()
    assert archive.reasons() == {"c": "duplicate"}
    archive.add("a", SOPInstanceUID="1.2.9")
    archive.index()
    assert archive.reasons() == {"b": "duplicate", "c": "duplicate"}
    (archive.root / "a").unlink()
    assert archive.index() == dict(zip(FACTS, (0, 0, 1, 0), strict=True))
    assert archive.reasons() == {"c": "duplicate"}
    assert archive.shards() == {"b": "00002-00000", "d": "00000-00002"}
    before = archive.written()
    archive.index()
    assert archive.written() == before


def test_a_file_that_stays_unreadable_is_tried_again_and_makes_no_parts(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.add("a", "b")
    read = header.read

    def locked(path: Path) -> Any:
        if path.name == "b":
            archive.opened.append("b")
            raise index.Refused("unreadable_file", "PermissionError")
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(header, "read", locked)
        archive.index()
        assert archive.index() == dict(zip(FACTS, (0, 0, 0, 1), strict=True))
        assert len(archive.parts()) == 1
    assert archive.index() == dict(zip(FACTS, (0, 0, 0, 1), strict=True))
    assert archive.reasons() == {}


def test_other_rules_judge_the_rows_again_and_open_no_file(archive: Archive) -> None:
    archive.add(*"abcd")
    archive.add(*"efg", ViewPosition="AP")
    archive.add("h", "i", SOPInstanceUID="1.2.9", ViewPosition="AP")
    archive.index()
    shards = archive.shards()
    archive.settings('views = ["AP"]')
    assert archive.index() == dict(zip(FACTS, (0, 0, 0, 0), strict=True))
    assert archive.shards() == shards
    judged = archive.rows()
    assert judged.filter("eligible")["uri"].to_list() == ["e", "f", "g", "h"]
    shutil.rmtree(archive.folder / "outputs")
    archive.index()
    assert archive.rows().equals(judged)
    (archive.root / "h").unlink()
    archive.settings('views = ["PA"]')
    archive.index()
    assert archive.rows().filter(pl.col("uri") == "i")["reason"].to_list() == ["view"]


def test_rules_that_were_not_judged_to_the_end_are_judged_again(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.add(*"abcdef")
    archive.index()
    before = archive.rows()
    archive.settings('views = ["AP"]')
    with monkeypatch.context() as patched:
        stop_writing(patched, lambda path: path.name == "part-00001.parquet")
        with pytest.raises(KeyboardInterrupt):
            archive.index()
    archive.settings("")
    assert archive.index()["n_opened"] == 0
    assert archive.rows().equals(before)


def test_another_listing_reads_all_files_again_and_takes_up_no_number(archive: Archive) -> None:
    archive.add(*"abcdef")
    archive.index()
    (archive.folder / "listing.csv").write_text("uri,patient_id\na,1\nb,2\n")
    archive.settings('listing = "listing.csv"')
    assert archive.index()["n_opened"] == 2
    assert archive.shards() == {"a": "00002-00000", "b": "00002-00000"}
    assert archive.rows()["patient_id"].to_list() == ["1", "2"]


def test_another_root_keeps_the_rows_of_those_that_stay(archive: Archive) -> None:
    archive.add(*"abc")
    archive.index()
    shards = archive.shards()
    shutil.copytree(archive.root, archive.folder / "more")
    archive.settings("", root='["archive", "more"]')
    assert archive.index() == dict(zip(FACTS, (3, 0, 0, 3), strict=True))
    assert archive.shards() == shards
    assert archive.refusals().select("root", "reason").unique().row(0) == ("more", "duplicate")
    archive.settings("", root='"more"')
    assert archive.index() == dict(zip(FACTS, (0, 0, 3, 0), strict=True))
    assert archive.rows()["root"].unique().to_list() == ["more"]


@pytest.mark.parametrize("other", ['"archive/below"', '"archive/"', '"link"', '"."', '"archive/../archive"'])
def test_roots_that_hold_one_another_are_refused(archive: Archive, other: str) -> None:
    archive.add("a")
    (archive.root / "below").mkdir()
    (archive.folder / "link").symlink_to("archive/below")
    archive.settings("", root=f'["archive", {other}]')
    with pytest.raises(StudyFileError, match="hold one another"):
        archive.index()


def test_roots_side_by_side_and_links_to_roots_are_fine(archive: Archive) -> None:
    archive.add("a")
    shutil.move(archive.root, archive.folder / "elsewhere")
    archive.root.symlink_to("elsewhere")
    (archive.folder / "archive2").mkdir()
    archive.settings("", root='["archive", "archive2"]')
    archive.index()
    assert set(archive.shards()) == {"a"}


def test_a_broken_link_is_refused_though_another_root_has_a_file_of_its_name(archive: Archive) -> None:
    archive.add("a")
    (archive.folder / "more").mkdir()
    (archive.folder / "more" / "a").symlink_to("nowhere")
    archive.settings("", root='["archive", "more"]')
    archive.index()
    assert archive.reasons() == {"a": "missing_file"}


def test_a_file_replaced_while_it_is_indexed_is_read_again(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.add("a", "b")
    read = header.read

    def replaced(path: Path) -> Any:
        if path.name == "a" and not archive.opened:
            archive.add("b", seed=1, PatientID="another one")
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(header, "read", replaced)
        archive.index()
    assert archive.index() == dict(zip(FACTS, (0, 1, 0, 1), strict=True))
    row = archive.rows().filter(pl.col("uri") == "b").row(0, named=True)
    assert row["patient_id"] == "another one"
    assert row["file_mtime_ns"] == (archive.root / "b").stat().st_mtime_ns


def stop_writing(monkeypatch: pytest.MonkeyPatch, when: Callable[[Path], bool]) -> None:
    """Stop where a table is about to be written."""
    original = storage.write_parquet

    def stopped(frame: pl.DataFrame, path: Path) -> None:
        if when(path):
            raise KeyboardInterrupt
        original(frame, path)

    monkeypatch.setattr(storage, "write_parquet", stopped)


def changed_archive(folder: Path) -> Archive:
    """Indexed once; then files come, go and change, an image comes back, and another becomes a duplicate."""
    archive = Archive(folder)
    archive.add(*"abcdefghi")
    archive.add("j", "k", SOPInstanceUID="1.2.9")
    (archive.root / "l").write_text("no film")
    archive.index()
    for name in "bj":
        (archive.root / name).unlink()
    archive.add("c", seed=1)
    archive.add("m", "n", "o", "p", "q")
    archive.add("r", SOPInstanceUID=f"1.2.3.{ord('d')}")
    (archive.root / "s").write_text("no film")
    return archive


def test_wherever_a_run_is_stopped_the_next_ends_with_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before its first write, its second, and so on, until it comes to its end."""
    whole = changed_archive(tmp_path / "whole")
    whole.index()
    for n_written in itertools.count():
        archive = changed_archive(tmp_path / str(n_written))
        standing = archive.shards()
        with monkeypatch.context() as patched:
            written = itertools.count()
            stop_writing(patched, lambda _, written=written, last=n_written: next(written) == last)
            try:
                archive.index()
                break
            except KeyboardInterrupt:
                pass
        archive.index()
        columns = ["uri", "image_id", "patient_id", "eligible"]
        assert archive.rows().select(columns).equals(whole.rows().select(columns))
        assert archive.reasons() == whole.reasons()
        kept = archive.shards()
        assert all(kept[name] == shard for name, shard in standing.items() if name in "aefghi")
        assert not {kept[name] for name in "ckmnopq"} & set(standing.values())
        before = archive.written()
        assert archive.index()["n_opened"] == 0
        assert archive.written() == before
    assert n_written >= 8
