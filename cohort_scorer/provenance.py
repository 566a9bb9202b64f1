"""Hashes, versions and the manifest that every step leaves behind."""

import hashlib
import json
import os
import platform
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cohort_scorer import storage
from cohort_scorer.study import Study

_PACKAGES = ("cohort-scorer", "torch", "transformers", "polars", "numpy", "scikit-learn", "lifelines", "pydicom")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: Any) -> str:
    """The SHA-256 of anything that JSON can say, independent of the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that make numbers; metadata only, nothing is imported."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


class Step:
    """One step of a study, from its start to its manifest.

    Args:
        study: The study.
        name: The verb.
    """

    def __init__(self, study: Study, name: str) -> None:
        self.study = study
        self.name = name
        self.inputs: dict[str, str] = {}
        self.facts: dict[str, Any] = {}
        self._started = time.perf_counter()
        self._outputs: list[Path] = []

    @property
    def path(self) -> Path:
        """Where the manifest of this step stands."""
        return self.study.unprotected / "manifests" / f"{self.name}.json"

    def forget_outputs(self) -> None:
        """Remove what an earlier run of this step released, so that nothing stale stands beside new results.

        Files that another step writes too (attrition.csv) stay: its rows in them are still true.
        """
        if not self.path.is_file():
            return
        others = {
            name for path in self.path.parent.glob("*.json") if path != self.path for name in _named_outputs(path)
        }
        for name in _named_outputs(self.path):
            if name not in others:
                (self.study.output / name).unlink(missing_ok=True)
        self.path.unlink()

    def read(self, path: Path, label: str) -> None:
        """Note an input by its path from the study file's folder, and its hash."""
        if path.is_file():
            self.inputs[label] = sha256(path)

    def wrote(self, *paths: Path) -> None:
        """Note files that this step is responsible for."""
        self._outputs += paths

    def _name(self, path: Path) -> str:
        # A bundle may stand outside the output folder.
        return Path(os.path.relpath(path, self.study.output)).as_posix()

    def finish(self) -> Path:
        """Write the manifest and give its path."""
        manifest = {
            "step": self.name,
            "study_sha256": sha256(self.study.file),
            "seed": self.study.study.seed,
            "simulated": self.study.study.simulated,
            "versions": versions(),
            "inputs": self.inputs,
            "facts": self.facts,
            "outputs": {self._name(path): sha256(path) for path in sorted(set(self._outputs))},
            "wall_seconds": round(time.perf_counter() - self._started, 3),
        }
        storage.write_text(json.dumps(manifest, indent=2, default=str) + "\n", self.path)
        return self.path


def _named_outputs(manifest: Path) -> list[str]:
    try:
        return list(json.loads(manifest.read_text(encoding="utf-8"))["outputs"])
    except (ValueError, KeyError, TypeError):
        return []  # A manifest that somebody edited names nothing.
