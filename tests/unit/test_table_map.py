"""A map makes tables of a schema of those that people have, and what it does not understand is refused, not guessed."""

from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyreadstat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cohort_scorer import schemas, storage
from cohort_scorer import study as study_file
from cohort_scorer.errors import InputTableError, StudyFileError
from cohort_scorer.table_map import TableMap


def read(tmp_path: Path, text: str, name: str, mapping: dict[str, Any], faulty_rows: str = "stop") -> pl.DataFrame:
    (tmp_path / "theirs.csv").write_text(text)
    return schemas.read(tmp_path / "theirs.csv", name, faulty_rows, tmp_path / "out", TableMap.model_validate(mapping))


CLINICAL = """\
MRN,gender,dob,height,weight,smk,site
007,1,03/02/1950,70,154.32,Y,North
8,2,29/02/1960,-9,150,N,South
9,,31/12/1970,65,-9,,South
"""


def test_names_codes_dates_units_and_missing_values(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        CLINICAL,
        "clinical",
        {
            "missing": ["-9"],
            "patient_id": "MRN",
            "sex": {"column": "gender", "values": {"1": "M", "2": "F"}},
            "birth_date": {"column": "dob", "format": "%d/%m/%Y"},
            "height_cm": {"column": "height", "unit": "in"},
            "weight_kg": {"column": "weight", "unit": "lb"},
            "smoking": {"column": "smk", "values": {"Y": "true", "N": "false"}},
        },
    )
    assert found["patient_id"].to_list() == ["007", "8", "9"]
    assert found["sex"].to_list() == ["M", "F", None]
    assert found["birth_date"].to_list() == [date(1950, 2, 3), date(1960, 2, 29), date(1970, 12, 31)]
    assert found["height_cm"].to_list() == pytest.approx([177.8, None, 165.1])
    assert found["weight_kg"].to_list() == pytest.approx([154.32 * 0.45359237, 150 * 0.45359237, None])
    assert found["smoking"].to_list() == [True, False, None]
    assert found["site"].to_list() == ["North", "South", "South"]


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ("1,3,01/02/1950,70", "sex must be one of F, M"),
        ("1,1,1950.02.01,70", "birth_date must be a date"),
        ("1,1,30/02/1950,70", "birth_date must be a date"),
        ("1,1,01/02/1950,5 ft 10", "height_cm must be a number"),
    ],
)
def test_what_the_map_does_not_know_is_refused_under_the_row_of_the_file(tmp_path: Path, row: str, rule: str) -> None:
    mapping = {
        "patient_id": "id",
        "sex": {"column": "g", "values": {"1": "M", "2": "F"}},
        "birth_date": {"column": "b", "format": "%d/%m/%Y"},
        "height_cm": {"column": "h", "unit": "in"},
    }
    with pytest.raises(InputTableError) as refusal:
        read(tmp_path, f"id,g,b,h\n0,1,01/02/1950,70\n{row}\n", "clinical", mapping)
    assert rule in str(refusal.value)
    assert "row 2" in str(refusal.value)


WIDE = """\
id,death_date,mi,mi_date
1,2020-05-01,0,
2,,1,2019-01-02
3,2021-01-01,1,2020-12-31
4,,0,2018-01-01
3,2021-01-01,1,2020-12-31
"""


def test_wide_events_become_long_and_equal_rows_count_once(tmp_path: Path) -> None:
    mapping = {
        "patient_id": "id",
        "wide": {
            "death": "death_date",
            "myocardial_infarction": {"column": "mi_date", "where": "mi", "equals": ["1"]},
        },
    }
    assert read(tmp_path, WIDE, "events", mapping).rows() == [
        ("1", "death", date(2020, 5, 1)),
        ("2", "myocardial_infarction", date(2019, 1, 2)),
        ("3", "death", date(2021, 1, 1)),
        ("3", "myocardial_infarction", date(2020, 12, 31)),
    ]


def test_an_event_that_happened_on_no_day_is_refused(tmp_path: Path) -> None:
    mapping = {"patient_id": "id", "wide": {"mi": {"column": "mi_date", "where": "mi", "equals": ["1"]}}}
    with pytest.raises(InputTableError, match="event_date must not be empty"):
        read(tmp_path, "id,mi,mi_date\n1,0,\n2,1,\n", "events", mapping)


def test_days_are_counted_from_an_origin(tmp_path: Path) -> None:
    mapping = {
        "patient_id": "id",
        "ct_date": {"origin": date(2100, 1, 1), "plus": ["after"], "minus": ["before"]},
        "cacs": "score",
    }
    found = read(tmp_path, "id,after,before,score\n1,10.0,-2,5\n2,0,31,0\n", "cacs", mapping)
    assert found["ct_date"].to_list() == [date(2100, 1, 13), date(2099, 12, 1)]
    for text in ("1.5,0", "soon,0"):
        with pytest.raises(InputTableError, match="ct_date must be a date"):
            read(tmp_path, f"id,after,before,score\n1,{text},5\n", "cacs", mapping)


