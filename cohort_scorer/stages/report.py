"""report: everything found in release/ -> one page and one manifest."""

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from cohort_scorer import provenance, schemas, storage
from cohort_scorer.errors import EmptyCohortError, MachineError
from cohort_scorer.reporting import canvas, figures, page
from cohort_scorer.stages import Console, Machine, inputs
from cohort_scorer.study import Study

_STEPS = ("check", "index", "link", "train", "score", "validate", "prognosis", "sensitivity", "audit")


def report(study: Study, machine: Machine, console: Console) -> Path:
    """Assemble release/manifest.json and release/report.html from what the steps left."""
    manifests = _manifests(study)
    tables = _tables(study)
    model = _model(study, manifests)
    manifest = _manifest(study, manifests)
    stamps = (*inputs.stamps(study), *_mixed(study, manifests, console))
    drawn = _figures(study, tables, stamps)
    content = page.Page(
        title=study.study.title,
        simulated=study.study.simulated,
        stamps=stamps,
        tables=tables,
        figures=drawn,
        archive=_archive(manifests),
        choices=list(_choices(study, manifests)),
        model=model,
        manifest=manifest,
    )
    storage.write_text(json.dumps(manifest, indent=2, default=str) + "\n", study.release_folder / "manifest.json")
    path = study.release_folder / "report.html"
    storage.write_text(page.render(content), path)
    console.say(f"report: {len(tables)} tables, {len(drawn)} figures")
    return path


def _mixed(study: Study, manifests: dict[str, Any], console: Console) -> tuple[str, ...]:
    """A stamp where a step was run with another study file, or with inputs that have changed since."""
    now = provenance.sha256(study.file)
    current: dict[str, str | None] = {}
    for step in manifests.values():
        for name in step["inputs"]:
            path = study.folder / name
            current[name] = provenance.sha256(path) if path.is_file() else None
    stale = {
        "STUDY.TOML": [name for name, step in manifests.items() if step["study_sha256"] != now],
        "ITS INPUTS": [
            name
            for name, step in manifests.items()
            if any(current[label] not in (None, sha) for label, sha in step["inputs"].items())
        ],
    }
    for what, names in stale.items():
        if names:
            console.say(f"warning: {', '.join(names)} ran before {what.lower()} changed; run again")
    return tuple(f"RUN BEFORE {what} CHANGED: {', '.join(names)}" for what, names in stale.items() if names)


def _manifests(study: Study) -> dict[str, Any]:
    found = {}
    folder = study.unprotected / "manifests"
    shares = sorted(path.stem for path in folder.glob("score-*-of-*.json"))
    for name in (*_STEPS, *shares):
        path = folder / f"{name}.json"
        if path.is_file():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _tables(study: Study) -> dict[str, pl.DataFrame]:
    """The released tables; files that no step wrote are left alone."""
    found = {}
    for path in sorted((study.release_folder / "tables").glob("*.csv")):
        if path.stem in schemas.names():
            try:
                found[path.stem] = pl.read_csv(path, schema=schemas.columns(path.stem))
            except pl.exceptions.PolarsError as fault:
                raise MachineError(
                    f"release/tables/{path.name} is not what a step wrote.",
                    f"Expected the columns that `cohort-scorer schema {path.stem}` lists; found others.",
                    "Run the step that writes it again.",
                ) from fault
    if not found:
        raise EmptyCohortError(
            "There is nothing to report: no table in release/tables.",
            "Expected the tables of link, validate, prognosis or audit; found none.",
            "Run `cohort-scorer run`, or these steps; `cohort-scorer check` tells which the study file has.",
        )
    return found


def _figures(study: Study, tables: dict[str, pl.DataFrame], stamps: Sequence[str]) -> dict[str, str]:
    """The figures as SVG: as they were released, or drawn once more where [release] formats leaves SVG out."""
    if "svg" in study.release.formats:
        released = sorted((study.release_folder / "figures").glob("*.svg"))
        return {path.stem: path.read_text(encoding="utf-8") for path in released}
    return {name: canvas.svg(figure) for name, figure in figures.draw(tables, stamps).items()}


