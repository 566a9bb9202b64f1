"""Reading and writing of tables and files. A file under its final name is whole, or it is not there.

Knows no schema and no study.
"""

import gzip
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import filelock
import numpy as np
import polars as pl
from numpy.typing import NDArray

from cohort_scorer.errors import InputTableError, MachineError

_HALF_WRITTEN = ".half"
_START_SECONDS = 10  # that a job waits for others that start beside it


def read_table(path: Path) -> pl.DataFrame:
    """Read a .csv (every column as text, outer spaces kept), or a .parquet or .dta (their own types).

    A .csv may be compressed (.csv.gz). Of a .dta the codes are read, not their labels. Comma, semicolon and tab are
    recognised from the header line; a byte order mark is allowed. Column names lose outer spaces; columns without a
    name (row numbers, trailing separators of a spreadsheet) are left out.

    Raises:
        InputTableError: the file is absent, empty, not UTF-8, not a table, or names two columns alike.
    """
    name = path.name
    kind = path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if kind not in (".csv", ".parquet", ".dta"):
        raise InputTableError(
            f"{name}: the table has the ending {path.suffix or '(none)'}.",
            "Expected .csv, .parquet or .dta.",
            "Save the table in one of these formats.",
        )
    if not path.is_file():
        raise InputTableError(
            f"{name}: the table does not exist.",
            "Expected a .csv, .parquet or .dta file where study.toml says it is; found none.",
            "Correct its path under [tables] or [archive] listing, or put the file there.",
        )
    if kind == ".parquet":
        try:
            return pl.read_parquet(path)
        except pl.exceptions.PolarsError as fault:
            raise _unreadable(name, "a Parquet file; found something else") from fault
    return _plainly_named(_read_dta(path) if kind == ".dta" else _read_csv(path), name)


def _read_dta(path: Path) -> pl.DataFrame:
    try:
        import pyreadstat
    except ModuleNotFoundError as fault:
        raise MachineError(
            f"{path.name}: tables of Stata need the package pyreadstat, which is not installed.",
            "Expected the extra `stata` of cohort-scorer; found the tool without it.",
            "Install cohort-scorer[stata], or export the table as CSV (UTF-8) or Parquet.",
        ) from fault
    try:
        frame, _ = pyreadstat.read_dta(path, output_format="polars")
    except pyreadstat.ReadstatError as fault:
        raise _unreadable(path.name, "a .dta file of Stata; found something else") from fault
    return frame


def _read_csv(path: Path) -> pl.DataFrame:
    try:
        with _opened(path) as file:
            header = file.readline().removeprefix(b"\xef\xbb\xbf")
    except (gzip.BadGzipFile, EOFError, zlib.error) as fault:
        raise _unreadable(path.name, "a whole gzip file; found something else") from fault
    if not header.strip():
        raise InputTableError(
            f"{path.name}: the table is empty.", "Expected a header line; found none.", "Export the table again."
        )
    # A spreadsheet on an old Macintosh ends lines in a carriage return alone.
    line_end = "\r" if b"\r" in header.strip() and b"\n" not in header else "\n"
    header = header.split(line_end.encode())[0]
    separator = max((b",", b";", b"\t"), key=header.count).decode()
    try:
        header.decode()
        return pl.read_csv(path, separator=separator, infer_schema=False, encoding="utf8", eol_char=line_end)
    except pl.exceptions.NoDataError:
        return pl.read_csv(path, separator=separator, infer_schema=False, raise_if_empty=False)
    except (UnicodeDecodeError, pl.exceptions.PolarsError, OSError) as fault:
        found = "rows with more cells than the header" if _is_utf8(path) else "another encoding"
        raise _unreadable(path.name, f"UTF-8 text with one header line and its columns; found {found}") from fault


