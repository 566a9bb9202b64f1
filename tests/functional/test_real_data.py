"""The tool on real files: a heap of DICOM as an archive, and real radiographs as PNG through a listing.

The bundle is trained on simulated films, so its scores mean nothing; what is shown is that every file is accounted for
and that a film scores the same however it is stored.
"""

from pathlib import Path

import polars as pl
import pytest

from cohort_scorer import schemas
from cohort_scorer import study as study_file
from cohort_scorer.stages import Machine, Silent
from cohort_scorer.stages.index import index
from cohort_scorer.stages.link import link
from cohort_scorer.stages.run import run
from cohort_scorer.stages.score import score

REAL = Path(__file__).parents[3] / "shared" / "realdata"
DICOM, PNG = REAL / "dicom", REAL / "png" / "ml-workgroup+covid-19-image-repository"
PAGE = Path(__file__).parents[2] / "docs" / "tables.md"
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


def documented_map(heading: str) -> str:
    """The map below a heading of docs/tables.md."""
    section = PAGE.read_text(encoding="utf-8").split(f" {heading}\n", 1)[1]
    return section.split("```toml\n", 1)[1].split("```", 1)[0]


def ml_workgroup_study(folder: Path, bundle: Path) -> study_file.Study:
    """The excerpt as it is. It has no death and no age, so that ICU admission after the film is the event."""
    table = PNG / "data.csv"
    text = f"""
[archive]
root = "{PNG / "png"}"
listing = "{table}"
[tables]
clinical = "{table}"
follow_up = "{table}"
events = "{table}"
{documented_map("ml-workgroup COVID-19 image repository")}
[cohort]
minimum_age_years = 0
[outcome]
name = "ICU admission"
components = ["icu_admission"]
horizon_years = [0.05]
[comparison]
adjust_for = []
[audit]
strata = ["sex"]
"""
    return study_of(folder, bundle, text, shifted=True)


def reasons(study: study_file.Study) -> dict[str, int]:
    found = pl.read_csv(study.unprotected / "tables" / "attrition.csv").filter(pl.col("n_excluded") > 0)
    return dict(found.select("reason", "n_excluded").iter_rows())


def test_png_listing_becomes_scores_kaplan_meier_and_a_report(tmp_path: Path, trained_bundle: Path) -> None:
    study = ml_workgroup_study(tmp_path, trained_bundle)
    report = run(study, MACHINE, CONSOLE)
    n_films = len(list((PNG / "png").glob("*.png")))
    assert len(pl.read_parquet(study.patient_level / "scores.parquet")) == n_films == 30
    assert reasons(study) == {"event between the scans": 2, "no time after t0": 2}
    curve = pl.read_csv(study.release_folder / "tables" / "kaplan_meier.csv")
    analysed = pl.read_parquet(study.patient_level / "analysis_set.parquet")
    assert curve["n_events"].sum() == (analysed["status"] == 1).sum() == 2
    assert len(analysed) == 3
    assert report.is_file()


def test_a_listing_with_other_peoples_columns_is_linked_as_it_is(tmp_path: Path, trained_bundle: Path) -> None:
    folder = REAL / "png" / "hida6+covid-chestxray-dataset"
    table = folder / "metadata.csv"
    text = f"""
[archive]
root = "{folder}"
listing = "{table}"
[tables]
clinical = "{table}"
{documented_map("covid-chestxray-dataset")}
[cohort]
minimum_age_years = 0
"""
    study = study_of(tmp_path, trained_bundle, text, shifted=True)
    index(study, MACHINE, CONSOLE)
    cohort = pl.read_parquet(link(study, MACHINE, CONSOLE))
    assert len(cohort) == 6
    assert cohort["sex"].to_list() == ["M", "M", "M", "M", "F", "M"]
    assert reasons(study) == {}
