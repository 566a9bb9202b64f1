"""What a hostile export meets: three lines, an exit code, no traceback and nobody's data."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import polars as pl
import pytest
from studies import cli, copy, edit, patient_ids, shell_as_nobody, substitute, told

Damage = Callable[[Path], object]


def first_line_only(text: str) -> str:
    return text.splitlines()[0] + "\n"


def repeat_first_row(text: str) -> str:
    return text + text.splitlines()[1] + "\n"


def rename_first_columns(old: str, new: str) -> Damage:
    return lambda file: substitute(file, f"^{old}", new, count=1)


def add_column(file: Path, name: str, value: str) -> None:
    header, *rows = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join([f"{header},{name}", *(f"{row},{value}" for row in rows)]) + "\n", encoding="utf-8")


def as_parquet(study: Path, table: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    source = study / f"tables/{table}.csv"
    change(pl.read_csv(source, infer_schema=False)).write_parquet(source.with_suffix(".parquet"))
    substitute(study / "study.toml", f"tables/{table}.csv", f"tables/{table}.parquet")


# Tables: (file, damage, what the message must say). All end with 11, at `check` and at `link`.

TABLES: dict[str, tuple[str, Damage, tuple[str, ...]]] = {
    "a missing table": ("cacs", Path.unlink, ("cacs.csv: the table does not exist",)),
    "a table that is a folder": ("cacs", lambda f: (f.unlink(), f.mkdir()), ("cacs.csv: the table does not exist",)),
    "an empty table": ("cacs", lambda f: f.write_bytes(b""), ("cacs.csv: the table is empty",)),
    "only a header": ("cacs", lambda f: edit(f, first_line_only), ("the table has no rows",)),
    "a wrong column": (
        "cacs",
        rename_first_columns("patient_id", "pat_id"),
        ("1 of 3 required columns are missing: patient_id", "found ct_date, cacs and 1", "Rename pat_id to patient_id"),
    ),
    "a column in capitals": (
        "cacs",
        rename_first_columns("patient_id", "PATIENT_ID"),
        ("Rename PATIENT_ID to patient_id",),
    ),
    "no header line": (
        "cacs",
        lambda f: edit(f, lambda text: text.split("\n", 1)[1]),
        ("3 of 3 required columns", "found none of them and 3", "names of the columns into the first line"),
    ),
    "a column twice": ("cacs", lambda f: add_column(f, "cacs", "999"), ("1 of 4 columns", "found again: column 4")),
    "duplicated patients": (
        "clinical",
        lambda f: edit(f, repeat_first_row),
        ("2 of 1,501 rows are refused", "patient_id must be unique", "faulty_rows"),
    ),
    "one CT with two scores": (
        "cacs",
        lambda f: edit(f, lambda text: text + text.splitlines()[1].rsplit(",", 1)[0] + ",7777\n"),
        ("2 of 1,558 rows are refused", "contradict"),
    ),
    "ids that lost their zeros": (
        "clinical",
        lambda f: substitute(f, "^0+", ""),
        ("1,500 of 1,500 patient ids do not occur", "would without leading zeros", "as text"),
    ),
    "dates with slashes": (
        "cacs",
        lambda f: substitute(f, r",(\d{4})-(\d\d)-(\d\d),", r",\3/\2/\1,"),
        ("1,557 of 1,557 rows are refused", "ct_date must be a date as YYYY-MM-DD", "the first is row 1"),
    ),
    "a day that is none": ("cacs", lambda f: substitute(f, r"-\d\d,", "-32,", count=1), ("1 of 1,557 rows",)),
    "zoned timestamps": (
        "cacs",
        lambda f: substitute(f, r"(\d{4}-\d\d-\d\d)", r"\1T00:00:00+09:00"),
        ("ct_date must be a date as YYYY-MM-DD",),
    ),
    "a date before anybody was born": ("follow_up", lambda f: substitute(f, ",20", ",10"), ("at least 1900-01-01",)),
    "decimal commas between semicolons": (
        "cacs",
        lambda f: edit(f, lambda text: text.replace(",", ";").replace(".", ",")),
        ("cacs must be a number with a decimal point",),
    ),
    "decimal commas in quotes": (
        "clinical",
        lambda f: substitute(f, r",(\d\d)\.(\d),", r',"\1,\2",'),
        ("bmi must be a number with a decimal point",),
    ),
    "thousands separators": ("cacs", lambda f: substitute(f, r",[\d.]+$", ',"1,234.5"'), ("decimal point",)),
    "an infinite score": ("cacs", lambda f: substitute(f, r",[\d.]+$", ",inf"), ("cacs must be a number",)),
    "a negative score": ("cacs", lambda f: substitute(f, r",0\.0$", ",-1"), ("cacs must be at least 0",)),
    "R's NA for a patient": ("cacs", lambda f: substitute(f, r"^\d+,", "NA,", 3), ("patient_id must not be empty",)),
    "sex in words": ("clinical", lambda f: substitute(f, ",F,", ",female,"), ("sex must be one of F, M",)),
    "a person and a birthday exchanged": (
        "clinical",
        rename_first_columns("patient_id,sex,birth_date", "birth_date,sex,patient_id"),
        ("birth_date must be a date",),
    ),
    "a score and a date exchanged": (
        "cacs",
        rename_first_columns("patient_id,ct_date,cacs", "patient_id,cacs,ct_date"),
        ("ct_date must be a date",),
    ),
    "Latin-1": (
        "clinical",
        lambda f: f.write_bytes(f.read_bytes().replace(b"internal", b"K\xf6ln")),
        ("cannot be read", "found another encoding"),
    ),
    "UTF-16": ("cacs", lambda f: f.write_text(f.read_text(), encoding="utf-16"), ("found another encoding",)),
    "rows longer than the header": (
        "cacs",
        lambda f: substitute(f, "^(0000.*)$", r"\1,extra"),
        ("rows with more cells than the header",),
    ),
    "rows shorter than the header": (
        "cacs",
        lambda f: substitute(f, "^(0000[^,]*),.*$", r"\1"),
        ("must not be empty",),
    ),
    "Excel's sep line": ("cacs", lambda f: edit(f, lambda text: "sep=,\n" + text), ("cannot be read",)),
    "an extra column named like a score": (
        "clinical",
        lambda f: add_column(f, "true_category", "CAC 0"),
        ("extra columns (1) have names that the tool gives: true_category",),
    ),
    "one wide table with the last contact": (
        "clinical",
        lambda f: add_column(f, "last_contact_date", "2020-01-01"),
        ("names that the tool gives: last_contact_date",),
    ),
    "a probability above 1": (
        "scores",
        lambda f: substitute(f, r"(-\d\d),0\.", r"\1,7."),
        ("cxr_gt0 must be at most 1",),
    ),
    "an origin that is none": (
        "scores",
        lambda f: substitute(f, "external", "Out-of-fold"),
        ("score_origin must be one of oof, external, in_sample, unknown",),
    ),
    "a film scored twice": ("scores", lambda f: edit(f, repeat_first_row), ("1 of 1,645 rows repeat a radiograph",)),
    "exclusions in words": (
        "clinical",
        lambda f: edit(f, lambda text: text.replace("false", "no").replace("true", "yes")),
        ("prior_pci, named in [cohort] exclude_if, is not boolean",),
    ),
    "exclusions coded 1 and 2": (
        "clinical",
        lambda f: edit(f, lambda text: text.replace("false", "1").replace("true", "2")),
        ("prior_pci, named in [cohort] exclude_if, is not boolean",),
    ),
}


@pytest.mark.parametrize("fault", TABLES)
def test_a_faulty_table_is_told_and_ends_with_11(tables_study: Path, fault: str) -> None:
    table, damage, facts = TABLES[fault]
    people = patient_ids(tables_study)
    damage(tables_study / f"tables/{table}.csv")
    checked = cli("check", tables_study)
    assert checked.code == 11
    assert "Traceback" not in checked.stderr
    assert not [secret for secret in people if secret in checked.stdout + checked.stderr]
    for said in checked.stderr.strip().split("\n\n"):
        assert len(said.splitlines()) == 3, said
    assert all(fact in checked.stderr for fact in facts), checked.stderr
    if table != "follow_up":
        told(cli("link", tables_study), 11, *facts, private=people)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda t: t.with_columns(pl.col("patient_id").cast(pl.Float64)), "patient_id must be text"),
        (lambda t: t.with_columns(pl.struct("patient_id").alias("patient_id")), "patient_id must be text"),
        (lambda t: t.with_columns(pl.concat_list("cacs").alias("cacs")), "cacs must be a number"),
        (
            lambda t: t.with_columns(pl.col("ct_date").str.to_datetime("%Y-%m-%d", time_zone="Asia/Seoul")),
            "ct_date must be a date",
        ),
        (lambda t: t.with_columns(pl.col("patient_id").cast(pl.Int64)), "would without leading zeros"),
    ],
    ids=["ids as floats", "ids in structs", "scores in lists", "zoned dates", "ids as integers"],
)
def test_faulty_types_in_parquet_are_told(
    tables_study: Path, change: Callable[[pl.DataFrame], pl.DataFrame], fact: str
) -> None:
    as_parquet(tables_study, "cacs", change)
    told(cli("link", tables_study), 11, fact, private=patient_ids(tables_study))


def test_a_parquet_of_no_bytes_is_told(tables_study: Path) -> None:
    (tables_study / "tables/cacs.parquet").write_bytes(b"")
    substitute(tables_study / "study.toml", "tables/cacs.csv", "tables/cacs.parquet")
    told(cli("link", tables_study), 11, "cacs.parquet: the table cannot be read", "a Parquet file")


def test_a_spreadsheet_is_told(tables_study: Path) -> None:
    substitute(tables_study / "study.toml", "tables/cacs.csv", "tables/cacs.xlsx")
    told(cli("link", tables_study), 11, "ending .xlsx", "Expected .csv, .parquet or .dta")


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b",", b";"),
        lambda data: data.replace(b",", b"\t"),
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data.replace(b"\n", b"\r"),
        lambda data: data.replace(b"patient_id,ct_date", b' patient_id ,"ct_date"'),
        lambda data: b"\n".join(line + b",,," for line in data.splitlines()),
    ],
    ids=["BOM", "semicolons", "tabs", "Windows", "old Macintosh", "spaces in names", "empty columns"],
)
def test_harmless_forms_of_csv_give_the_same_cohort(
    tables_study: Path, tables_study_run: Path, rewrite: Callable[[bytes], bytes]
) -> None:
    table = tables_study / "tables/cacs.csv"
    table.write_bytes(rewrite(table.read_bytes()))
    assert cli("link", tables_study).code == 0
    cohort = "outputs/patient_level/cohort.parquet"
    assert (tables_study / cohort).read_bytes() == (tables_study_run / cohort).read_bytes()


def test_faulty_rows_may_be_dropped_and_are_counted(tables_study: Path) -> None:
    substitute(tables_study / "tables/cacs.csv", r"^(0000.*),(\d{4})-(\d\d)-(\d\d),", r"\1,\3/\4/\2,")
    substitute(tables_study / "study.toml", r"^\[cohort\]", 'faulty_rows = "drop"\n[cohort]')
    checked = cli("check", tables_study)
    assert checked.code == 0
    assert "12 faulty rows dropped" in checked.stdout
    answer = cli("link", tables_study)
    assert answer.code == 0
    assert "dropped: 12 faulty rows of cacs" in answer.stderr
    refused = pl.read_parquet(tables_study / "outputs/patient_level/refused_cacs.parquet")
    assert refused.select("table", "column").unique().row(0) == ("cacs.csv", "ct_date")
    manifest = json.loads((tables_study / "outputs/unprotected/manifests/link.json").read_text())
    assert manifest["facts"]["rows_dropped"] == {"cacs": 12}


def test_dates_of_the_year_2100_need_a_word_in_the_study_file(tables_study: Path) -> None:
    for name in ("cacs", "follow_up", "events", "scores"):
        substitute(tables_study / f"tables/{name}.csv", r",20(\d\d)-", r",21\1-")
    substitute(tables_study / "tables/clinical.csv", r",(19|20)(\d\d-)", lambda m: f",{int(m[1]) + 1}{m[2]}")  # type: ignore[arg-type]
    told(cli("link", tables_study), 11, "1,644 of 1,644 rows have a date in the future")
    substitute(tables_study / "study.toml", "^simulated = true", "simulated = true\ndates_shifted_per_subject = true")
    assert cli("link", tables_study).code == 0


# The study file


def test_five_faults_of_a_study_file_are_told_together(tables_study: Path) -> None:
    def five(text: str) -> str:
        text = text.replace("seed = 2025", "seed = -1\nseeed = 1")
        text = text.replace("[cohort]", '[cohort]\npairing = "closest"\nmaximum_days_between = "many"')
        return text.replace("[audit]", "[audits]")

    edit(tables_study / "study.toml", five)
    message = told(cli("check", tables_study), 10, "5 faults")
    for place in ("[study] seed:", "[study] seeed", "[cohort] pairing", "[cohort] maximum_days_between", "[audits]"):
        assert place in message
    assert "did you mean seed?" in message
    assert "did you mean audit?" in message


@pytest.mark.parametrize(
    ("damage", "facts"),
    [
        (lambda f: (f.unlink(), f.mkdir()), ("no study file here",)),
        (lambda f: f.unlink(), ("no study file here", "simulate FOLDER")),
        (lambda f: f.write_bytes(f.read_bytes().replace(b"chest", b"K\xf6ln")), ("encoding (at line 3)", "UTF-8")),
        (lambda f: substitute(f, "^seed = 2025", "seed = "), ("not valid TOML", "at line 4")),
        (lambda f: substitute(f, "tables/cacs.csv", r"C:\\data"), ("not valid TOML", "write / instead")),
        (lambda f: substitute(f, r"^\[cohort\]", '[cohort]\n"a\\\\nb" = 1'), ("1 fault", "a b is unknown")),
        (lambda f: edit(f, lambda text: 'file = "x"\n' + text), ("[file] is unknown",)),
        (lambda f: edit(f, lambda text: text.replace("[cohort]", "[[cohort]]")), ("[cohort] is a section",)),
    ],
    ids=["a folder", "absent", "Latin-1", "invalid", "backslashes", "a key in two lines", "our own name", "an array"],
)
def test_a_faulty_study_file_ends_with_10(tables_study: Path, damage: Damage, facts: tuple[str, ...]) -> None:
    damage(tables_study / "study.toml")
    told(cli("link", tables_study), 10, *facts)


@pytest.mark.parametrize(
    ("old", "new", "facts"),
    [
        ('"cardiac_death"', '"cardiac_deth"', ("cardiac_deth", "Did you mean cardiac_death?")),
        ('\\["noncardiac_death"\\]', '["noncardiac_deaths"]', ("competing", "Did you mean noncardiac_death?")),
        ('\\["revascularization"\\]', '["revascularisation"]', ("exclude_between", "Did you mean revascularization?")),
        ('"prior_pci"', '"prior_pcy"', ("exclude_if", "Did you mean prior_pci?")),
        ('"sex", "bmi"\\]', '"sex", "bmy"]', ("adjust_for", "bmy", "Did you mean bmi?")),
        ('"age_band", "site"\\]', '"age_bnd"]', ("strata", "age_bnd", "Did you mean age_band?")),
    ],
)
def test_a_misspelt_name_is_told_with_the_nearest(
    tables_study_done: Path, old: str, new: str, facts: tuple[str, ...]
) -> None:
    substitute(tables_study_done / "study.toml", old, new)
    checked = cli("check", tables_study_done)
    assert checked.code == 10
    assert all(fact in checked.stderr for fact in facts), checked.stderr


def test_a_misspelt_event_type_stops_prognosis(tables_study_done: Path) -> None:
    substitute(tables_study_done / "study.toml", '"cardiac_death"', '"cardiac_deth"')
    told(cli("prognosis", tables_study_done), 10, "cardiac_deth, which never occurs", "Did you mean cardiac_death?")


def test_ids_in_the_place_of_event_types_are_not_told(tables_study: Path) -> None:
    events = tables_study / "tables/events.csv"
    people = patient_ids(tables_study)
    substitute(events, "^patient_id,event_type", "event_type,patient_id", count=1)
    told(cli("link", tables_study), 10, "revascularization, which does not occur", "different ones", private=people)


@pytest.mark.parametrize("verb", ["index", "link", "train", "score", "prognosis", "audit"])
def test_a_step_without_its_section_ends_with_10(tmp_path: Path, verb: str) -> None:
    (tmp_path / "study.toml").write_text('[study]\ntitle = "Nothing else"\n')
    told(cli(verb, tmp_path), 10, "is missing", "Add a line [")


# Nobody left, no events, no convergence


def test_steps_in_the_wrong_order_say_which_comes_first(tables_study: Path) -> None:
    told(cli("validate", tables_study), 14, "There is no cohort", "`cohort-scorer link` first")


def test_nobody_in_the_window_ends_with_14(tables_study: Path) -> None:
    substitute(tables_study / "study.toml", r"^\[cohort\]", "[cohort]\nminimum_age_years = 119")
    told(
        cli("link", tables_study),
        14,
        "The cohort is empty: all 1,500 patients are excluded",
        "age missing or under the minimum",
    )
    attrition = pl.read_csv(tables_study / "outputs/unprotected/tables/attrition.csv")
    assert attrition["n_after"][-1] == 0


def test_identifiers_of_another_kind_are_told_by_check(tables_study: Path) -> None:
    substitute(tables_study / "tables/follow_up.csv", r"^0", "P")
    checked = cli("check", tables_study)
    assert checked.code == 11
    assert "follow_up: none of 1,478 patient ids occurs in cacs" in checked.stderr


def test_no_outcome_events_ends_with_14(tables_study_done: Path) -> None:
    substitute(tables_study_done / "tables/events.csv", r"\d{4}-\d\d-\d\d", "1999-01-01")
    assert cli("link", tables_study_done).code == 0
    told(cli("prognosis", tables_study_done), 14, "Nobody compared had an event", "found 0")


def test_a_model_that_does_not_converge_ends_with_15(tables_study_done: Path) -> None:
    people = pl.read_parquet(tables_study_done / "outputs/patient_level/analysis_set.parquet")
    had_event = set(people.filter(pl.col("status") == 1)["patient_id"])

    def separate(text: str) -> str:
        header, *rows = text.splitlines()
        marked = [f"{row},{int(row.split(',')[0] in had_event)}" for row in rows]
        return "\n".join([f"{header},outcome_known_beforehand", *marked]) + "\n"

    edit(tables_study_done / "tables/clinical.csv", separate)
    substitute(tables_study_done / "tables/clinical.csv", ",external,", ",internal,")
    substitute(tables_study_done / "study.toml", r"^adjust_for = .*", 'adjust_for = ["outcome_known_beforehand"]')
    assert cli("link", tables_study_done).code == 0
    told(cli("prognosis", tables_study_done), 15, "did not converge", "adjust_for")


# Scores and bundles that cannot be used: 12


def test_in_sample_scores_are_refused(tables_study_done: Path) -> None:
    substitute(tables_study_done / "tables/scores.csv", "external", "in_sample")
    assert cli("link", tables_study_done).code == 0
    for verb in ("validate", "prognosis"):
        message = told(cli(verb, tables_study_done), 12, "in_sample", "performance on training patients")
        assert "training.key" not in message


def test_without_the_training_key_scores_are_of_unknown_origin(image_study_done: Path) -> None:
    (image_study_done / "outputs/patient_level/training.key").unlink()
    answer = cli("score", image_study_done)
    assert answer.code == 0
    assert "153 unknown" in answer.stderr
    for verb in ("validate", "prognosis"):
        told(cli(verb, image_study_done), 12, "unknown", "training.key")
    substitute(image_study_done / "study.toml", r"^\[train\]", "trained_elsewhere = true\n[train]")
    assert "153 external" in cli("score", image_study_done).stderr
    assert cli("validate", image_study_done).code == 0


def in_bundle(change: Callable[[dict[str, object]], object]) -> Damage:
    def damage(bundle: Path) -> None:
        content = json.loads((bundle / "bundle.json").read_text())
        change(content)
        (bundle / "bundle.json").write_text(json.dumps(content))

    return damage


def flip_a_bit(bundle: Path) -> None:
    weights = bundle / "gt0-refit/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)


BUNDLES: dict[str, tuple[Damage, str]] = {
    "a flipped bit": (flip_a_bit, "model.safetensors is missing or differs from its sha256"),
    "a missing file": (lambda b: (b / "cut_grid.parquet").unlink(), "cut_grid.parquet is missing"),
    "a pickle": (in_bundle(lambda c: c["files"].update({"x.pkl": "00"})), "no bundle may hold"),  # type: ignore[attr-defined]
    "a file outside": (in_bundle(lambda c: c["files"].update({"../../x.json": "00"})), "no bundle may hold"),  # type: ignore[attr-defined]
    "a network outside": (in_bundle(lambda c: c["networks"][0].update({"name": "../../x"})), "cannot be used"),  # type: ignore[index]
    "half a bundle.json": (lambda b: (b / "bundle.json").write_text("{"), "bundle.json cannot be read"),
    "a list for bundle.json": (lambda b: (b / "bundle.json").write_text("[]"), "bundle.json cannot be read"),
    "other categories": (in_bundle(lambda c: c["categories"].pop()), "contradict this study"),  # type: ignore[attr-defined]
    "no bundle": (lambda b: shutil.rmtree(b), "There is no model bundle"),
}


@pytest.mark.parametrize("fault", BUNDLES)
def test_a_faulty_bundle_ends_with_12(image_study_done: Path, fault: str) -> None:
    damage, fact = BUNDLES[fault]
    damage(image_study_done / "outputs/model")
    told(cli("score", image_study_done), 12, fact)
    if fault != "no bundle":
        assert cli("check", image_study_done).code == 12


def test_outputs_of_two_bundles_never_mix(image_study_done: Path) -> None:
    part = next((image_study_done / "outputs/patient_level/network_outputs").iterdir())
    pl.read_parquet(part).with_columns(pl.lit("0" * 16).alias("network_id")).write_parquet(part)
    told(cli("score", image_study_done), 12, "another bundle", "would mix two models")


def test_another_training_never_replaces_a_bundle(image_study_done: Path) -> None:
    before = (image_study_done / "outputs/model/bundle.json").read_bytes()
    substitute(image_study_done / "study.toml", "^epochs = 2", "epochs = 3")
    told(cli("train", image_study_done), 12, "Another bundle stands")
    assert (image_study_done / "outputs/model/bundle.json").read_bytes() == before


# Archives


def test_an_empty_archive_ends_with_14(image_study: Path) -> None:
    shutil.rmtree(image_study / "archive")
    (image_study / "archive").mkdir()
    told(cli("index", image_study), 14, "The archive is empty: 0 files found")


def test_an_absent_archive_ends_with_17(image_study: Path) -> None:
    shutil.rmtree(image_study / "archive")
    told(cli("index", image_study), 17, "archive root is not a folder")


@pytest.mark.parametrize("verb", ["index", "check"])
def test_roots_that_hold_one_another_end_with_10(image_study: Path, verb: str) -> None:
    substitute(image_study / "study.toml", '^root = "archive"', 'root = ["archive", "archive/internal"]')
    answer = cli(verb, image_study)
    assert answer.code == 10
    message = (
        "[archive] root names folders that hold one another.\nExpected 2 folders, none of them another or below it"
    )
    assert message in answer.stderr


def test_an_archive_without_chest_films_ends_with_14(image_study: Path) -> None:
    substitute(image_study / "study.toml", '^root = "archive"', 'root = "archive"\nmodalities = ["MG"]')
    told(cli("index", image_study), 14, "no eligible radiograph: 179 files found")


def test_too_many_refused_films_end_with_13_after_all_rows_are_written(image_study: Path) -> None:
    substitute(image_study / "study.toml", '^root = "archive"', 'root = "archive"\nmaximum_refused_percent = 0')
    told(cli("index", image_study), 13, "files that claim to be radiographs were refused", "Expected at most 0 %")
    level = image_study / "outputs/patient_level"
    rows = pl.concat(pl.read_parquet(path) for path in (level / "index").glob("part-*.parquet"))
    refused = pl.concat(pl.read_parquet(path) for path in (level / "refusals").glob("index-*.parquet"))
    assert len(rows) + len(refused) == 179


def test_films_that_cannot_be_decoded_end_with_13_after_all_rows_are_written(image_study_done: Path) -> None:
    level = image_study_done / "outputs/patient_level"
    shutil.rmtree(level / "network_outputs")
    films = pl.concat(pl.read_parquet(path) for path in (level / "index").glob("part-*.parquet")).filter("eligible")
    for uri in films["uri"].head(60):
        film = image_study_done / "archive" / uri
        status = film.stat()
        data = bytearray(film.read_bytes())
        data[len(data) // 3 :] = bytes(len(data) - len(data) // 3)
        film.write_bytes(data)
        os.utime(film, ns=(status.st_atime_ns, status.st_mtime_ns))
    told(cli("score", image_study_done), 13, "files that claim to be radiographs were refused", "at most 20 %")
    scores = pl.read_parquet(level / "scores.parquet")
    refused = pl.concat(pl.read_parquet(path) for path in (level / "refusals").glob("score-*.parquet"))
    assert len(scores) + len(refused) == len(films)


# The machine: 17


def test_a_study_in_use_is_locked(tables_study: Path) -> None:
    (tables_study / "outputs").mkdir()
    with filelock.FileLock(tables_study / "outputs/.lock"):
        told(cli("link", tables_study), 17, "locked", "Wait for the other run")
    assert cli("link", tables_study).code == 0


def test_a_file_in_the_place_of_the_outputs_is_told(tables_study: Path) -> None:
    (tables_study / "outputs").write_text("not a folder")
    told(cli("link", tables_study), 17, "A file stands where a folder is needed")


@pytest.mark.parametrize("name", ["cohort", "scores"])
def test_a_damaged_file_of_our_own_is_told(image_study_done: Path, name: str) -> None:
    (image_study_done / f"outputs/patient_level/{name}.parquet").write_bytes(b"PAR1 and no more")
    told(cli("validate", image_study_done), 17, f"{name}.parquet is damaged", "run the step that writes it again")


@pytest.mark.parametrize(("name", "column"), [("cohort", "cacs"), ("scores", "cxr_gt0")])
def test_a_file_of_our_own_from_another_version_is_told(image_study_done: Path, name: str, column: str) -> None:
    path = image_study_done / f"outputs/patient_level/{name}.parquet"
    pl.read_parquet(path).drop(column).write_parquet(path)
    told(cli("validate", image_study_done), 17, f"{name}.parquet lacks 1 columns: {column}", "another version")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system in memory; skips where that is not possible."""
    mounts = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"disk{len(mounts)}"
        folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
            pytest.skip("a tmpfs cannot be mounted here: needs root")
        mounts.append(folder)
        return folder

    yield mount
    for folder in mounts:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(("verb", "size"), [("link", "8k"), ("validate", "120k"), ("prognosis", "120k")])
