"""simulate: a whole study with known truth."""

from pathlib import Path

from cohort_scorer.simulation.study import write_study
from cohort_scorer.stages import Console


def simulate(folder: Path, n_patients: int, seed: int, images: bool, console: Console) -> Path:
    """Write a simulated study and give the path of its study.toml."""
    with console.progress("Simulating patients", n_patients) as advance:
        return write_study(folder, n_patients=n_patients, seed=seed, images=images, advance=advance)
