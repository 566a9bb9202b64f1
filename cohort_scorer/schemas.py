"""The tables of the tool, as data_schemas/*.json declare them (Frictionless Table Schema).

Columns, units, closed vocabularies and rules live in those files alone; this module reads them and holds any table
against them, vectorised. It knows no study.
"""

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from cohort_scorer import storage, table_map
from cohort_scorer.errors import InputTableError
from cohort_scorer.table_map import MISSING, TableMap

_TYPES: dict[str, pl.DataType] = {
    "string": pl.String(),
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "boolean": pl.Boolean(),
    "date": pl.Date(),
    "datetime": pl.Datetime("us"),
}
_HEADERLESS = "Write the names of the columns into the first line."
_EXPECTED = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number with a decimal point",
    "boolean": "true or false",
    "date": "a date as YYYY-MM-DD",
}


ALL = "all"
"""In a column `site` or `score_origin`: the rows of all of them together."""


@dataclass(frozen=True)
class Checked:
    """A table held against its schema.

    Attributes:
        accepted: Typed rows. The columns that the schema names, absent optional ones as nulls, then the extra ones.
        refused: One row per fault: table, row (1 is the first below the header), column, rule, then the row as it came.
    """

    accepted: pl.DataFrame
    refused: pl.DataFrame


def _folder() -> Path:
    """data_schemas/ lies inside an installed package, and beside it in a checkout."""
    here = Path(__file__).parent
    inside = here / "data_schemas"
    return inside if inside.is_dir() else here.parent / "data_schemas"


def names() -> tuple[str, ...]:
    """The names of all tables, in alphabetical order."""
    return tuple(sorted(path.stem for path in _folder().glob("*.json") if path.stem != "datapackage"))


@cache
def load(name: str) -> dict[str, Any]:
    """The schema of one table, as its JSON file says it."""
    schema: dict[str, Any] = json.loads((_folder() / f"{name}.json").read_text(encoding="utf-8"))
    return schema


def columns(name: str) -> dict[str, pl.DataType]:
    """Column names and polars types of a table, in order."""
    return {field["name"]: _TYPES[field["type"]] for field in load(name)["fields"]}


def vocabulary(name: str, column: str) -> tuple[str, ...]:
    """The closed, ordered list of values that a text column may hold."""
    for field in load(name)["fields"]:
        if field["name"] == column:
            return tuple(field["constraints"]["enum"])
    raise KeyError(f"{name} has no column {column}")