def test_the_latest_date_of_a_patient_counts_over_columns_and_rows(tmp_path: Path) -> None:
    mapping = {"distinct": True, "patient_id": "id", "last_contact_date": {"latest": ["visit", "death"]}}
    text = "id,visit,death\na,2020-01-01,\nb,2020-03-01,2020-02-01\na,2019-01-01,2020-06-01\nc,,\n"
    with pytest.raises(InputTableError, match="must not be empty"):
        read(tmp_path, text, "follow_up", mapping)
    found = read(tmp_path, text, "follow_up", mapping, "drop")
    assert found.sort("patient_id").rows() == [("a", date(2020, 6, 1)), ("b", date(2020, 3, 1))]
    with pytest.raises(InputTableError, match="must be a date"):
        read(tmp_path, "id,visit,death\na,2020-01-01,never\n", "follow_up", mapping)


def test_distinct_keeps_one_of_equal_rows_and_refuses_those_that_differ(tmp_path: Path) -> None:
    mapping = {"distinct": True, "patient_id": "id", "sex": "sex"}
    assert read(tmp_path, "id,film,sex\n1,a,F\n1,b,F\n2,c,M\n", "clinical", mapping)["sex"].to_list() == ["F", "M"]
    with pytest.raises(InputTableError, match="must be unique"):
        read(tmp_path, "id,film,sex\n1,a,F\n1,b,M\n", "clinical", mapping)


def test_a_pattern_that_does_not_match_stops_without_telling_the_value(tmp_path: Path) -> None:
    mapping = {"uri": "Path", "patient_id": {"column": "Path", "pattern": r"(patient\d+)"}}
    with pytest.raises(InputTableError) as refusal:
        read(tmp_path, "Path\na/patient1/x.png\na/somebody/x.png\n", "listing", mapping)
    assert "1 of 2 rows do not match the pattern of patient_id" in str(refusal.value)
    assert "somebody" not in str(refusal.value)


def test_an_absent_column_is_told_with_where_to_mend_it(tmp_path: Path) -> None:
    with pytest.raises(InputTableError) as refusal:
        read(tmp_path, "id,x\n1,2\n", "cacs", {"patient_id": "id", "ct_date": "date", "cacs": "score"})
    assert "2 of 3 columns that the map names are missing: date, score" in str(refusal.value)
    with pytest.raises(InputTableError, match=r"Did you mean agatston\?"):
        read(tmp_path, "id,ct,agatston\n1,2020-01-01,5\n", "cacs", {"ct_date": "ct", "cacs": "agaston"})


def test_days_of_timestamps_and_codes_that_are_numbers(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"id": [1, 2], "at": [datetime(2020, 5, 1, 23, 30), datetime(2020, 5, 2)], "dead": [1.0, None]}
    )
    frame.write_parquet(tmp_path / "t.parquet")
    wide = {"death": {"column": "at", "where": "dead", "equals": [1]}}
    mapping = TableMap.model_validate({"patient_id": "id", "wide": wide})
    assert schemas.read(tmp_path / "t.parquet", "events", "stop", tmp_path, mapping).rows() == [
        ("1", "death", date(2020, 5, 1))
    ]
    frame.with_columns(pl.col("at").dt.replace_time_zone("Asia/Seoul")).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputTableError, match="event_date must be a date"):
        schemas.read(tmp_path / "t.parquet", "events", "stop", tmp_path, mapping)
    text = "id,at,score\n1,01/05/2020 23:30,5\n"
    timed = {"patient_id": "id", "ct_date": {"column": "at", "format": "%d/%m/%Y %H:%M"}, "cacs": "score"}
    assert read(tmp_path, text, "cacs", timed)["ct_date"].to_list() == [date(2020, 5, 1)]


def test_tables_of_stata_and_compressed_ones(tmp_path: Path) -> None:
    frame = pl.DataFrame({"id": ["1", "02"], "sex": [1.0, 2.0], "born": [date(1950, 1, 1), None], "site": ["N", "S"]})
    pyreadstat.write_dta(frame, tmp_path / "theirs.dta", variable_value_labels={"sex": {1: "male", 2: "female"}})
    mapping = TableMap.model_validate(
        {"patient_id": "id", "birth_date": "born", "sex": {"column": "sex", "values": {"1": "M", "2": "F"}}}
    )
    found = schemas.read(tmp_path / "theirs.dta", "clinical", "stop", tmp_path, mapping)
    assert found.select("patient_id", "sex", "birth_date", "site").rows() == [
        ("1", "M", date(1950, 1, 1), "N"),
        ("02", "F", None, "S"),
    ]
    frame.drop("born").write_csv(tmp_path / "theirs.csv.gz", compression="gzip")
    assert storage.read_table(tmp_path / "theirs.csv.gz")["id"].to_list() == ["1", "02"]
    for name in ("rubbish.dta", "rubbish.csv.gz"):
        (tmp_path / name).write_bytes(b"no table at all\n")
        with pytest.raises(InputTableError, match="cannot be read"):
            storage.read_table(tmp_path / name)
    whole = (tmp_path / "theirs.csv.gz").read_bytes()
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputTableError, match="cannot be read"):
        storage.read_table(tmp_path / "cut.csv.gz")


