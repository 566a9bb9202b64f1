"""[tables.map] of the study file: columns, codes, missing values and units as people have them, made those of a schema.

Columns that a map does not name stay as they are; those that it takes values from are gone. Nothing is guessed: a code
that no map names stays, and is refused where the schema refuses it. Knows neither schema nor study.
"""

import difflib
import string
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict, model_validator

from cohort_scorer.errors import InputTableError

MISSING = ("", "NA", "N/A", "NaN", "NULL", ".")
"""What R, Stata, SAS, pandas and SQL write where a value is missing."""

UNITS = {
    "cm": {"cm": 1.0, "m": 100.0, "mm": 0.1, "in": 2.54},
    "kg": {"kg": 1.0, "g": 0.001, "lb": 0.45359237},
    "years": {"years": 1.0, "months": 1 / 12, "days": 1 / 365.25},
}
"""Units that a column may be given in, by the unit that its schema asks for, and what one of them is in that."""

_ROW = "\0row"  # Not a name that a table can have.
_SOURCES = ("column", "template", "origin", "latest")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True, coerce_numbers_to_str=True)


class Column(_Part):
    """Where the values of one column come from; of column, template, origin and latest, exactly one is given.

    Attributes:
        column: A column of theirs, or several: the first that is not missing counts.
        template: Text with their columns in braces; `{a:2}` stands for the first two characters of a.
        origin: Day 0 of tables that count days: the date is origin + the columns `plus` - the columns `minus`.
        plus: Columns of whole days.
        minus: Columns of whole days.
        latest: Dates of which the latest counts, over all rows of a patient.
        pattern: A regular expression; what its first group matches is the value.
        values: Their code, and what it becomes; other codes stay.
        missing: What stands for a missing value in this column.
        format: How dates are written, in the words of strptime, for example `%d/%m/%Y`.
        unit: What the numbers are measured in, where the schema asks for another unit.
        where: For wide events: the row has the event where this column holds one of `equals`.
        equals: Values of the column `where`.
    """

    column: str | list[str] = ""
    template: str = ""
    origin: date | None = None
    plus: list[str] = []
    minus: list[str] = []
    latest: list["Column"] = []
    pattern: str = ""
    values: dict[str, str] = {}
    missing: list[str] = []
    format: str = ""
    unit: str = ""
    where: str = ""
    equals: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, given: Any) -> Any:
        return {"column": given} if isinstance(given, str | list) else given

    @model_validator(mode="after")
    def _one_source(self) -> "Column":
        given = [name for name in _SOURCES if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"expected one of {', '.join(_SOURCES)}")
        if bool(self.origin) != bool(self.plus or self.minus):
            raise ValueError("expected origin together with plus or minus")
        if self.template and not _is_template(self.template):
            raise ValueError("expected a template with columns in braces, as {a} or {a:2}")
        if bool(self.where) != bool(self.equals):
            raise ValueError("expected where together with equals")
        if self.pattern and _n_groups(self.pattern) != 1:
            raise ValueError("expected a pattern with one group in parentheses")
        return self


def _n_groups(pattern: str) -> int:
    try:
        found = pl.Series([""]).str.extract_groups(pattern)
    except pl.exceptions.ComputeError:
        return 0
    return len(found.struct.fields)


def _is_template(text: str) -> bool:
    try:
        fields = [(name, width) for _, name, width, _ in string.Formatter().parse(text) if name is not None]
    except ValueError:
        return False
    return bool(fields) and all(name and (not width or width.isdecimal()) for name, width in fields)


