"""Two small studies, made and run once for all functional tests; who damages one takes a copy."""

import re
from pathlib import Path

import pytest
from studies import cli, copy, edit


def quicker(text: str) -> str:
    """Figures as SVG alone, and few resamples: with more of either they take as long as everything else."""
    text = text.replace("[comparison]\n", "[comparison]\nbootstrap_replicates = 40\n")
    return text.replace('disclosure = "none"', 'disclosure = "none"\nformats = ["svg"]')


def smaller(text: str) -> str:
    """Two folds, two epochs, 32 pixels: networks that learn nothing, in seconds."""
    for key, value in {"image_size": 32, "folds": 2, "epochs": 2}.items():
        text, found = re.subn(rf"^{key} = \d+", f"{key} = {value}", text, flags=re.MULTILINE)
        assert found == 1
    return text


@pytest.fixture(scope="session")
def tables_study_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,500 patients with scores made elsewhere, after `run`. Read only."""
    folder = tmp_path_factory.mktemp("tables") / "study"
    assert cli("simulate", folder, "--no-images", "--patients", "1500").code == 0
    edit(folder / "study.toml", quicker)
    assert cli("run", folder).code == 0
    return folder


@pytest.fixture(scope="session")
def image_study_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 patients with films and a bundle trained on them, after `run`. Read only."""
    folder = tmp_path_factory.mktemp("images") / "study"
    assert cli("simulate", folder, "--patients", "150").code == 0
    edit(folder / "study.toml", lambda text: smaller(quicker(text)))
    assert cli("run", folder, "--workers", "1").code == 0
    return folder


@pytest.fixture
def tables_study(tables_study_run: Path, tmp_path: Path) -> Path:
    """The study of tables, not run yet."""
    return copy(tables_study_run, tmp_path / "study")


@pytest.fixture
def tables_study_done(tables_study_run: Path, tmp_path: Path) -> Path:
    """The study of tables with its outputs."""
    return copy(tables_study_run, tmp_path / "study", outputs=True)


@pytest.fixture
def image_study(image_study_run: Path, tmp_path: Path) -> Path:
    """The study of films, not run yet."""
    return copy(image_study_run, tmp_path / "study")


@pytest.fixture
def image_study_done(image_study_run: Path, tmp_path: Path) -> Path:
    """The study of films with its outputs."""
    return copy(image_study_run, tmp_path / "study", outputs=True)