def test_a_full_disk_is_told_and_leaves_no_half_file(
    tables_study: Path, tables_study_run: Path, mounted: Callable[[str], Path], verb: str, size: str
) -> None:
    disk = mounted(size)
    (disk / "patient_level").mkdir()
    if verb != "link":
        shutil.copy(tables_study_run / "outputs/patient_level/cohort.parquet", disk / "patient_level")
    substitute(tables_study / "study.toml", "^seed = 2025", f'seed = 2025\noutput = "{disk}"')
    told(cli(verb, tables_study), 17, "The disk is full", "No space left on device", "Free space")
    left = [path for path in disk.rglob("*") if path.is_file()]
    assert [path.name for path in left if path.name.startswith(".")] == [".lock"]
    for path in left:
        if path.suffix == ".csv" and path.parent.name == "tables":
            whole = tables_study_run / "outputs" / path.relative_to(disk)
            assert path.read_bytes() == whole.read_bytes() or path.name == "attrition.csv"


def test_a_read_only_file_system_is_told(tables_study: Path, mounted: Callable[[str], Path]) -> None:
    disk = mounted("1m")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    substitute(tables_study / "study.toml", "^seed = 2025", f'seed = 2025\noutput = "{disk}"')
    told(cli("link", tables_study), 17, "read-only")


