"""Tables against data_schemas/: types, every rule, keys, and what becomes of extra columns."""

import json
from datetime import date, datetime
from pathlib import Path

import polars as pl
import pytest

from cohort_scorer import schemas
from cohort_scorer.errors import InputTableError

RULES = {"required", "minimum", "maximum", "enum", "pattern", "unique"}


def text(**columns: list[str | None]) -> pl.DataFrame:
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))


def cacs(**columns: list[str | None]) -> pl.DataFrame:
    return text(**({"patient_id": ["1"], "ct_date": ["2020-01-01"], "cacs": ["0"]} | columns))


def broken(frame: pl.DataFrame, name: str = "cacs") -> list[tuple[int, str, str]]:
    return schemas.check(frame, name, f"{name}.csv").refused.select("row", "column", "rule").rows()


# The files


@pytest.mark.parametrize("name", schemas.names())
def test_every_schema_describes_every_column_and_uses_known_rules(name: str) -> None:
    schema = schemas.load(name)
    assert schema["name"] == name
    assert schema["title"]
    assert schema["description"]
    columns = [field["name"] for field in schema["fields"]]
    assert len(set(columns)) == len(columns)
    for field in schema["fields"]:
        assert field["description"].endswith("."), field["name"]
        assert set(field.get("constraints", {})) <= RULES, field["name"]
    for keys in [schema.get("primaryKey", []), *schema.get("uniqueKeys", [])]:
        assert set(keys) <= set(columns)


def test_columns_have_polars_types() -> None:
    assert schemas.columns("cacs") == {"patient_id": pl.String(), "ct_date": pl.Date(), "cacs": pl.Float64()}


def test_categories_are_ordered() -> None:
    assert schemas.vocabulary("cohort", "true_category") == ("CAC 0", "CAC 1-99", "CAC 100-399", "CAC 400+")
    with pytest.raises(KeyError):
        schemas.vocabulary("cohort", "no_such_column")


def test_the_columns_of_the_contract_are_the_schemas() -> None:
    """contract.md, `Tables in`; * is required."""
    contract = {
        "listing": ["uri*", "patient_id*", "study_id", "study_date", "view", "site"],
        "cacs": ["patient_id*", "ct_date*", "cacs*"],
        "follow_up": ["patient_id*", "last_contact_date*"],
        "events": ["patient_id*", "event_type*", "event_date*"],
        "clinical": ["patient_id*", "sex", "birth_date", "age_years", "bmi", "height_cm", "weight_kg", "site"],
    }
    for name, wanted in contract.items():
        found = [
            field["name"] + "*" * bool(field.get("constraints", {}).get("required"))
            for field in schemas.load(name)["fields"]
        ]
        assert found == wanted, name
    required = [f["name"] for f in schemas.load("scores")["fields"] if f.get("constraints", {}).get("required")]
    assert required == ["patient_id", "study_date", "score_origin"]


# Types


def test_a_good_row_is_typed() -> None:
    checked = schemas.check(cacs(patient_id=[" 007 "], cacs=["12.5"]), "cacs", "cacs.csv")
    assert checked.refused.is_empty()
    assert checked.accepted.rows() == [("007", date(2020, 1, 1), 12.5)]
    assert checked.accepted.schema == schemas.columns("cacs")


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("cacs", "1,5", "must be a number with a decimal point"),
        ("cacs", "nan", "must be a number with a decimal point"),
        ("cacs", "inf", "must be a number with a decimal point"),
        ("cacs", "1 234", "must be a number with a decimal point"),
        ("cacs", "-0.1", "must be at least 0"),
        ("cacs", "1e9", "must be at most 50000"),
        ("cacs", "", "must not be empty"),
        ("cacs", "  ", "must not be empty"),
        ("patient_id", None, "must not be empty"),
        ("ct_date", "01/02/2020", "must be a date as YYYY-MM-DD"),
        ("ct_date", "2020-02-30", "must be a date as YYYY-MM-DD"),
        ("ct_date", "2020-01-01 00:00", "must be a date as YYYY-MM-DD"),
        ("ct_date", "2020-01-01T00:00:00Z", "must be a date as YYYY-MM-DD"),
        ("ct_date", "43831", "must be a date as YYYY-MM-DD"),
        ("ct_date", "1899-12-31", "must be at least 1900-01-01"),
    ],
)
def test_a_value_against_the_rules_is_refused(column: str, value: str | None, rule: str) -> None:
    assert broken(cacs(**{column: [value]})) == [(1, column, rule)]