def _choices(study: Study, manifests: dict[str, Any]) -> Iterator[tuple[str, str, Any, str]]:
    """The settings in force; an outcome that goes by a name with the event types that it came to."""
    for section, key, value, origin in study.choices():
        if (section, key) == ("outcome", "components") and isinstance(value, str) and "prognosis" in manifests:
            value = f"{value}: {', '.join(manifests['prognosis']['facts']['components'])}"
        yield section, key, value, origin


def _archive(manifests: dict[str, Any]) -> dict[str, dict[str, int]]:
    if "index" not in manifests:
        return {}
    indexed = manifests["index"]["facts"]
    counts = {
        "files": {
            "found": indexed["n_files"],
            "indexed": indexed["n_rows"],
            "eligible": indexed["n_eligible"],
        },
        "refused_index": indexed["refusals"],
        "ineligible": indexed["not_eligible"],
    }
    if "score" in manifests:
        counts["files"]["scored"] = manifests["score"]["facts"]["n_scored"]
        counts["refused_score"] = manifests["score"]["facts"]["refusals"]
    return counts


def _model(study: Study, manifests: dict[str, Any]) -> dict[str, Any]:
    """Facts of the bundle that made the scores of this run; none where they were made elsewhere."""
    if study.tables.scores:
        return {"scores": "made elsewhere", "score_origin": "asserted by the scores table, not verified"}
    if "score" not in manifests:
        return {}
    content = json.loads((study.bundle / "bundle.json").read_text(encoding="utf-8"))
    facts = manifests["score"]["facts"]
    training = content["training"]
    return {
        "trained_on_simulated_data": content["simulated"],
        "title": content["title"],
        "design": content["design"],
        "backbone": content["backbone"],
        "trainable": content["trainable"],
        "image_size": content["image_size"],
        "integrate": content["integrate"],
        "training_sites": training["sites"],
        "training_patients": training["n_patients"],
        "folds": training["folds"],
        "epochs": _epochs(training),
        "stacking": training["stacking"],
        "category_rule": str(study.require("model").category_rule),
        "score_origin": [f"{count:,} {origin}" for origin, count in facts["score_origin"].items()],
        "model_id": facts["model_id"],
        "network_id": facts["network_id"],
        "preprocessing_id": facts["preprocessing_id"],
        "crossed_cut_points": [f"{count:,} {exposure}" for exposure, count in facts["n_crossed_cuts"].items()],
        "ordinal_violations": [f"{count:,} {exposure}" for exposure, count in facts["n_ordinal_violations"].items()],
    }


def _epochs(training: dict[str, Any]) -> str:
    kept = sorted(training["epochs_kept"].values())
    return f"{training['epochs']} at most; kept {kept[0]} to {kept[-1]}, median {statistics.median(kept):g}"


def _manifest(study: Study, manifests: dict[str, Any]) -> dict[str, Any]:
    return {
        "title": study.study.title,
        "simulated": study.study.simulated,
        "seed": study.study.seed,
        "study_sha256": provenance.sha256(study.file),
        "versions": provenance.versions(),
        "inputs": {Path(name).name: sha for step in manifests.values() for name, sha in step["inputs"].items()},
        "model": {name: manifests["score"]["facts"][name] for name in ("model_id", "network_id", "preprocessing_id")}
        if "score" in manifests
        else {},
        "steps": [
            {"step": name, "wall_seconds": step["wall_seconds"], "study_sha256": step["study_sha256"]}
            for name, step in manifests.items()
        ],
        "facts": {name: step["facts"] for name, step in manifests.items()},
        "files": {
            path.relative_to(study.release_folder).as_posix(): provenance.sha256(path)
            for path in sorted(study.release_folder.rglob("*"))
            if path.is_file() and path.name not in ("manifest.json", "report.html") and not path.name.startswith(".")
        },
    }
