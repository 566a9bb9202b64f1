"""The tool on real files: a heap of DICOM as an archive, and real radiographs as PNG through a listing.

The bundle is trained on simulated films, so its scores mean nothing; what is shown is that every file is accounted for
and that a film scores the same however it is stored.
"""

import datetime as dt
from pathlib import Path

import polars as pl
import pytest

from cohort_scorer import schemas
from cohort_scorer import study as study_file
from cohort_scorer.stages import Machine, Silent
from cohort_scorer.stages.index import index
from cohort_scorer.stages.run import run
from cohort_scorer.stages.score import score

REAL = Path(__file__).parents[3] / "shared" / "realdata"
DICOM, PNG = REAL / "dicom", REAL / "png" / "ml-workgroup+covid-19-image-repository"
MACHINE, CONSOLE = Machine(device="cpu", workers=2), Silent()

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="the real files lie outside the project")


@pytest.fixture
def trained_bundle(image_study_run: Path) -> Path:
    return image_study_run / "outputs" / "model"


def study_of(folder: Path, bundle: Path, text: str, shifted: bool = False) -> study_file.Study:
    head = f'[study]\ntitle = "Real files"\ndates_shifted_per_subject = {str(shifted).lower()}\n'
    model = f'[model]\nbundle = "{bundle}"\ntrained_elsewhere = true\n'
    (folder / "study.toml").write_text(head + model + text)
    return study_file.load(folder)


def refusals(study: study_file.Study, step: str) -> pl.DataFrame:
    paths = (study.patient_level / "refusals").glob(f"{step}-*.parquet")
    return pl.concat([pl.DataFrame(schema=schemas.columns("refusals")), *map(pl.read_parquet, paths)])


def test_every_file_of_a_dicom_heap_is_accounted_for(tmp_path: Path, trained_bundle: Path) -> None:
    study = study_of(
        tmp_path,
        trained_bundle,
        f'[archive]\nroot = "{DICOM}"\nmaximum_refused_percent = 100\nunknown_view = "include"',
    )
    rows = pl.concat(pl.read_parquet(path) for path in index(study, MACHINE, CONSOLE).glob("part-*.parquet"))
    scores = pl.read_parquet(score(study, MACHINE, CONSOLE))
    n_files = sum(path.is_file() for path in DICOM.rglob("*"))
    assert n_files > 200
    assert len(rows) + len(refusals(study, "index")) == n_files
    assert len(scores) + len(refusals(study, "score")) == rows["eligible"].sum() > 0


def test_one_film_in_four_lossless_syntaxes_has_one_score(tmp_path: Path, trained_bundle: Path) -> None:
    films = [path for path in DICOM.rglob("RG3_*") if path.stem in ("RG3_J2KR", "RG3_JLSL", "RG3_JPLL", "RG3_RLE")]
    assert len(films) == 4
    pl.DataFrame(
        {"uri": [path.relative_to(DICOM).as_posix() for path in films], "patient_id": ["11RG3"] * 4, "view": ["AP"] * 4}
    ).write_csv(tmp_path / "listing.csv")
    study = study_of(tmp_path, trained_bundle, f'[archive]\nroot = "{DICOM}"\nlisting = "listing.csv"')
    index(study, MACHINE, CONSOLE)
    scores = pl.read_parquet(score(study, MACHINE, CONSOLE))
    assert len(scores) == 4
    outputs = pl.read_parquet(next((study.patient_level / "network_outputs").glob("part-*.parquet")))
    assert outputs.select("^logit_.*$", "pixel_sha256").n_unique() == 1
    assert scores.select("^cxr_.*$").n_unique() == 1


def write_ml_workgroup_study(folder: Path, bundle: Path) -> study_file.Study:
    """Offsets are days from the film; the day of admission becomes 2100-01-01, as for shifted dates.

    This excerpt has no death and no age, so that ICU admission after the film is an event beside death.
    """
    rows = pl.read_csv(PNG / "data.csv").with_columns(
        (dt.date(2100, 1, 1) - pl.duration(days=pl.col("admission_offset"))).alias("study_date")
    )

    def days_after(offset: str) -> pl.Expr:
        return pl.col("study_date") + pl.duration(days=pl.col(offset).cast(pl.Int64))

    tables = folder / "tables"
    tables.mkdir()
    rows.select(
        pl.format("{}.png", "image_id").alias("uri"),
        "patient_id",
        "study_date",
        pl.col("projection").str.to_uppercase().alias("view"),
    ).write_csv(tables / "listing.csv")
    rows.group_by("patient_id", maintain_order=True).agg(
        pl.col("sex").first().replace_strict({"m": "M", "w": "F", "f": "F"})
    ).write_csv(tables / "clinical.csv")
    events = pl.concat(
        rows.select("patient_id", pl.lit(name).alias("event_type"), days_after(offset).alias("event_date")).drop_nulls()
        for name, offset in (("death", "death_offset"), ("icu_admission", "icu_admission_offset"))
    ).unique(maintain_order=True)
    events.write_csv(tables / "events.csv")
    rows.group_by("patient_id", maintain_order=True).agg(
        pl.max_horizontal("study_date", days_after("icu_release_offset"), days_after("death_offset"))
        .max()
        .alias("last_contact_date")
    ).write_csv(tables / "follow_up.csv")
    components = [name for name in ("death", "icu_admission") if name in events["event_type"]]
    return study_of(
        folder,
        bundle,
        f"""
[archive]
root = "{PNG / "png"}"
listing = "tables/listing.csv"
[tables]
clinical = "tables/clinical.csv"
follow_up = "tables/follow_up.csv"
events = "tables/events.csv"
[cohort]
minimum_age_years = 0
[outcome]
name = "death or ICU admission"
components = {components}
horizon_years = [0.05]
[comparison]
adjust_for = []
[audit]
strata = ["sex"]
""",
        shifted=True,
    )


def test_png_listing_becomes_scores_kaplan_meier_and_a_report(tmp_path: Path, trained_bundle: Path) -> None:
    study = write_ml_workgroup_study(tmp_path, trained_bundle)
    report = run(study, MACHINE, CONSOLE)
    n_films = len(list((PNG / "png").glob("*.png")))
    assert len(pl.read_parquet(study.patient_level / "scores.parquet")) == n_films == 30
    curve = pl.read_csv(study.release_folder / "tables" / "kaplan_meier.csv")
    analysed = pl.read_parquet(study.patient_level / "analysis_set.parquet")
    assert curve["n_events"].sum() == (analysed["status"] == 1).sum() > 0
    page = report.read_text()
    assert "trained on simulated data" in page
    assert "kaplan_meier" in page
