"""release/analysis.R: where R is installed it finds the run's numbers again, and notices one that was changed."""

import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest
from studies import cli, substitute

RSCRIPT = shutil.which("Rscript")
needs_r = pytest.mark.skipif(RSCRIPT is None, reason="R is not installed")


def refit(study: Path) -> subprocess.CompletedProcess[str]:
    script = study / "outputs/release/analysis.R"
    return subprocess.run([str(RSCRIPT), str(script)], capture_output=True, text=True, timeout=300)


def test_the_script_holds_code_and_the_studys_choices_only(tables_study_run: Path) -> None:
    script = (tables_study_run / "outputs/release/analysis.R").read_text()
    ids = pl.read_parquet(tables_study_run / "outputs/patient_level/analysis_set.parquet")["patient_id"]
    assert not any(name in script for name in ids)
    assert 'covariates <- c("age_at_t0_years" = "number", "sex" = "text", "bmi" = "number")' in script
    assert "{{" not in script


@needs_r
def test_r_finds_the_numbers_of_the_run_again(tables_study_run: Path) -> None:
    done = refit(tables_study_run)
    assert done.returncode == 0, done.stdout + done.stderr
    for what in ("Cox coefficients", "proportional hazards", "Uno's C", "ratio of hazard ratios (log)"):
        assert what in done.stdout
    assert "FALSE" not in done.stdout


@needs_r
@pytest.mark.parametrize(
    ("table", "column"),
    [("cox", "coef"), ("kaplan_meier", "survival"), ("comparison", "estimate"), ("cox_fit", "uno_c")],
)
def test_a_number_that_was_changed_is_noticed(tables_study_done: Path, table: str, column: str) -> None:
    path = tables_study_done / f"outputs/unprotected/tables/{table}.csv"
    rows = pl.read_csv(path, infer_schema_length=None)
    chosen = pl.col(column).is_not_null()
    if table == "comparison":
        chosen &= (pl.col("statistic") == "ratio_of_hazard_ratios") & (pl.col("method") == "dfbeta")
    elif table == "cox":
        chosen &= pl.col("subgroup").is_null() & pl.col("period").is_null()
    first = rows.select(chosen.arg_max()).item()
    value = pl.when(pl.int_range(pl.len()) == first).then(pl.col(column) + 3e-6).otherwise(column)
    rows.with_columns(value.alias(column)).write_csv(path)
    done = refit(tables_study_done)
    assert done.returncode == 1
    assert "FALSE" in done.stdout


@needs_r
def test_text_and_missing_sites_are_read_as_the_tool_reads_them(tables_study: Path) -> None:
    """A covariate of digits with leading zeros, one of truth values, and nobody's site stated."""
    clinical = tables_study / "tables/clinical.csv"
    rows = pl.read_csv(clinical, infer_schema=False)
    ward = pl.int_range(pl.len()).mod(3).cast(pl.String).str.zfill(2).str.pad_start(3, "w")
    rows.drop("site").with_columns(ward.alias("ward")).write_csv(clinical)
    substitute(
        tables_study / "study.toml", r"^adjust_for = .*$", 'adjust_for = ["age_at_t0_years", "ward", "diabetes"]'
    )
    substitute(tables_study / "study.toml", r"^strata = .*$", 'strata = ["sex"]')
    for verb in ("link", "prognosis"):
        assert cli(verb, tables_study, "--quiet").code == 0
    done = refit(tables_study)
    assert done.returncode == 0, done.stdout + done.stderr