class TableMap(_Part):
    """The map of one table.

    Attributes:
        columns: The schema's column, or a covariate's new name, and where its values come from.
        missing: What stands for a missing value in every column that the map names.
        wide: For events: an event type, and the column that holds its date; empty where it did not happen.
        distinct: Keep the columns named here alone, and equal rows once: for tables with a row per film.
    """

    columns: dict[str, Column] = {}
    missing: list[str] = []
    wide: dict[str, Column] = {}
    distinct: bool = False

    @model_validator(mode="before")
    @classmethod
    def _columns_are_named_in_place(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "columns" in given:
            return given
        own = {name: value for name, value in given.items() if name in ("missing", "wide", "distinct")}
        return {**own, "columns": {name: value for name, value in given.items() if name not in own}}


def apply(frame: pl.DataFrame, given: TableMap, units: Mapping[str, str], table: str) -> tuple[pl.DataFrame, pl.Series]:
    """Make a table as people have it one of the columns that its schema names.

    Args:
        frame: Text columns (from CSV) or typed ones.
        given: The map.
        units: The unit that the schema asks for, of the columns that have one.
        table: What messages call the table.

    Returns:
        The table, its mapped columns as text for the schema to judge, and for each row the row that it came from
        (1 is the first below the header).

    Raises:
        InputTableError: a column that the map names is absent, or values do not match a pattern.
    """
    _require(frame, given, table)
    frame = frame.with_row_index(_ROW, offset=1).with_columns(pl.col(_ROW).cast(pl.Int64))
    texts = {
        column: _Values(frame, source, given.missing, units.get(column, ""), column, table).text()
        for column, source in given.columns.items()
        if not source.latest
    }
    used = {name for source in _sources(given) for name in _columns(source)}
    others = [name for name in frame.columns if name not in used | texts.keys() | {_ROW}]
    kept = [_ROW] if given.distinct or given.wide else [_ROW, *others]
    mapped = frame.select(*kept, *(series.alias(column) for column, series in texts.items()))
    for column, source in given.columns.items():
        if source.latest:
            mapped = _latest(frame, mapped, source, given.missing, column, table)
    if given.wide:
        mapped = _long(frame, mapped, given, table)
    if given.distinct or given.wide:
        mapped = mapped.unique(mapped.drop(_ROW).columns, keep="first", maintain_order=True)
    return mapped.drop(_ROW), mapped[_ROW]


def _sources(given: TableMap) -> list[Column]:
    found = []
    for source in [*given.columns.values(), *given.wide.values()]:
        found += [source, *source.latest]
    return found


def _columns(source: Column) -> list[str]:
    """Their columns that a source names."""
    named = [source.column] if isinstance(source.column, str) else source.column
    braces = [field for _, field, _, _ in string.Formatter().parse(source.template) if field is not None]
    return [column for column in (*named, *braces, *source.plus, *source.minus, source.where) if column]


def _require(frame: pl.DataFrame, given: TableMap, table: str) -> None:
    wanted = dict.fromkeys(column for source in _sources(given) for column in _columns(source))
    absent = [column for column in wanted if column not in frame.columns]
    if absent:
        # Without a header line the first patient stands where names should: only names close to the map's are told.
        nearest = difflib.get_close_matches(absent[0], frame.columns, n=1, cutoff=0.75)
        raise InputTableError(
            f"{table}: {len(absent):,} of {len(wanted):,} columns that the map names are missing: {', '.join(absent)}.",
            f"Expected them in the header line; found {len(frame.columns):,} columns with other names.",
            f"Did you mean {nearest[0]}?"
            if nearest
            else "Correct [tables.map], or export the table with these columns.",
        )


class _Values:
    """The values of one mapped column, as text."""

    def __init__(
        self, frame: pl.DataFrame, source: Column, missing: Sequence[str], unit: str, column: str, table: str
    ) -> None:
        self._frame, self._source, self._table, self._column = frame, source, table, column
        self._missing = [*MISSING, *missing, *source.missing]
        self._factor = UNITS[unit][source.unit] if source.unit else 1.0

    def text(self) -> pl.Series:
        source = self._source
        if source.origin:
            return self._counted()
        if source.template:
            text = self._filled()
        else:
            names = [source.column] if isinstance(source.column, str) else source.column
            text = self._frame.select(pl.coalesce(self._plain(name) for name in names)).to_series()
        if source.pattern:
            text = self._matched(text)
        if source.values:
            text = text.replace(source.values)
        if source.format:
            days = text.str.to_date(source.format, strict=False).dt.strftime("%Y-%m-%d")
            text = days.zip_with(days.is_not_null(), text)
        if source.unit:
            numbers = (text.cast(pl.Float64, strict=False) * self._factor).cast(pl.String)
            text = numbers.zip_with(numbers.is_not_null(), text)
        return text

    def rows(self) -> pl.Series:
        """Whether the row has the event, where the source says where."""
        if not self._source.where:
            return self.text().is_not_null()
        held = self._frame.select(self._plain(self._source.where)).to_series()
        return held.is_in(self._source.equals).fill_null(False)

    def _plain(self, name: str) -> pl.Expr:
        column, dtype = pl.col(name), self._frame.schema[name]
        if dtype.is_float():  # 1.0 is the code 1 of a column with gaps.
            whole = column.cast(pl.Int64, strict=False)
            column = pl.when(column == whole).then(whole.cast(pl.String)).otherwise(column.cast(pl.String))
        elif isinstance(dtype, pl.Datetime):
            # The day of an instant depends on the zone: it stays an instant, and is refused where a day is asked for.
            column = column.dt.strftime("%Y-%m-%d %H:%M:%S%z" if dtype.time_zone else "%Y-%m-%d")
        elif dtype != pl.String:
            column = column.cast(pl.String)
        return column.str.strip_chars().replace(self._missing, None)

    def _filled(self) -> pl.Series:
        parts: list[pl.Expr] = []
        for before, name, width, _ in string.Formatter().parse(self._source.template):
            parts.append(pl.lit(before))
            if name is not None:
                parts.append(self._plain(name).str.head(int(width)) if width else self._plain(name))
        return self._frame.select(pl.concat_str(parts)).to_series()

    def _matched(self, text: pl.Series) -> pl.Series:
        found = text.str.extract(self._source.pattern)
        n_unmatched = int((text.is_not_null() & found.is_null()).sum())
        if n_unmatched:
            raise InputTableError(
                f"{self._table}: {n_unmatched:,} of {len(text):,} rows do not match the pattern of {self._column}.",
                f"Expected {self._source.pattern} in the column that the map names; found other text.",
                "Correct the pattern in [tables.map], or the extract.",
            )
        return found

    def _counted(self) -> pl.Series:
        """A day counted from the origin; what is no whole number of days stays text, for the schema to refuse."""
        source = self._source
        counts = {name: self._plain(name) for name in (*source.plus, *source.minus)}
        numbers = {name: text.cast(pl.Float64, strict=False) for name, text in counts.items()}
        days = pl.sum_horizontal(
            *(numbers[name] for name in source.plus), *(-numbers[name] for name in source.minus), ignore_nulls=False
        )
        whole = days == days.round()
        day = (pl.lit(source.origin) + pl.duration(days=days.cast(pl.Int64, strict=False))).dt.strftime("%Y-%m-%d")
        known = pl.all_horizontal(text.is_not_null() for text in counts.values())
        text = pl.when(known & whole.fill_null(False)).then(day).when(known).then(pl.concat_str(counts.values()))
        return self._frame.select(text).to_series()


def _latest(
    frame: pl.DataFrame,
    mapped: pl.DataFrame,
    source: Column,
    missing: Sequence[str],
    column: str,
    table: str,
) -> pl.DataFrame:
    """The latest of several dates over all rows of a patient; what is no date keeps its row, to be refused."""
    texts = [_Values(frame, one, missing, "", column, table).text() for one in source.latest]
    long = pl.concat(mapped.with_columns(text.alias(column)) for text in texts)
    is_date = pl.col(column).str.to_date("%Y-%m-%d", strict=False).is_not_null()
    faulty = long.filter(pl.col(column).is_not_null() & ~is_date)
    # One that is no date may have been the latest: the patient's other dates do not stand in for it.
    dated = long.join(faulty, on="patient_id", how="anti").sort(column, descending=True, nulls_last=True)
    return pl.concat([dated.unique("patient_id", keep="first", maintain_order=True), faulty]).sort(_ROW)


def _long(frame: pl.DataFrame, mapped: pl.DataFrame, given: TableMap, table: str) -> pl.DataFrame:
    """One row for every event that a wide row holds."""
    parts = []
    for event_type, source in given.wide.items():
        values = _Values(frame, source, given.missing, "", "event_date", table)
        dated = mapped.with_columns(pl.lit(event_type).alias("event_type"), values.text().alias("event_date"))
        parts.append(dated.filter(values.rows()))
    return pl.concat(parts).sort(_ROW, maintain_order=True)
