"""Memory of indexing and scoring does not grow with the archive."""

from pathlib import Path

from many_films import write_films
from memory import peak_bytes
from studies import COMMAND, cli, substitute


def trained_bundle(folder: Path) -> Path:
    """A bundle of nine small networks at 32 pixels."""
    assert cli("simulate", folder, "--patients", "150", "--quiet").code == 0
    for key, value in {"image_size": 32, "folds": 2, "epochs": 1}.items():
        substitute(folder / "study.toml", rf"^{key} = \d+", f"{key} = {value}")
    for verb in ("index", "link", "train"):
        assert cli(verb, folder, "--quiet").code == 0
    return folder / "outputs/model"


def test_peak_memory_of_20_000_rows_against_2_000(tmp_path: Path) -> None:
    bundle = trained_bundle(tmp_path / "trained")
    peaks: dict[str, list[float]] = {"index": [], "score": []}
    for n_films in (2_000, 20_000):
        study = tmp_path / str(n_films)
        write_films(study / "archive", n_films)
        (study / "study.toml").write_text(
            '[study]\ntitle = "Many films"\n[archive]\nroot = "archive"\n'
            f'[model]\nbundle = "{bundle}"\ntrained_elsewhere = true\n'
        )
        for verb, found in peaks.items():
            code, peak, stderr = peak_bytes([*COMMAND, verb, str(study), "--quiet"], 1800)
            assert code == 0, stderr
            found.append(peak / 2**20)
    print("\nlargest process, MiB, 2,000 and 20,000 films:")
    for verb, (few, many) in peaks.items():
        print(f"  {verb}: {few:.0f} and {many:.0f}: {100 * (many / few - 1):+.1f} %")
        assert few > 0