def conform(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """Put a computed table into its schema's columns, order and types; absent columns become nulls, others follow."""
    wanted = columns(name)
    others = [column for column in frame.columns if column not in wanted]
    typed = [
        (pl.col(column) if column in frame.columns else pl.lit(None)).cast(dtype).alias(column)
        for column, dtype in wanted.items()
    ]
    return frame.select(*typed, *others)


def units(name: str) -> dict[str, str]:
    """The unit of the columns of a table that have one."""
    return {field["name"]: field["unit"] for field in load(name)["fields"] if "unit" in field}


def check(frame: pl.DataFrame, name: str, table: str, rows: pl.Series | None = None) -> Checked:
    """Hold a table against its schema.

    Args:
        frame: Text columns (from CSV) or typed ones (from Parquet).
        name: The schema's name.
        table: What messages call the table, for example `cacs.csv`.
        rows: The row of the file that each row comes from, where a map has made others of them.

    Raises:
        InputTableError: a required column is absent.
    """
    schema = load(name)
    _require_columns(frame, schema, table)
    frame = frame.with_columns(
        pl.col(pl.String).str.strip_chars().replace(list(MISSING), None), pl.col(pl.Float32, pl.Float64).fill_nan(None)
    )
    faults: list[tuple[str, str, pl.Expr]] = []
    typed: dict[str, pl.Expr] = {}
    for field in schema["fields"]:
        column = field["name"]
        if column not in frame.columns:
            typed[column] = pl.lit(None, _TYPES[field["type"]])
            continue
        value = _cast(frame[column], field["type"])
        typed[column] = value
        rule = f"must be {_EXPECTED[field['type']]}"
        faults.append((column, rule, pl.col(column).is_not_null() & value.is_null()))
        faults += [(column, rule, fault) for rule, fault in _constraints(column, value, field)]
    extras = [_inferred(frame[column]) for column in frame.columns if column not in typed]
    accepted = frame.select(expression.alias(column) for column, expression in typed.items()).with_columns(*extras)
    found = [(column, rule, frame.select(fault.fill_null(False)).to_series()) for column, rule, fault in faults]
    found += _uniqueness(accepted, schema, [column for column in typed if column in frame.columns])
    accepted = accepted.filter(~pl.any_horizontal(pl.lit(False), *(fault for _, _, fault in found)))
    for keys in schema.get("uniqueKeys", []):
        accepted = accepted.unique(subset=keys, keep="first", maintain_order=True)
    return Checked(accepted, _refused(frame, found, table, rows))


def read(path: Path, name: str, faulty_rows: str, patient_level: Path, given: TableMap | None = None) -> pl.DataFrame:
    """Read an input table and hold it, or what its map makes of it, against its schema.

    Args:
        path: The .csv or .parquet file.
        name: The schema's name.
        faulty_rows: `stop` raises on the first refused row; `drop` goes on without them.
        patient_level: The folder that receives refused_<name>.parquet, with every refused row, its column and rule.
        given: Its map, where the study file has one.

    Raises:
        InputTableError: the table cannot be read, lacks a column, or has refused rows under `stop`.
    """
    frame, rows = storage.read_table(path), None
    if given:
        frame, rows = table_map.apply(frame, given, units(name), path.name)
    checked = check(frame, name, path.name, rows)
    kept = patient_level / f"refused_{name}.parquet"
    if checked.refused.is_empty():
        kept.unlink(missing_ok=True)
        return checked.accepted
    storage.write_parquet(checked.refused, kept)
    if faulty_rows == "stop":
        raise InputTableError(*refusal_lines(checked, path.name, f"{patient_level.name}/{kept.name}"))
    return checked.accepted


def count_refused(name: str, patient_level: Path) -> int:
    """How many rows of an input table the last `read` refused."""
    kept = patient_level / f"refused_{name}.parquet"
    return pl.read_parquet(kept, columns=["row"])["row"].n_unique() if kept.is_file() else 0


def refusal_lines(checked: Checked, table: str, kept: str) -> tuple[str, str, str]:
    """The three lines that tell which rows of a table were refused, without any row's value."""
    refused = checked.refused
    n_rows = refused["row"].n_unique()
    counts = (
        refused.group_by("column", "rule").agg(pl.len().alias("n"), pl.col("row").min()).sort("n", "column", "rule")
    )
    worst = counts.row(-1, named=True)
    others = f", and other rules are broken too ({len(counts) - 1})" if len(counts) > 1 else ""
    return (
        f"{table}: {n_rows:,} of {len(checked.accepted) + n_rows:,} rows are refused.",
        f"Expected: {worst['column']} {worst['rule']}; found {worst['n']:,} rows that break this, "
        f"the first is row {worst['row']:,}{others}.",
        f'Correct the extract, or set faulty_rows = "drop"; every refused row is in {kept}.',
    )


def _require_columns(frame: pl.DataFrame, schema: dict[str, Any], table: str) -> None:
    declared = [field["name"] for field in schema["fields"]]
    required = [field["name"] for field in schema["fields"] if field.get("constraints", {}).get("required")]
    missing = [name for name in required if name not in frame.columns]
    if not missing:
        return
    # Without a header line the first patient stands where names should: only names that the schema knows are told.
    known = [name for name in frame.columns if name in declared]
    others = [name for name in frame.columns if name not in declared]
    found = ", ".join(known) or "none of them"
    raise InputTableError(
        f"{table}: {len(missing)} of {len(required)} required columns are missing: {', '.join(missing)}.",
        f"Expected columns as `cohort-scorer schema {schema['name']}` lists them; "
        f"found {found} and {len(others)} with other names.",
        " ".join(_mending(name, others) for name in missing) if known else _HEADERLESS,
    )


def _mending(name: str, others: list[str]) -> str:
    spoken = {other.casefold(): other for other in others if not any(map(str.isdigit, other))}
    nearest = difflib.get_close_matches(name, spoken, n=1, cutoff=0.75)
    return f"Rename {spoken[nearest[0]]} to {name}." if nearest else f"Add the column {name}."


def _cast(series: pl.Series, kind: str) -> pl.Expr:
    column = pl.col(series.name)
    dtype = series.dtype
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
        return pl.lit(None, _TYPES[kind])
    if kind == "string":
        # 123.0 is not the 123 that it once was: a column of numbers with a point is no text.
        return pl.lit(None, pl.String) if dtype.is_float() else column.cast(pl.String).str.strip_chars()
    if kind == "date":
        if dtype == pl.String:
            return column.str.to_date("%Y-%m-%d", strict=False)
        plain = dtype == pl.Date or (isinstance(dtype, pl.Datetime) and dtype.time_zone is None)
        return column.cast(pl.Date) if plain else pl.lit(None, pl.Date)
    if kind == "boolean":
        if dtype == pl.Boolean:
            return column
        return (
            column.cast(pl.String)
            .str.to_lowercase()
            .replace_strict(
                {"true": True, "1": True, "false": False, "0": False}, default=None, return_dtype=pl.Boolean
            )
        )
    if dtype.is_temporal():
        return pl.lit(None, _TYPES[kind])
    number = column.cast(pl.Float64, strict=False)
    number = pl.when(number.is_finite()).then(number)
    if kind == "integer":
        return pl.when(number == number.round()).then(number).cast(pl.Int64, strict=False)
    return number


def _constraints(column: str, value: pl.Expr, field: dict[str, Any]) -> Iterator[tuple[str, pl.Expr]]:
    rules = field.get("constraints", {})
    dtype = _TYPES[field["type"]]
    if rules.get("required"):
        yield "must not be empty", pl.col(column).is_null()
    if "minimum" in rules:
        yield f"must be at least {rules['minimum']}", value < _limit(rules["minimum"], dtype)
    if "maximum" in rules:
        yield f"must be at most {rules['maximum']}", value > _limit(rules["maximum"], dtype)
    if "enum" in rules:
        yield f"must be one of {', '.join(map(str, rules['enum']))}", ~value.is_in(rules["enum"])
    if "pattern" in rules:
        yield f"must match {rules['pattern']}", ~value.str.contains(f"^(?:{rules['pattern']})$")


def _limit(bound: Any, dtype: pl.DataType) -> pl.Expr:
    return pl.lit(date.fromisoformat(bound)) if dtype == pl.Date else pl.lit(bound).cast(dtype)


def _uniqueness(
    accepted: pl.DataFrame, schema: dict[str, Any], known: list[str]
) -> Iterator[tuple[str, str, pl.Series]]:
    """Rows that share a primaryKey, or a uniqueKey while differing in another column that the schema names."""
    for keys in [schema["primaryKey"]] if "primaryKey" in schema else []:
        shared = pl.struct(keys).is_duplicated() & pl.all_horizontal(pl.col(keys).is_not_null())
        yield keys[0], f"must be unique ({' + '.join(keys)})", accepted.select(shared).to_series()
    for keys in schema.get("uniqueKeys", []):
        differing = pl.struct(known).n_unique().over(keys) > 1
        rule = f"must not contradict another row of the same {' + '.join(keys)}"
        yield next(column for column in known if column not in keys), rule, accepted.select(differing).to_series()


def _inferred(series: pl.Series) -> pl.Series:
    """An extra column may be a covariate: text of numbers or of true/false becomes so, codes with zeros stay."""
    if series.dtype.is_float():
        return series.set(~series.is_finite(), None)
    if series.dtype != pl.String or series.null_count() == len(series):
        return series
    values = series.drop_nulls()
    if values.str.to_lowercase().is_in(["true", "false"]).all():
        return series.str.to_lowercase() == "true"
    if values.str.contains(r"^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$").all():
        return series.cast(pl.Float64)
    return series


def _refused(
    frame: pl.DataFrame, faults: list[tuple[str, str, pl.Series]], table: str, numbers: pl.Series | None
) -> pl.DataFrame:
    plain = [
        name for name, dtype in frame.schema.items() if not dtype.is_nested() and dtype not in (pl.Binary, pl.Object)
    ]
    rows = frame.select(pl.col(plain).cast(pl.String).name.prefix("value_")).with_row_index("row", offset=1)
    if numbers is not None:
        rows = rows.with_columns(numbers.alias("row"))
    found = [
        rows.filter(fault).select(
            pl.lit(table).alias("table"),
            pl.col("row").cast(pl.Int64),
            pl.lit(column).alias("column"),
            pl.lit(rule).alias("rule"),
            pl.exclude("row"),
        )
        for column, rule, fault in faults
    ]
    return pl.concat(found).sort("row", "column", "rule")
