"""A study whose tables are as other people have them gives, through a map, what it gives without."""

import json
from pathlib import Path

import polars as pl
import pytest
from studies import cli, copy, edit, substitute, told

MAP = """\
[tables.map.cacs]
patient_id = "MRN"
ct_date = { column = "scanned", format = "%d.%m.%Y" }
cacs = { column = "agatston", missing = ["-1"] }
[tables.map.clinical]
patient_id = "MRN"
sex = { column = "gender", values = { 1 = "M", 2 = "F" } }
birth_date = { column = "dob", format = "%Y%m%d" }
[tables.map.follow_up]
patient_id = "MRN"
[tables.map.follow_up.last_contact_date]
latest = [{ origin = 2000-01-01, plus = ["day"] }]
[tables.map.diagnoses]
patient_id = "MRN"
code = "icd"
diagnosis_date = "admitted"
"""


def disguise(folder: Path) -> None:
    """Rename, recode, write dates otherwise, and turn events into diagnoses whose codes are made up."""
    tables = folder / "tables"
    read = {name: pl.read_csv(tables / f"{name}.csv", infer_schema=False) for name in ("cacs", "clinical", "follow_up")}
    read["cacs"].select(
        pl.col("cacs").alias("agatston"),
        pl.col("patient_id").alias("MRN"),
        pl.col("ct_date").str.to_date().dt.strftime("%d.%m.%Y").alias("scanned"),
    ).write_csv(tables / "cacs.csv", separator=";")
    read["clinical"].rename({"patient_id": "MRN"}).with_columns(
        pl.col("sex").replace({"M": "1", "F": "2"}).alias("gender"),
        pl.col("birth_date").str.to_date().dt.strftime("%Y%m%d").alias("dob"),
    ).drop("sex", "birth_date").write_csv(tables / "clinical.csv")
    seen = read["follow_up"].select(
        pl.col("patient_id").alias("MRN"),
        (pl.col("last_contact_date").str.to_date() - pl.date(2000, 1, 1)).dt.total_days().alias("day"),
    )
    earlier = seen.with_columns(pl.col("day") - 100)
    pl.concat([earlier, seen]).write_parquet(tables / "follow_up.parquet")
    (tables / "follow_up.csv").unlink()
    events = pl.read_csv(tables / "events.csv", infer_schema=False)
    types = events["event_type"].unique().sort().to_list()
    codes = {name: f"X{i:02}" for i, name in enumerate(types)}
    events.select(
        pl.col("patient_id").alias("MRN"),
        pl.format("{}.9", pl.col("event_type").replace_strict(codes)).alias("icd"),
        pl.col("event_date").alias("admitted"),
    ).write_csv(tables / "events.csv")
    (tables / "events.csv").rename(tables / "diagnoses.csv")
    lists = "".join(f'[codes.{name}]\nprefixes = ["{code.lower()}"]\n' for name, code in codes.items())
    file = folder / "study.toml"
    substitute(file, r'^events = "tables/events.csv"', 'diagnoses = "tables/diagnoses.csv"')
    substitute(file, r"tables/follow_up\.csv", "tables/follow_up.parquet")
    edit(file, lambda text: text.replace("\n[cohort]", f"\n{MAP}{lists}[cohort]"))


@pytest.fixture
def disguised(tmp_path: Path, tables_study_run: Path) -> Path:
    folder = copy(tables_study_run, tmp_path / "study")
    disguise(folder)
    return folder


def test_the_tables_of_the_run_are_the_same_to_the_last_byte(disguised: Path, tables_study_run: Path) -> None:
    checked = cli("check", disguised)
    assert checked.code == 0, checked.stderr
    assert cli("run", disguised).code == 0
    tables = Path("outputs", "unprotected", "tables")
    mine, theirs = (
        {path.name: path.read_bytes() for path in (study / tables).glob("*.csv") if path.stem != "data_problems"}
        for study in (disguised, tables_study_run)  # data_problems.csv has rows of the table of diagnoses
    )
    assert mine == theirs
    for name in ("cohort", "analysis_set"):
        path = Path("outputs", "patient_level", f"{name}.parquet")
        assert pl.read_parquet(disguised / path).equals(pl.read_parquet(tables_study_run / path))


def test_code_lists_and_what_they_found_stand_in_the_manifest_and_on_the_page(disguised: Path) -> None:
    assert cli("run", disguised).code == 0
    release = disguised / "outputs" / "release"
    codes = json.loads((release / "manifest.json").read_text())["facts"]["prognosis"]["codes"]
    n_rows = len(pl.read_csv(disguised / "tables" / "diagnoses.csv").unique())
    assert sum(told["n_events"] for told in codes.values()) == n_rows
    assert all(told["prefixes"][0].startswith("x") for told in codes.values())
    page = (release / "report.html").read_text(encoding="utf-8")
    assert "x00" in page


def test_codes_without_diagnoses_are_told(disguised: Path) -> None:
    substitute(disguised / "study.toml", r"^diagnoses = .*$", "")
    told(cli("link", disguised), 10, "[codes] stands without [tables] diagnoses")


def test_an_event_type_of_two_sources_is_told(disguised: Path, tables_study_run: Path) -> None:
    (disguised / "tables" / "events.csv").write_bytes((tables_study_run / "tables" / "events.csv").read_bytes())
    substitute(disguised / "study.toml", r"^diagnoses = ", 'events = "tables/events.csv"\ndiagnoses = ')
    told(cli("link", disguised), 10, "which the events table holds already")


def test_two_code_systems_need_a_word(disguised: Path) -> None:
    path = disguised / "tables" / "diagnoses.csv"
    frame = pl.read_csv(path, infer_schema=False)
    frame.with_columns(
        pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.lit("ICD-9")).otherwise(pl.lit("ICD-10")).alias("system")
    ).write_csv(path)
    told(cli("link", disguised), 10, "name no code system", "2 systems")


def test_a_preset_that_the_events_do_not_have_names_what_is_missing(disguised: Path) -> None:
    substitute(disguised / "study.toml", r"^components = .*$", 'components = "mace5"')
    assert cli("link", disguised).code == 0
    told(cli("prognosis", disguised), 10, "[outcome] components names", "which never occurs in the events table")


def test_an_outcome_by_name_is_written_out_on_the_page(tmp_path: Path, tables_study_run: Path) -> None:
    folder = copy(tables_study_run, tmp_path / "study", outputs=True)
    substitute(folder / "study.toml", r"^components = .*$", 'components = "all_cause_death"')
    substitute(folder / "study.toml", r"^(competing|terminal|blanking_days) = .*\n", "")
    assert cli("prognosis", folder).code == 0
    assert cli("report", folder).code == 0
    release = folder / "outputs" / "release"
    components = json.loads((release / "manifest.json").read_text())["facts"]["prognosis"]["components"]
    assert components == ["cardiac_death", "noncardiac_death"]
    assert "all_cause_death: cardiac_death, noncardiac_death" in (release / "report.html").read_text(encoding="utf-8")