@pytest.mark.parametrize("value", ["0", "0.0", "50000", "1e2", " 3 "])
def test_numbers_at_the_bounds_are_accepted(value: str) -> None:
    assert broken(cacs(cacs=[value])) == []


def test_an_enum_is_closed_and_null_is_allowed() -> None:
    frame = text(patient_id=["1", "2", "3"], sex=["F", "f", None])
    assert broken(frame, "clinical") == [(2, "sex", "must be one of F, M")]


def test_several_faults_of_a_row_are_each_told_and_the_row_comes_with_them() -> None:
    refused = schemas.check(cacs(ct_date=["x"], cacs=["-1"]), "cacs", "cacs.csv").refused
    assert refused.select("table", "row", "column").rows() == [("cacs.csv", 1, "cacs"), ("cacs.csv", 1, "ct_date")]
    assert refused["value_ct_date"].to_list() == ["x", "x"]


@pytest.mark.parametrize(
    ("series", "accepted"),
    [
        (pl.Series("ct_date", [date(2020, 1, 1)]), True),
        (pl.Series("ct_date", [datetime(2020, 1, 1)]), True),
        (pl.Series("ct_date", [datetime(2020, 1, 1)]).dt.replace_time_zone("Asia/Seoul"), False),
        (pl.Series("ct_date", [18262]), False),
        (pl.Series("cacs", [3]), True),
        (pl.Series("cacs", [3.5], dtype=pl.Float32), True),
        (pl.Series("cacs", [[1.0]]), False),
        (pl.Series("cacs", [date(2020, 1, 1)]), False),
        (pl.Series("patient_id", [7]), True),
        (pl.Series("patient_id", [7.0]), False),
        (pl.Series("patient_id", ["7"], dtype=pl.Categorical), True),
        (pl.Series("patient_id", [b"7"]), False),
        (pl.Series("patient_id", [{"id": "7"}]), False),
    ],
)
def test_types_of_parquet_are_taken_where_they_mean_the_same(series: pl.Series, accepted: bool) -> None:
    checked = schemas.check(cacs().with_columns(series), "cacs", "cacs.parquet")
    assert (len(checked.accepted) == 1) is accepted
    assert (series.name in checked.refused["column"]) is not accepted


# Keys


def test_rows_that_share_a_primary_key_are_all_refused() -> None:
    frame = text(patient_id=["1", "2", " 1"], sex=["F", "F", "F"])
    assert broken(frame, "clinical") == [
        (1, "patient_id", "must be unique (patient_id)"),
        (3, "patient_id", "must be unique (patient_id)"),
    ]


def test_equal_rows_of_a_unique_key_count_once_and_contradicting_ones_are_refused() -> None:
    frame = text(
        patient_id=["1", "1", "2", "2", "3"],
        ct_date=["2020-01-01"] * 5,
        cacs=["5", "5.0", "1", "2", "9"],
        extra=["a", "b", "c", "d", "e"],
    )
    checked = schemas.check(frame, "cacs", "cacs.csv")
    assert checked.accepted["patient_id"].to_list() == ["1", "3"]
    assert checked.refused["row"].to_list() == [3, 4]


# Columns


def test_absent_optional_columns_become_nulls_of_their_type() -> None:
    accepted = schemas.check(text(patient_id=["1"]), "clinical", "clinical.csv").accepted
    assert accepted.schema == schemas.columns("clinical")
    assert accepted.row(0) == ("1", *[None] * 7)