@given(days=st.lists(st.integers(-40_000, 40_000), min_size=1, max_size=20), data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_renamed_shuffled_recoded_table_is_the_table(
    tmp_path_factory: pytest.TempPathFactory, days: list[int], data: st.DataObject
) -> None:
    """Columns renamed, sexes recoded and dates written another way are the table again, whatever the order of rows."""
    n = len(days)
    plain = pl.DataFrame(
        {
            "patient_id": [f"{i:03}" for i in range(n)],
            "sex": [("F", "M", None)[i % 3] for i in range(n)],
            "birth_date": [date(1970, 1, 1) + timedelta(days=day) for day in days],
            "height_cm": [float(150 + i) for i in range(n)],
        }
    )
    plain = plain.filter(pl.col("birth_date").is_between(date(1860, 1, 1), date(2020, 1, 1)))
    order = data.draw(st.permutations(range(len(plain))))
    theirs = plain.select(
        pl.col("birth_date").dt.strftime("%d.%m.%Y").alias("geboren"),
        pl.col("sex").replace({"F": "w", "M": "m"}).alias("geschlecht"),
        pl.col("patient_id").alias("nummer"),
        (pl.col("height_cm") / 100).alias("groesse"),
    )[list(order)]
    folder = tmp_path_factory.mktemp("map")
    theirs.write_csv(folder / "t.csv")
    mapping = TableMap.model_validate(
        {
            "patient_id": "nummer",
            "sex": {"column": "geschlecht", "values": {"w": "F", "m": "M"}},
            "birth_date": {"column": "geboren", "format": "%d.%m.%Y"},
            "height_cm": {"column": "groesse", "unit": "m"},
        }
    )
    found = schemas.read(folder / "t.csv", "clinical", "stop", folder, mapping).sort("patient_id")
    assert found.select("patient_id", "sex", "birth_date").equals(plain.drop("height_cm"))
    assert found["height_cm"].to_list() == pytest.approx(plain["height_cm"].to_list())


@pytest.mark.parametrize(
    ("mapping", "fault"),
    [
        ("[tables.map.cacs]\nscore = 'x'", "cacs has no column score"),
        ("[tables.map.cacs]\ncacs = { column = 'x', unit = 'cm' }", "none but its own"),
        ("[tables.map.clinical]\nheight_cm = { column = 'x', unit = 'ft' }", "cm, m, mm, in"),
        ("[tables.map.clinical]\nsex = { column = 'x', template = '{y}' }", "expected one of column, template"),
        (
            "[tables.map.clinical]\nsex = { column = 'x', vales = {} }",
            "[tables.map.clinical] sex: vales is unknown, did you mean values?",
        ),
        ("[tables.map.clinical]\nsex = { column = 'x', pattern = 'abc' }", "one group"),
        ("[tables.map.clinical]\nbirth_date = { origin = 2100-01-01 }", "plus or minus"),
        ("[tables.map.listing]\nuri = { template = 'p{id:x}.png' }", "a template with columns in braces"),
        ("[tables.map.listing]\nuri = { template = 'p{id.png' }", "a template with columns in braces"),
        ("[tables.map.listing]\nuri = { template = 'p.png' }", "a template with columns in braces"),
        ("[tables.map.clinical.wide]\ndeath = 'x'", "wide for events alone"),
        ("[tables.map.persons]\nsex = 'x'", "expected the map of listing, cacs"),
        ("[codes.mi]\nprefixes = []", "[codes.mi] prefixes"),
        ("[outcome]\ncomponents = 'mace2'", "mace3, mace4, mace5 or all_cause_death"),
    ],
)
def test_a_faulty_map_is_told_before_any_table_is_read(tmp_path: Path, mapping: str, fault: str) -> None:
    (tmp_path / "study.toml").write_text(f'[study]\ntitle = "x"\n{mapping}\n')
    with pytest.raises(StudyFileError) as refusal:
        study_file.load(tmp_path)
    assert fault in str(refusal.value)


def test_a_pattern_that_is_no_pattern_is_a_fault() -> None:
    with pytest.raises(ValidationError):
        TableMap.model_validate({"sex": {"column": "x", "pattern": "("}})