def as_nobody_sees(folder: Path) -> None:
    """Everybody may read the copy below /tmp; nobody but root may write."""
    for path in [folder, *folder.parents]:
        if path.stat().st_uid == os.getuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.mark.skipif(os.getuid() != 0, reason="another user can be tried by root alone")
def test_a_folder_without_write_permission_is_told(tables_study: Path) -> None:
    as_nobody_sees(tables_study)
    told(shell_as_nobody("link", str(tables_study)), 17, "may not be read or written", "Ask for permission")


# Odd names, end to end

ODD_SITES = ["<script>alert(1)</script>", "=cmd()", "$\\foo$", '"two\nlines"', "{{7*7}}-Örebro"]


def test_odd_site_names_reach_the_report_as_text(tables_study: Path) -> None:
    def renamed(text: str) -> str:
        rows = text.splitlines()
        return "\n".join(
            row.replace(",internal,", f",{ODD_SITES[number % len(ODD_SITES)]},") for number, row in enumerate(rows)
        )

    edit(tables_study / "tables/clinical.csv", renamed)
    for verb in ("check", "link", "validate", "report"):
        answer = cli(verb, tables_study, *([] if verb == "check" else ["--quiet"]))
        assert answer.code == 0, answer
    page = (tables_study / "outputs/release/report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{7*7}}" in page
    table = pl.read_csv(tables_study / "outputs/release/tables/discrimination.csv")
    sites = set(table["site"])
    assert {"two\nlines", "'=cmd()", "$\\foo$", "all", "external"} <= sites
    assert not [site for site in sites if site.startswith(("=", "+", "-", "@"))]


def test_a_site_named_all_is_refused(tables_study: Path) -> None:
    substitute(tables_study / "tables/clinical.csv", ",external,", ",all,")
    told(cli("link", tables_study), 11, "A site is named all", "pooled")


def test_two_studies_side_by_side_do_not_meet(tables_study: Path, tmp_path: Path) -> None:
    other = copy(tables_study, tmp_path / "other study with spaces ü")
    assert cli("link", other).code == cli("link", tables_study).code == 0
    first, second = (study / "outputs/patient_level/cohort.parquet" for study in (other, tables_study))
    assert first.read_bytes() == second.read_bytes()


def test_event_types_that_are_identifiers_are_not_told(tables_study: Path) -> None:
    private = patient_ids(tables_study)
    events = tables_study / "tables" / "events.csv"
    edit(events, lambda text: text.replace("patient_id,event_type", "event_type,patient_id", 1))
    substitute(tables_study / "study.toml", "exclude_between = .*", "exclude_between = []")
    assert cli("link", tables_study).code == 0
    told(cli("prognosis", tables_study), 10, "different ones", private=private)


def test_a_table_that_nobody_wrote_is_left_out_of_the_report(tables_study_done: Path) -> None:
    tables = tables_study_done / "outputs" / "release" / "tables"
    (tables / "mine.csv").write_text("a,b\n1,2\n")
    assert cli("report", tables_study_done).code == 0
    (tables / "cox.csv").write_text("a,b\n1,2\n")
    told(cli("report", tables_study_done), 17, "cox.csv")


def test_a_study_of_nothing_ends_with_10_and_a_report_of_nothing_with_14(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('[study]\ntitle = "Nothing"\n')
    told(cli("run", tmp_path), 10, "nothing to run")
    told(cli("report", tmp_path), 14, "nothing to report")


def test_an_index_of_another_study_that_is_not_there_ends_with_14(image_study: Path) -> None:
    substitute(image_study / "study.toml", r"^\[archive\]$", '[archive]\nindex = "../nowhere/index"')
    told(cli("index", image_study), 14)


def test_files_in_the_place_of_the_bundle_stop_training_before_it_begins(image_study_done: Path) -> None:
    model = image_study_done / "outputs" / "model"
    shutil.rmtree(model)
    model.mkdir()
    (model / ".DS_Store").write_bytes(b"x")
    told(cli("train", image_study_done), 12, "no bundle")


def test_a_covariate_that_nobody_has_is_named(tables_study: Path) -> None:
    clinical = tables_study / "tables" / "clinical.csv"
    pl.read_csv(clinical, infer_schema=False).with_columns(bmi=pl.lit(None, pl.String)).write_csv(clinical)
    assert cli("link", tables_study).code == 0
    told(cli("prognosis", tables_study), 14, "bmi in")
    attrition = pl.read_csv(tables_study / "outputs" / "unprotected" / "tables" / "attrition.csv")
    assert attrition["reason"][-1] == "missing category or covariate"
    assert attrition["n_after"][-1] == 0


def test_identifiers_that_differ_in_a_zero_by_chance_are_told_and_do_not_stop(tables_study: Path) -> None:
    cacs = tables_study / "tables" / "cacs.csv"
    table = pl.read_csv(cacs, infer_schema=False)
    stripped = table["patient_id"][0].lstrip("0")
    table.with_columns(
        pl.when(pl.col("patient_id") == table["patient_id"][0])
        .then(pl.lit(stripped))
        .otherwise("patient_id")
        .alias("patient_id")
    ).write_csv(cacs)
    answer = cli("link", tables_study)
    assert answer.code == 0
    assert "1 patients of cacs would match without leading zeros" in answer.stderr


def test_a_misspelt_blanking_type_is_told(tables_study_done: Path) -> None:
    substitute(tables_study_done / "study.toml", "^blanking_days = .*", "blanking_days = { revascularisation = 90 }")
    told(cli("prognosis", tables_study_done), 10, "blanking_days", "Did you mean revascularization?")


def test_an_event_type_with_two_roles_is_told(tables_study_done: Path) -> None:
    substitute(tables_study_done / "study.toml", "^competing = .*", 'competing = ["cardiac_death"]')
    told(cli("prognosis", tables_study_done), 10, "cardiac_death", "one role")


@pytest.mark.parametrize(("table", "step"), [("cacs", "validate"), ("clinical", "prognosis")])
def test_a_cohort_of_tables_that_have_changed_is_refused(tables_study_done: Path, table: str, step: str) -> None:
    path = tables_study_done / "tables" / f"{table}.csv"
    pl.read_csv(path, infer_schema=False).head(900).write_csv(path)
    told(cli(step, tables_study_done), 11, f"before {table}.csv changed", "link")
    assert cli("link", tables_study_done).code == 0
    assert cli(step, tables_study_done).code == 0


def test_dates_in_the_future_are_told(tables_study: Path) -> None:
    substitute(tables_study / "tables" / "follow_up.csv", r",\d{4}-", ",2091-", 3)
    assert cli("link", tables_study).code == 0
    told(cli("prognosis", tables_study), 11, "3 of", "future")


@pytest.mark.parametrize("section", ["cohort", "tables"])
def test_a_section_whose_step_would_silently_not_run_is_told(tables_study: Path, section: str) -> None:
    def without(text: str) -> str:
        return re.sub(rf"^\[{section}\]\n(?:[^\[\n].*\n|\n)*", "", text, flags=re.MULTILINE)

    edit(tables_study / "study.toml", without)
    assert cli("check", tables_study).code == 10
    told(cli("run", tables_study), 10, "stands without")


def test_scores_without_categories_need_truth_or_three_numbers(tables_study: Path) -> None:
    substitute(tables_study / "study.toml", "^cacs = .*$", "")
    assert cli("link", tables_study).code == 0
    told(cli("prognosis", tables_study), 10, "no categories", "three numbers")
    edit(tables_study / "study.toml", lambda text: text + "\n[model]\ncategory_rule = [0.5, 0.3, 0.2]\n")
    assert cli("prognosis", tables_study).code == 0


def test_tables_of_a_section_taken_out_do_not_stay(tables_study_done: Path) -> None:
    edit(tables_study_done / "study.toml", lambda text: re.sub(r"\[outcome\](?:\n[^\[].*)*", "", text))
    assert cli("run", tables_study_done).code == 0
    assert not (tables_study_done / "outputs" / "release" / "tables" / "cox.csv").exists()
    assert (tables_study_done / "outputs" / "release" / "tables" / "crosstab.csv").exists()
