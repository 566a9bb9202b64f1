"""A file under its final name is whole or not there; tables are read as they were written."""

import os
from collections.abc import Callable
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from cohort_scorer import storage
from cohort_scorer.errors import InputTableError, MachineError

TABLE = pl.DataFrame({"name": ["a", "b"], "value": [0.1, 1 / 3]})


class _StoppedError(Exception):
    pass


@pytest.mark.parametrize("stop", [_StoppedError, KeyboardInterrupt, MemoryError])
def test_a_writer_that_stops_leaves_the_old_file_and_nothing_else(tmp_path: Path, stop: type[BaseException]) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")

    def half(file: object) -> None:
        file.write(b"ha")  # type: ignore[attr-defined]
        raise stop

    with pytest.raises(stop):
        storage._atomically(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_refuses_at_the_last_moment_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        storage.write_parquet(TABLE, tmp_path / "new/table.parquet")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    "write",
    [
        lambda path: storage.write_csv(TABLE, path),
        lambda path: storage.write_parquet(TABLE, path),
        lambda path: storage.write_text("text", path),
        lambda path: storage.write_bytes(b"bytes", path),
    ],
)
def test_a_new_file_replaces_the_old_one_and_can_be_read_by_others(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "deep/er/file"
    write(path)
    write(path)
    assert [found.name for found in path.parent.iterdir()] == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_csv_is_utf8_with_iso_dates_and_full_precision(tmp_path: Path) -> None:
    frame = pl.DataFrame({"where": ["Köln", None], "day": [date(2020, 1, 2), None], "x": [1 / 3, None]})
    storage.write_csv(frame, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_bytes() == f"where,day,x\nKöln,2020-01-02,{1 / 3!r}\n,,\n".encode()


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_text_that_a_spreadsheet_would_run_is_escaped(tmp_path: Path, start: str) -> None:
    frame = pl.DataFrame({"text": [f"{start}cmd()", "plain", f"a{start}b"], "number": [-1.0, 0.0, 1.0]})
    storage.write_csv(frame, tmp_path / "t.csv")
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines[1:] == [f"'{start}cmd(),-1.0", "plain,0.0", f"a{start}b,1.0"]


def test_commas_quotes_and_line_breaks_in_cells_come_back(tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": ['a,"b"', "two\nlines", " spaces ", "0012"]})
    storage.write_csv(frame, tmp_path / "t.csv")
    assert storage.read_table(tmp_path / "t.csv").equals(frame)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_separators_line_ends_and_byte_order_marks_are_recognised(
    tmp_path: Path, separator: str, line_end: str, mark: bytes
) -> None:
    text = (
        line_end.join(separator.join(row) for row in (("id", "x", "y"), ("007", " 1", ""), ("8", "2", "c"))) + line_end
    )
    path = tmp_path / "T.CSV"
    path.write_bytes(mark + text.encode())
    read = storage.read_table(path)
    assert read.rows() == [("007", " 1", None), ("8", "2", "c")]
    assert read.schema == {"id": pl.String(), "x": pl.String(), "y": pl.String()}


def test_columns_without_a_name_are_left_out_and_names_are_stripped(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('"", id ,x,,\n1,a,b,,\n')
    assert storage.read_table(tmp_path / "t.csv").to_dict(as_series=False) == {"id": ["a"], "x": ["b"]}


def test_a_name_that_polars_might_give_is_an_ordinary_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x_duplicated_0,y\n1,2\n")
    assert storage.read_table(tmp_path / "t.csv").columns == ["x_duplicated_0", "y"]


def test_only_a_header_is_a_table_of_no_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b")
    assert storage.read_table(tmp_path / "t.csv").shape == (0, 2)


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("t.csv", b"", "the table is empty"),
        ("t.csv", b"\xef\xbb\xbf\n", "the table is empty"),
        ("t.csv", b"a,b,a\n1,2,3\n", "found again: column 3"),
        ("t.csv", b"a,b, a\n1,2,3\n", "found again: column 3"),
        ("t.csv", b"a,b\n1,2,3\n", "more cells than the header"),
        ("t.csv", b"gr\xf6\xdfe,b\n1,2\n", "another encoding"),
        ("t.csv", b"a,b\nK\xf6ln,2\n", "another encoding"),
        ("t.parquet", b"", "cannot be read"),
        ("t.parquet", b"a,b\n1,2\n", "a Parquet file"),
        ("t.xlsx", b"PK", "the ending .xlsx"),
        ("t", b"a,b\n", "the ending (none)"),
    ],
)
def test_what_is_no_table_is_told(tmp_path: Path, name: str, data: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputTableError) as caught:
        storage.read_table(tmp_path / name)
    assert told in str(caught.value)


def test_an_absent_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputTableError, match="does not exist"):
        storage.read_table(tmp_path / "t.csv")


def test_parts_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    assert storage.read_parts(tmp_path) is None
    for number in (1, 0):
        storage.write_parquet(pl.DataFrame({"n": [number]}), tmp_path / f"part-{number:05}.parquet")
    found = storage.read_parts(tmp_path)
    assert found is not None
    assert found["n"].to_list() == [0, 1]


def test_a_damaged_part_is_told(tmp_path: Path) -> None:
    (tmp_path / "part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(MachineError, match=r"part-00000.parquet is damaged"):
        storage.read_parts(tmp_path)


def test_a_lock_is_held_by_one_and_given_back(tmp_path: Path) -> None:
    with (
        storage.lock(tmp_path / "outputs"),
        pytest.raises(MachineError, match="locked"),
        storage.lock(tmp_path / "outputs"),
    ):
        pass
    with storage.lock(tmp_path / "outputs"):
        pass