def _opened(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _is_utf8(path: Path) -> bool:
    try:
        with _opened(path) as file:
            file.read().decode()
    except (UnicodeDecodeError, OSError, EOFError, zlib.error):
        return False
    return True


def _plainly_named(frame: pl.DataFrame, table: str) -> pl.DataFrame:
    """Columns under their names without outer spaces; those without a name are left out."""
    renamed = re.compile(r"(.*)_duplicated_\d+", re.DOTALL)  # What polars makes of a name that occurs again.
    names = []
    for column in frame.columns:
        again = renamed.fullmatch(column)
        names.append((again[1] if again and again[1] in frame.columns else column).strip())
    twice = [str(place) for place, name in enumerate(names, start=1) if name and name in names[: place - 1]]
    if twice:
        raise InputTableError(
            f"{table}: {len(twice):,} of {len(names):,} columns have the name of another.",
            f"Expected every column name once; found again: column {', '.join(twice[:12])}.",
            "Rename or drop these columns.",
        )
    return frame.select(pl.col(column).alias(name) for column, name in zip(frame.columns, names, strict=True) if name)


def _unreadable(name: str, expected: str) -> InputTableError:
    return InputTableError(
        f"{name}: the table cannot be read.", f"Expected {expected}.", "Export it again as CSV (UTF-8) or Parquet."
    )


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Write a table as Parquet under its final name in one step."""
    _atomically(path, lambda file: frame.write_parquet(file, compression="zstd"))


def write_csv(frame: pl.DataFrame, path: Path) -> None:
    """Write a table as CSV: UTF-8, ISO dates, full precision; text that a spreadsheet would run is escaped."""
    escaped = frame.with_columns(pl.col(pl.String).str.replace(r"^([=+\-@])", "'$1"))
    _atomically(path, lambda file: escaped.write_csv(file))


def write_text(text: str, path: Path) -> None:
    """Write UTF-8 text under its final name in one step."""
    write_bytes(text.encode(), path)


def write_bytes(data: bytes, path: Path, private: bool = False) -> None:
    """Write bytes under their final name in one step; private ones can be read by their owner alone."""
    _atomically(path, lambda file: file.write(data), private)


def write_array(array: NDArray[Any], path: Path) -> None:
    """Write an array as .npy under its final name in one step."""
    _atomically(path, lambda file: np.save(file, array))


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _atomically(path: Path, write: Callable[[IO[bytes]], object], private: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=_HALF_WRITTEN)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if not private:
            Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def reserve(path: Path, size: int) -> None:
    """Make sure that the disk has room for a file that will be memory-mapped: a full disk kills whoever writes to it.

    Raises:
        MachineError: it has not.
    """
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise MachineError(
            f"The disk has no room for {path.name}.",
            f"Expected {size / 1e6:,.0f} MB; found {free / 1e6:,.0f} MB free.",
            "Free space, or name another [study] output.",
        )


def read_own(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    """Read a Parquet file that an earlier step wrote, or some columns of it.

    Raises:
        MachineError: the file is damaged.
    """
    try:
        return pl.read_parquet(path, columns=columns)
    except pl.exceptions.PolarsError as fault:
        raise MachineError(
            f"{path.parent.name}/{path.name} is damaged.",
            "Expected the Parquet file that an earlier step wrote; found something else.",
            "Look after the disk, remove the file, and run the step that writes it again.",
        ) from fault


def read_parts(folder: Path, columns: list[str] | None = None) -> pl.DataFrame | None:
    """All part-*.parquet of a folder in the order of their names, or None where there is none.

    Raises:
        MachineError: one of them is damaged.
    """
    parts = sorted(folder.glob("part-*.parquet"))
    return pl.concat([read_own(part, columns) for part in parts], how="vertical") if parts else None


@contextmanager
def lock(output: Path, shares: Sequence[str] = ()) -> Iterator[None]:
    """Hold the study: two runs that write the same folder would mix their results.

    Args:
        output: The folder that is written.
        shares: Names of the shares that this run writes, where several write their own side by side; each is held
            once, and nobody holds the study while a share is held.

    Raises:
        MachineError: another run holds it, or this share of it.
    """
    output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with ExitStack() as briefly:
            # Jobs that start at the same moment pass here one after the other.
            (briefly if shares else held).enter_context(_held(output / ".lock", _START_SECONDS if shares else 0))
            for path in [output / f".lock-{share}" for share in shares] or output.glob(".lock-*"):
                (held if shares else briefly).enter_context(_held(path, 0))
            if not shares:
                # Nobody else writes now: these were left by runs that were killed.
                for path in output.rglob(f".*{_HALF_WRITTEN}"):
                    path.unlink()
        yield


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Do what one of several jobs does for all: the others wait until it is done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path):
        yield


@contextmanager
def _held(path: Path, timeout: float) -> Iterator[None]:
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=timeout)
    except filelock.Timeout as fault:
        raise MachineError(
            "The study is locked: another run is writing its outputs.",
            "Expected one run at a time for each output folder, or jobs with different --shard or --folds; found 2.",
            "Wait for the other run to end, or stop it.",
        ) from fault
    try:
        yield
    finally:
        lock.release()
