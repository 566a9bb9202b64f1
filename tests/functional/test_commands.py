"""Every command does what the contract says, alone and inside `run`."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest
from studies import COMMAND, cli, copy, patient_ids, shell, substitute, told

from cohort_scorer import schemas
from cohort_scorer.imaging import index as archive

VERBS = [
    "simulate",
    "check",
    "index",
    "link",
    "train",
    "score",
    "validate",
    "prognosis",
    "sensitivity",
    "audit",
    "report",
    "run",
]
OTHERS = ["recalibrate", "demo", "schema"]
STEPS = ["index", "link", "train", "score", "validate", "prognosis", "sensitivity", "audit", "report"]
PATIENT_LEVEL = ["cohort.parquet", "superseded.parquet", "scores.parquet", "analysis_set.parquet", "analysis_set.csv"]

# contract.md, `Commands`: the main output of each step.
MAIN_OUTPUT = {
    "index": "patient_level/index",
    "link": "patient_level/cohort.parquet",
    "train": "model",
    "score": "patient_level/scores.parquet",
    "validate": "unprotected/tables/discrimination.csv",
    "prognosis": "patient_level/analysis_set.parquet",
    "sensitivity": "unprotected/tables/sensitivity.csv",
    "audit": "unprotected/tables/audit_positivity.csv",
    "report": "release/report.html",
    "run": "release/report.html",
}

TABLES_OF_STEP = {
    "check": ["data_problems"],
    "sensitivity": ["sensitivity"],
    "link": ["attrition", "baseline", "interval"],
    "train": ["training_curves"],
    "validate": [
        "agreement",
        "calibration",
        "calibration_curve",
        "crosstab",
        "decision_curve",
        "discrimination",
        "discrimination_tests",
        "operating_points",
        "roc",
        "subgroups",
    ],
    "prognosis": [
        "at_risk",
        "attrition",
        "comparison",
        "cox",
        "cox_fit",
        "cumulative_incidence",
        "discordance",
        "event_rates",
        "horizon",
        "kaplan_meier",
        "logrank",
        "proportional_hazards",
        "risk_curve",
        "schoenfeld",
    ],
    "audit": ["audit_coverage", "audit_positivity", "audit_prevalence"],
}


def contents(folder: Path, names: list[Path]) -> dict[str, bytes]:
    return {name.relative_to(folder).as_posix(): name.read_bytes() for name in names}


def results(study: Path) -> dict[str, bytes]:
    """Tables, cohort, scores and analysis set."""
    outputs = study / "outputs"
    tables = [*(outputs / "unprotected/tables").glob("*.csv"), *(outputs / "release/tables").glob("*.csv")]
    found = [outputs / "patient_level" / name for name in PATIENT_LEVEL]
    return contents(study, [*tables, *(path for path in found if path.exists())])


# Help


def test_help_lists_the_commands_and_imports_no_torch() -> None:
    code = (
        "import sys\nsys.argv = ['cohort-scorer', '--help']\nfrom cohort_scorer.cli import main\n"
        "try:\n    main()\nfinally:\n    heavy = {'torch', 'polars', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "    print('imported:', sorted(heavy))"
    )
    done = subprocess.run([COMMAND[0], "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "imported: []" in done.stdout
    listed = re.findall(r"^  (\w+)  ", done.stdout, flags=re.MULTILINE)
    assert sorted(listed) == sorted([*VERBS, *OTHERS])


@pytest.mark.parametrize("verb", [*VERBS, *OTHERS])
def test_every_command_has_help(verb: str) -> None:
    answer = cli(verb, "--help")
    assert answer.code == 0
    assert verb in answer.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["bogus"],
        ["index", "--workers", "0"],
        ["score", "--device", "tpu"],
        ["schema", "no_such_table"],
        ["link", "--limt", "3"],
    ],
)
def test_wrong_usage_ends_with_2(words: list[str]) -> None:
    answer = cli(*words)
    assert answer.code == 2
    assert answer.stdout == ""


# What each step prints and writes


def test_run_makes_every_table_of_its_steps(image_study_run: Path) -> None:
    outputs = image_study_run / "outputs"
    expected = sorted({name for names in TABLES_OF_STEP.values() for name in names})
    for folder in ("unprotected", "release"):
        assert sorted(path.stem for path in (outputs / folder / "tables").iterdir()) == expected
    for path in (outputs / "release/tables").iterdir():
        assert pl.read_csv(path, infer_schema=False).columns == list(schemas.columns(path.stem)), path.name
    for name in PATIENT_LEVEL:
        assert (outputs / "patient_level" / name).is_file()
    for name in ("index/part-00000", "network_outputs/part-00000-00000", "refusals/index-00000"):
        assert (outputs / "patient_level" / f"{name}.parquet").is_file()
    assert {path.name for path in (outputs / "model").iterdir() if path.is_file()} == {
        "bundle.json",
        "cut_grid.parquet",
        "familiarity.safetensors",
        "training_curves.parquet",
        "training_patients.parquet",
        "MODEL_CARD.md",
    }


def test_tables_with_a_model_begin_with_site_and_score_origin(image_study_run: Path) -> None:
    for path in (image_study_run / "outputs/release/tables").glob("*.csv"):
        columns = pl.read_csv(path, infer_schema=False).columns
        if {"exposure", "model"} & set(columns):
            assert columns[:2] == ["site", "score_origin"], path.name


def test_patient_level_columns_are_those_of_the_schemas(image_study_run: Path) -> None:
    for name in ("cohort", "scores", "analysis_set"):
        found = pl.read_parquet(image_study_run / f"outputs/patient_level/{name}.parquet").schema
        declared = schemas.columns(name)
        assert dict(list(found.items())[: len(declared)]) == declared


def test_files_found_are_index_rows_and_refusals(image_study_run: Path) -> None:
    level = image_study_run / "outputs/patient_level"
    files = sum(path.is_file() for path in (image_study_run / "archive").rglob("*"))
    index = pl.concat(pl.read_parquet(path) for path in (level / "index").glob("part-*.parquet"))
    refused = pl.concat(pl.read_parquet(path) for path in (level / "refusals").glob("index-*.parquet"))
    assert files == len(index) + len(refused)
    scores = pl.read_parquet(level / "scores.parquet")
    not_scored = pl.concat(pl.read_parquet(path) for path in (level / "refusals").glob("score-*.parquet"))
    assert index["eligible"].sum() == len(scores) + len(not_scored)


def test_each_step_alone_gives_the_same_bytes_as_inside_run(image_study_run: Path, image_study_done: Path) -> None:
    outputs = image_study_done / "outputs"
    shutil.rmtree(outputs / "release")
    shutil.rmtree(outputs / "unprotected")
    for name in ("index", "refusals", "network_outputs"):
        shutil.rmtree(outputs / "patient_level" / name)
    for name in PATIENT_LEVEL:
        (outputs / "patient_level" / name).unlink()
    for verb in STEPS:
        answer = (
            cli(verb, image_study_done, "--workers", "1")
            if verb in ("index", "train", "score")
            else cli(verb, image_study_done)
        )
        assert answer.code == 0, answer
        assert answer.stdout == f"{outputs / MAIN_OUTPUT[verb]}\n"
        if verb == "index":
            assert cli("check", image_study_done).code == 0
        assert (outputs / MAIN_OUTPUT[verb]).exists()
        for table in TABLES_OF_STEP.get(verb, []):
            assert (outputs / "unprotected/tables" / f"{table}.csv").is_file()
    assert results(image_study_done) == results(image_study_run)


def test_run_again_trains_and_scores_nothing_and_gives_the_same_bytes(
    image_study_done: Path, image_study_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cohort_scorer.imaging import scoring, training

    def called(*_: object) -> None:
        raise AssertionError("done before")

    monkeypatch.setattr(training, "train_all", called)
    monkeypatch.setattr(scoring, "score", called)
    monkeypatch.setattr(archive, "read_headers", called)
    answer = cli("run", image_study_done)
    assert answer.code == 0
    assert answer.stdout == f"{image_study_done / 'outputs/release/report.html'}\n"
    assert results(image_study_done) == results(image_study_run)


def test_index_again_opens_no_file(image_study_done: Path) -> None:
    index = image_study_done / "outputs/patient_level/index"
    before = contents(index, list(index.glob("*.parquet")))
    for path in (image_study_done / "archive").rglob("*"):
        if path.is_file():
            status = path.stat()
            path.write_bytes(bytes(status.st_size))
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cli("index", image_study_done).code == 0
    assert contents(index, list(index.glob("*.parquet"))) == before


def test_a_new_file_is_a_new_part(image_study_done: Path) -> None:
    index = image_study_done / "outputs/patient_level/index"
    before = contents(index, list(index.glob("part-*.parquet")))
    elsewhere = image_study_done / "archive/internal/new"
    elsewhere.mkdir()
    (elsewhere / "notes.txt").write_text("not a film")
    assert cli("index", image_study_done).code == 0
    after = contents(index, list(index.glob("part-*.parquet")))
    assert before.items() <= after.items()


@pytest.mark.parametrize("verb", ["link", "report"])
def test_json_is_the_steps_manifest(tables_study_done: Path, verb: str) -> None:
    answer = cli(verb, tables_study_done, "--json")
    assert answer.code == 0
    manifest = json.loads(answer.stdout)
    assert manifest["versions"]["cohort-scorer"]
    if verb != "report":
        assert manifest["step"] == verb
        assert all((tables_study_done / "outputs" / name).is_file() for name in manifest["outputs"])


def test_quiet_says_nothing_but_the_path(tables_study: Path) -> None:
    answer = cli("link", tables_study, "--quiet")
    assert (answer.code, answer.stderr) == (0, "")
    assert answer.stdout == f"{tables_study / 'outputs/patient_level/cohort.parquet'}\n"


def test_progress_is_on_stderr_with_one_line_per_reason(tables_study: Path) -> None:
    answer = cli("link", tables_study)
    attrition = pl.read_csv(tables_study / "outputs/unprotected/tables/attrition.csv").filter(pl.col("n_excluded") > 0)
    expected = [f"excluded: {row['n_excluded']:,} {row['reason']}" for row in attrition.iter_rows(named=True)]
    assert answer.stderr.splitlines()[:-1] == expected
    assert len(answer.stdout.splitlines()) == 1


def test_a_process_answers_as_the_tests_inside_do(tables_study: Path) -> None:
    answer = shell("link", str(tables_study), "--quiet")
    assert (answer.code, answer.stderr) == (0, "")
    assert Path(answer.stdout.strip()).is_file()


def test_the_study_may_be_named_by_its_file_or_be_here(tables_study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_file = cli("check", tables_study / "study.toml")
    monkeypatch.chdir(tables_study)
    here = cli("check", Path())
    assert by_file.code == here.code == 0
    assert by_file.stdout == here.stdout


# check, schema, simulate, report


def test_check_prints_the_plan_and_match_rates(image_study_run: Path) -> None:
    answer = cli("check", image_study_run)
    assert (answer.code, answer.stderr) == (0, "")
    first, *others = answer.stdout.splitlines()
    assert first.endswith(" -> ".join(STEPS))
    assert any(re.match(r"cacs: [\d,]+ of [\d,]+ patients occur in the index \(", line) for line in others)
    assert any("every sha256 right, trained on SIMULATED data" in line for line in others)


def test_check_in_json_names_every_fault(tables_study: Path) -> None:
    substitute(tables_study / "study.toml", '"cardiac_death"', '"cardiac_deth"')
    (tables_study / "tables/cacs.csv").unlink()
    answer = cli("check", tables_study, "--json")
    assert answer.code == 11
    assert len(json.loads(answer.stdout)["faults"]) == 2


def test_schema_lists_and_prints_every_table() -> None:
    listed = shell("schema").stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(schemas.names())
    for name in schemas.names():
        answer = cli("schema", name)
        for column in schemas.columns(name):
            assert re.search(rf"^{re.escape(column)} ", answer.stdout, flags=re.MULTILINE), (name, column)
        assert json.loads(cli("schema", name, "--json").stdout) == schemas.load(name)


def test_simulate_never_overwrites(tables_study: Path) -> None:
    for verb in ("simulate", "demo"):
        told(cli(verb, tables_study), 17, "not empty")


def test_the_report_says_simulated(tables_study_run: Path) -> None:
    page = (tables_study_run / "outputs/release/report.html").read_text(encoding="utf-8")
    assert "SIMULATED DATA" in page


def test_nothing_released_holds_a_patient_id(tables_study_run: Path, image_study_run: Path) -> None:
    for study in (tables_study_run, image_study_run):
        people = re.compile(rf"(?<![\d.])({'|'.join(patient_ids(study))})(?!\d)")
        for path in (study / "outputs/release").rglob("*"):
            if path.suffix in (".csv", ".html", ".json", ".svg"):
                assert not people.search(path.read_text(encoding="utf-8")), path.name


# Other ways in


def test_scores_made_elsewhere_get_categories_by_the_rule(tables_study_run: Path) -> None:
    people = pl.read_parquet(tables_study_run / "outputs/patient_level/analysis_set.parquet")
    for exposure in ("cxr", "integrated"):
        assert people[f"{exposure}_category"].null_count() < len(people) / 10


def test_tables_may_be_parquet_and_give_the_same_results(tables_study_run: Path, tables_study: Path) -> None:
    for path in (tables_study / "tables").glob("*.csv"):
        frame = pl.read_csv(path, try_parse_dates=True, schema_overrides={"patient_id": pl.String})
        frame.write_parquet(path.with_suffix(".parquet"))
        path.unlink()
    substitute(tables_study / "study.toml", r"\.csv", ".parquet")
    assert cli("link", tables_study).code == 0
    done, wanted = (study / "outputs/patient_level/cohort.parquet" for study in (tables_study, tables_study_run))
    assert pl.read_parquet(done).equals(pl.read_parquet(wanted))


def test_another_studys_index_and_bundle_serve_a_new_study(image_study_run: Path, tmp_path: Path) -> None:
    other = copy(image_study_run, tmp_path / "other")
    theirs = image_study_run / "outputs"
    substitute(other / "study.toml", r'^root = "archive"', f'root = "archive"\nindex = "{theirs}/patient_level/index"')
    substitute(other / "study.toml", r"^bundle = .*", f'bundle = "{theirs}/model"\ntrained_elsewhere = true')
    substitute(other / "study.toml", r"\[train\][\s\S]*(?=\[outcome\])", "")
    for verb in ("index", "link", "score", "validate"):
        answer = cli(verb, other)
        assert answer.code == 0, answer
    scores = pl.read_parquet(other / "outputs/patient_level/scores.parquet")
    assert scores["score_origin"].unique().to_list() == ["external"]
    assert not (other / "outputs/patient_level/index").exists()


def test_report_says_which_steps_ran_before_the_study_file_changed(tables_study_done: Path) -> None:
    page = tables_study_done / "outputs" / "release" / "report.html"
    assert cli("report", tables_study_done).code == 0
    assert "RUN BEFORE STUDY.TOML CHANGED" not in page.read_text()
    substitute(tables_study_done / "study.toml", "^seed = .*$", "seed = 99")
    for verb in ("link", "prognosis", "audit"):
        assert cli(verb, tables_study_done).code == 0
    answer = cli("report", tables_study_done)
    assert "warning: check, validate, sensitivity ran before study.toml changed" in answer.stderr
    assert "RUN BEFORE STUDY.TOML CHANGED: check, validate, sensitivity<" in page.read_text()


def test_report_says_which_steps_ran_before_a_table_changed(tables_study_done: Path) -> None:
    page = tables_study_done / "outputs" / "release" / "report.html"
    clinical = tables_study_done / "tables" / "clinical.csv"
    pl.read_csv(clinical, infer_schema=False).head(1_200).write_csv(clinical)
    assert cli("link", tables_study_done).code == 0
    answer = cli("report", tables_study_done)
    assert "warning: check, validate, prognosis, sensitivity, audit ran before its inputs changed" in answer.stderr
    assert "RUN BEFORE ITS INPUTS CHANGED: check, validate, prognosis, sensitivity, audit<" in page.read_text()


def test_missing_values_as_r_and_stata_write_them_are_missing(tables_study: Path) -> None:
    clinical = tables_study / "tables" / "clinical.csv"
    table = pl.read_csv(clinical, infer_schema=False)
    row = pl.int_range(pl.len())
    table.with_columns(
        pl.when(row % 10 == 0).then(pl.lit("NA")).otherwise("bmi").alias("bmi"),
        pl.when(row % 7 == 0).then(pl.lit("NA")).otherwise(pl.format("{}", row)).alias("ldl"),
        pl.when(row % 5 == 0).then(pl.lit(".")).otherwise(pl.lit("true")).alias("smoker"),
    ).write_csv(clinical)
    substitute(tables_study / "study.toml", r"^adjust_for = .*", 'adjust_for = ["sex", "ldl"]')
    for verb in ("link", "prognosis"):
        assert cli(verb, tables_study).code == 0
    cohort = pl.read_parquet(tables_study / "outputs" / "patient_level" / "cohort.parquet")
    assert cohort["ldl"].dtype == pl.Float64
    assert cohort["smoker"].dtype == pl.Boolean
    assert cohort["ldl"].null_count() > 0
    baseline = pl.read_csv(tables_study / "outputs" / "unprotected" / "tables" / "baseline.csv")
    assert baseline.filter(pl.col("variable") == "ldl")["missing"][0] == cohort["ldl"].null_count()


def test_free_text_and_record_numbers_stay_inside(tables_study: Path) -> None:
    clinical = tables_study / "tables" / "clinical.csv"
    table = pl.read_csv(clinical, infer_schema=False)
    table.with_columns(note=pl.lit("tel 555-0"), mrn=pl.int_range(700_000, 700_000 + pl.len())).write_csv(clinical)
    assert cli("link", tables_study).code == 0
    released = (tables_study / "outputs" / "release" / "tables" / "baseline.csv").read_text()
    assert "555-0" not in released
    assert "mrn" not in released


def test_patient_level_files_follow_the_umask_and_the_key_is_private(image_study_done: Path, tmp_path: Path) -> None:
    key = image_study_done / "outputs" / "patient_level" / "training.key"
    before = os.umask(0o077)
    try:
        assert cli("link", image_study_done).code == 0
    finally:
        os.umask(before)
    assert key.stat().st_mode & 0o077 == 0
    assert (image_study_done / "outputs" / "patient_level" / "cohort.parquet").stat().st_mode & 0o077 == 0


def test_patients_whose_exclusion_is_not_known_are_told(tables_study: Path) -> None:
    clinical = tables_study / "tables" / "clinical.csv"
    table = pl.read_csv(clinical, infer_schema=False)
    unknown = pl.when(pl.int_range(pl.len()) < 9).then(pl.lit("NA")).otherwise("prior_pci")
    table.with_columns(unknown.alias("prior_pci")).write_csv(clinical)
    answer = cli("link", tables_study)
    assert "patients stay in though prior_pci is not known" in answer.stderr


def test_simulated_scores_stamp_whoever_uses_them(tables_study: Path, image_study_run: Path) -> None:
    made = pl.read_parquet(image_study_run / "outputs" / "patient_level" / "scores.parquet")
    assert made["simulated"].all()
    made.drop_nulls("patient_id").write_parquet(tables_study / "tables" / "scores.parquet")
    for table in ("clinical", "cacs"):
        shutil.copy(image_study_run / "tables" / f"{table}.csv", tables_study / "tables")
    substitute(tables_study / "study.toml", "^simulated = true", "simulated = false")
    substitute(tables_study / "study.toml", r"scores\.csv", "scores.parquet")
    substitute(tables_study / "study.toml", "exclude_between = .*", "exclude_between = []")
    for verb in ("link", "validate", "report"):
        assert cli(verb, tables_study).code == 0
    page = (tables_study / "outputs" / "release" / "report.html").read_text()
    assert "SIMULATED DATA" in page
    assert "asserted by the scores table" in page


def test_no_column_that_was_computed_is_lost_on_the_way_out(
    tables_study_done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: dict[str, set[str]] = {}
    conform = schemas.conform

    def watched(frame: pl.DataFrame, name: str) -> pl.DataFrame:
        computed[name] = set(frame.columns)
        return conform(frame, name)

    monkeypatch.setattr(schemas, "conform", watched)
    for verb in ("link", "validate", "prognosis", "audit"):
        assert cli(verb, tables_study_done).code == 0
    lost = {
        name: columns - set(schemas.columns(name))
        for name, columns in computed.items()
        if name not in ("cohort", "analysis_set") and columns - set(schemas.columns(name))
    }
    assert len(computed) >= 20
    assert lost == {}


# [sensitivity]


def test_sensitivity_repeats_the_main_analysis_and_the_others_are_what_the_study_would_be(
    tables_study_done: Path,
) -> None:
    file, tables = tables_study_done / "study.toml", tables_study_done / "outputs/unprotected/tables"
    # Cut points that are found in the cohort would change with it; sensitivity keeps those of the main analysis.
    file.write_text(file.read_text() + "\n[model]\ncategory_rule = [0.5, 0.3, 0.2]\n")
    for verb in ("prognosis", "sensitivity"):
        assert cli(verb, tables_study_done).code == 0
    keys = ["site", "score_origin", "model", "exposure", "level", "n", "n_events", "coef", "se", "p", "method"]
    found = pl.read_csv(tables / "sensitivity.csv", schema=schemas.columns("sensitivity"))

    def of_cox() -> pl.DataFrame:
        cox = pl.read_csv(tables / "cox.csv", schema=schemas.columns("cox"))
        alone = cox["model"].is_in(found["model"].unique().implode())
        whole = pl.all_horizontal(pl.col("subgroup", "period").is_null())
        return cox.filter(alone, whole, pl.col("term") == "category").select(keys).sort(keys)

    assert found.filter(pl.col("analysis") == "main").select(keys).sort(keys).equals(of_cox())
    changes = {
        "maximum_days_between": (r"^\[cohort\]", "[cohort]\nmaximum_days_between = 90"),
        "pairing": (r"^maximum_days_between = 90", 'pairing = "nearest_before"'),
        "landmark_days": (r"^blanking_days", "landmark_days = 365\nblanking_days"),
    }
    for analysis in ("maximum_days_between", "pairing"):
        substitute(file, *changes[analysis])
        for verb in ("link", "prognosis"):
            assert cli(verb, tables_study_done).code == 0
        assert found.filter(pl.col("analysis") == analysis).select(keys).sort(keys).equals(of_cox()), analysis
    substitute(file, r'^pairing = "nearest_before"', "")
    substitute(file, *changes["landmark_days"])
    for verb in ("link", "prognosis"):
        assert cli(verb, tables_study_done).code == 0
    assert found.filter(pl.col("analysis") == "landmark_days").select(keys).sort(keys).equals(of_cox())


def test_values_that_the_study_has_already_are_not_tried_again(tables_study_done: Path) -> None:
    file = tables_study_done / "study.toml"
    substitute(file, r"^maximum_days_between = \[90\]", "maximum_days_between = [180, 60, 60]")
    assert cli("sensitivity", tables_study_done).code == 0
    found = pl.read_csv(tables_study_done / "outputs/release/tables/sensitivity.csv", infer_schema=False)
    windows = found.filter(pl.col("analysis") == "maximum_days_between")
    assert windows["value"].unique().to_list() == ["60"]


def test_a_window_that_nobody_is_in_keeps_its_rows_and_says_why(tables_study_done: Path) -> None:
    substitute(tables_study_done / "study.toml", r"^landmark_days = \[365\]", "landmark_days = [36500]")
    answer = cli("sensitivity", tables_study_done)
    assert answer.code == 0
    assert "landmark_days 36500: 0 patients compared, 0 with MACE" in answer.stderr
    found = pl.read_csv(tables_study_done / "outputs/release/tables/sensitivity.csv", infer_schema=False)
    rows = found.filter(pl.col("analysis") == "landmark_days")
    assert set(rows["reason"]) == {"nobody can be compared"}
    assert len(rows) == found["exposure"].n_unique()
    assert cli("report", tables_study_done).code == 0


def test_sensitivity_alone_tells_what_stops_link_and_prognosis(tables_study_done: Path) -> None:
    file = tables_study_done / "study.toml"
    text = file.read_text()
    file.write_text(text.replace('"prior_pci"', '"prior_pcy"'))
    told(cli("sensitivity", tables_study_done, "--quiet"), 10, "exclude_if", "Did you mean prior_pci?")
    file.write_text(text.replace("[cohort]", "[cohort]\nminimum_age_years = 119"))
    told(cli("sensitivity", tables_study_done, "--quiet"), 14, "Nobody can be compared", "main analysis")


def test_sensitivity_notes_how_far_its_fits_are_from_lifelines(tables_study_run: Path) -> None:
    manifest = json.loads((tables_study_run / "outputs/unprotected/manifests/sensitivity.json").read_text())
    assert 0 < manifest["facts"]["largest_difference_from_lifelines"] < 1e-6


@pytest.mark.parametrize(
    ("pattern", "replacement", "fact"),
    [
        (r"^(maximum_days_between|pairing|landmark_days) = \[.*", "", "each a list; found none"),
        (r"^landmark_days = \[365\]", "landmark_days = [-1]", "[sensitivity] landmark_days"),
        (r"^landmark_days = \[365\]", "blanking_days = [30]", "[sensitivity] blanking_days is unknown"),
        (r'^cacs = "tables/cacs.csv"', "", "[sensitivity] stands without [tables] cacs = [...]"),
    ],
)
def test_a_faulty_section_is_told(tables_study: Path, pattern: str, replacement: str, fact: str) -> None:
    substitute(tables_study / "study.toml", pattern, replacement)
    told(cli("run", tables_study), 10, fact)


# check


def test_check_writes_what_it_found_and_run_looks_at_the_films_once_they_are_indexed(image_study_run: Path) -> None:
    found = pl.read_csv(image_study_run / "outputs/release/tables/data_problems.csv")
    assert {"films", "cacs", "clinical", "events", "follow_up"} <= set(found["table"])
    assert found.filter(pl.col("problem") == "sex_contradicts_header")["of"].to_list() > [100]


def test_two_columns_swapped_are_told_by_check_and_by_the_page(tables_study_done: Path) -> None:
    swap = {"ct_date": "birth_date", "birth_date": "ct_date"}
    tables = tables_study_done / "tables"
    scores, people = (pl.read_csv(tables / f"{name}.csv", infer_schema=False) for name in ("cacs", "clinical"))
    both = scores.join(people, on="patient_id").unique("patient_id").rename(swap)
    both.select(scores.columns).write_csv(tables / "cacs.csv")
    both.select(people.columns).write_csv(tables / "clinical.csv")
    answer = cli("check", tables_study_done)
    assert answer.code == 0
    n = len(both)
    assert f"warning: cacs.ct_date: before birth in {n:,} of {n:,}, compared with clinical." in answer.stdout
    for verb in ("link", "report"):
        cli(verb, tables_study_done)
    page = (tables_study_done / "outputs/release/report.html").read_text(encoding="utf-8")
    assert "Before birth. Identifiers of two people, or swapped columns" in page


# What a clinician adds up


@pytest.mark.parametrize("study", ["image_study_run", "tables_study_run"])
def test_the_flow_of_patients_chains_from_all_considered_to_the_patients_compared(
    study: str, request: pytest.FixtureRequest
) -> None:
    outputs = request.getfixturevalue(study) / "outputs"
    flow = pl.read_csv(outputs / "unprotected/tables/attrition.csv")
    assert (flow["n_before"] - flow["n_excluded"]).to_list() == flow["n_after"].to_list()
    assert flow["n_before"].to_list()[1:] == flow["n_after"].to_list()[:-1]
    assert flow["n_before"][0] - flow["n_after"][-1] == flow["n_excluded"].sum()
    cohort = pl.read_parquet(outputs / "patient_level/cohort.parquet")
    people = pl.read_parquet(outputs / "patient_level/analysis_set.parquet")
    assert flow.filter(pl.col("step") == "cohort")["n_after"][-1] == len(cohort)
    assert flow["n_before"][-1] == len(people)
    assert flow["n_after"][-1] == people["in_common"].sum()
    for name in ("baseline", "interval"):
        table = pl.read_csv(outputs / f"unprotected/tables/{name}.csv").filter(pl.col("site") == "all")
        counts = table.filter(pl.col("variable") == "patients")["overall"] if name == "baseline" else table["n"]
        assert counts.sum() == len(cohort)


@pytest.mark.parametrize("study", ["image_study_run", "tables_study_run"])
def test_events_and_person_years_are_those_of_the_patients_in_common(
    study: str, request: pytest.FixtureRequest
) -> None:
    outputs = request.getfixturevalue(study) / "outputs"
    people = pl.read_parquet(outputs / "patient_level/analysis_set.parquet").filter("in_common")
    rates = pl.read_csv(outputs / "unprotected/tables/event_rates.csv")
    assert rates["exposure"].n_unique() == 3
    for (site, origin, exposure), rows in rates.group_by("site", "score_origin", "exposure"):
        here = people if site == "all" else people.filter(pl.col("site") == site, pl.col("score_origin") == origin)
        for category, n, events, person_years in rows.select("category", "n", "events", "person_years").iter_rows():
            there = here.filter(pl.col(f"{exposure}_category") == category)
            assert (n, events) == (len(there), (there["status"] == 1).sum())
            assert person_years == pytest.approx(there["time_days"].sum() / 365.25, rel=1e-12)
        assert (rows["n"].sum(), rows["events"].sum()) == (len(here), (here["status"] == 1).sum())
        assert rows["person_years"].sum() == pytest.approx(here["time_days"].sum() / 365.25, rel=1e-12)