def test_extra_columns_follow_with_the_type_that_their_text_means() -> None:
    frame = text(
        patient_id=["1", "2"],
        number=["1", "-2.5e1"],
        flag=["TRUE", "false"],
        code=["01", "02"],
        word=["a", "1"],
        day=["2020-01-01", "2020-01-02"],
        nothing=[None, None],
        gaps=["1", None],
    )
    accepted = schemas.check(frame, "clinical", "clinical.csv").accepted
    assert accepted.columns[8:] == ["number", "flag", "code", "word", "day", "nothing", "gaps"]
    assert accepted["number"].to_list() == [1.0, -25.0]
    assert accepted["flag"].to_list() == [True, False]
    assert accepted["code"].to_list() == ["01", "02"]
    assert accepted.schema["word"] == accepted.schema["day"] == accepted.schema["nothing"] == pl.String()
    assert accepted["gaps"].to_list() == [1.0, None]


def test_a_missing_required_column_is_told_with_the_nearest_name() -> None:
    with pytest.raises(InputTableError) as caught:
        schemas.check(text(Patient_ID=["1"], ct_date=["x"], CAC=["0"]), "cacs", "cacs.csv")
    message = str(caught.value)
    assert "2 of 3 required columns are missing: patient_id, cacs" in message
    assert "Rename Patient_ID to patient_id. Rename CAC to cacs." in message


def test_a_row_in_the_place_of_the_header_is_not_told() -> None:
    with pytest.raises(InputTableError) as caught:
        schemas.check(text(**{"patient_17": ["a"], "Jane Doe": ["b"], "12.5": ["c"]}), "cacs", "cacs.csv")
    message = str(caught.value)
    assert not [secret for secret in ("patient_17", "Jane", "12.5") if secret in message]
    assert "names of the columns into the first line" in message


def test_conform_orders_types_and_fills() -> None:
    frame = pl.DataFrame({"extra": [1], "cacs": [3], "patient_id": ["1"]})
    found = schemas.conform(frame, "cacs")
    assert found.columns == ["patient_id", "ct_date", "cacs", "extra"]
    assert found.row(0) == ("1", None, 3.0, 1)


# Reading


def written(folder: Path, rows: str) -> Path:
    path = folder / "cacs.csv"
    path.write_text("patient_id,ct_date,cacs\n" + rows)
    return path


def test_read_stops_and_tells_without_any_value(tmp_path: Path) -> None:
    path = written(tmp_path, "secret-1,2020-01-01,1\nsecret-2,yesterday,2\nsecret-3,2020-01-01,-3\n")
    with pytest.raises(InputTableError) as caught:
        schemas.read(path, "cacs", "stop", tmp_path / "patient_level")
    what, expected, advice = str(caught.value).splitlines()
    assert what == "cacs.csv: 2 of 3 rows are refused."
    assert expected.startswith("Expected: ")
    assert 'faulty_rows = "drop"' in advice
    assert "patient_level/refused_cacs.parquet" in advice
    assert "secret" not in str(caught.value)
    assert "yesterday" not in str(caught.value)
    kept = pl.read_parquet(tmp_path / "patient_level/refused_cacs.parquet")
    assert kept["value_patient_id"].to_list() == ["secret-2", "secret-3"]
    assert schemas.count_refused("cacs", tmp_path / "patient_level") == 2


def test_read_drops_and_keeps_what_it_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "1,2020-01-01,1\n2,yesterday,2\n")
    assert schemas.read(path, "cacs", "drop", tmp_path)["patient_id"].to_list() == ["1"]
    assert (tmp_path / "refused_cacs.parquet").is_file()
    written(tmp_path, "1,2020-01-01,1\n")
    assert len(schemas.read(path, "cacs", "drop", tmp_path)) == 1
    assert not (tmp_path / "refused_cacs.parquet").exists()
    assert schemas.count_refused("cacs", tmp_path) == 0


def test_the_data_package_names_every_schema() -> None:
    package = schemas._folder() / "datapackage.json"
    if not package.is_file():
        pytest.skip("no datapackage.json yet")
    named = {resource["schema"] for resource in json.loads(package.read_text())["resources"]}
    assert {f"{name}.json" for name in schemas.names()} == named
