"""train: cohort -> model bundle with out-of-fold outputs. Continues from the networks that stand."""

import secrets
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cohort_scorer import provenance, schemas, storage
from cohort_scorer.cohort import folds
from cohort_scorer.errors import BundleError, EmptyCohortError
from cohort_scorer.prediction import bundle, model_card, scores
from cohort_scorer.prediction.bundle import NEW, network_name
from cohort_scorer.prediction.integration import EXPOSURES, THRESHOLD_NAMES, passes_thresholds
from cohort_scorer.provenance import Step
from cohort_scorer.stages import Console, Machine, inputs
from cohort_scorer.stages.index import judge_refused
from cohort_scorer.study import ModelSection, Study

_FAMILIAR_TO = network_name("gt0", 0)
"""Its training patients are described, and the fold that it had not seen is what distances are measured by."""


def train(study: Study, machine: Machine, console: Console) -> Path:
    """Train three networks per fold and three on all patients; fit layers and cuts; seal the bundle."""
    from cohort_scorer.imaging import familiarity, networks, radiograph, training

    section = study.require("train")
    step = Step(study, "train")
    people = _training_patients(study, inputs.cohort(study, step))
    scores.fit_layers(people, ("clinical",), section.integrate, section.folds)
    preprocessing_id = radiograph.PREPROCESSING.identifier(section.image_size)
    backbone = _backbone(study)
    training_id = provenance.digest(
        [
            section.model_dump(),
            study.study.seed,
            preprocessing_id,
            _weights_of(backbone),
            people.select("patient_id", "site", "image_id", "true_category").rows(),
        ]
    )
    if (study.bundle / "bundle.json").is_file():
        _refuse_another(study, training_id)
        console.say("train: the bundle stands, trained on these films with these settings")
        step.wrote(study.bundle / "bundle.json")
        step.finish()
        return study.bundle
    if study.bundle.is_dir() and any(study.bundle.iterdir()):
        raise BundleError(
            "The folder of [model] bundle holds files, but no bundle.",
            "Expected no folder there, an empty one, or a bundle; found other files.",
            "Move them away, or name another [model] bundle.",
        )
    scratch = study.patient_level / "training" / training_id[:16]
    device = networks.choose_device(machine.device)
    # A trial: a backbone that cannot be used is told before hours of decoding.
    networks.build(str(backbone), 0, section.image_size)
    people = _decode(study, people, scratch, machine, console)
    settings = training.Settings(str(backbone), section.epochs, section.batch_size, section.learning_rate, device.type)
    jobs = _jobs(people, section.folds, study.study.seed)
    finished = scratch / "networks"
    finished.mkdir(exist_ok=True)
    console.say(f"train: {len(jobs)} networks on {len(people):,} patients, device {device.type}")
    with console.progress("Training networks (epochs)", len(jobs) * section.epochs) as advance:
        training.train_all(jobs, scratch / "images.npy", finished, settings, machine.workers, advance)
    people = _with_logits(people, finished, section.folds)
    features = training.features(finished, _FAMILIAR_TO, scratch / "images.npy", len(people), settings)
    unseen = people["fold"].to_numpy() == 0
    familiar = familiarity.fit(features[~unseen], features[unseen])
    layers, grid = scores.develop(people, section.integrate, section.folds)
    turned = sum(layer.coefficients.get("logit", 0) < 0 for layer in layers.values())
    if turned:
        console.say(f"warning: {turned} of {len(layers)} layers turn a network's answer around: it learned nothing")
    content = _content(study, people, training_id, preprocessing_id) | _told_by_rule(study, people, layers, grid)
    _assemble(study, people, finished, grid, layers, content, familiar)
    shutil.rmtree(scratch.parent)
    step.facts |= {
        "n_layers_turned_around": turned,
        "n_patients": len(people),
        "n_networks": len(jobs),
        "training_id": training_id[:16],
    }
    step.wrote(study.bundle / "bundle.json")
    step.finish()
    return study.bundle


def _training_patients(study: Study, cohort: pl.DataFrame) -> pl.DataFrame:
    """The patients of the training sites with a true score, and the fold of each: a function of seed and patients."""
    section = study.require("train")
    sites = section.sites or cohort["site"].unique().sort().to_list()
    people = cohort.filter(pl.col("site").is_in(sites) & pl.col("cacs").is_not_null())
    people = people.with_columns(passes_thresholds("cacs"))
    counts = [people[name].sum() for name in THRESHOLD_NAMES]
    smallest = min(min(count, len(people) - count) for count in counts)
    if smallest < 2 * section.folds:
        raise EmptyCohortError(
            f"Too few patients to train: {len(people):,} in all, {smallest:,} on one side of a CACS threshold.",
            f"Expected at least {2 * section.folds} on each side of every threshold: 2 for each of the folds.",
            "Add patients, name more [train] sites, or use fewer [train] folds.",
        )
    return folds.assign(people, section.folds, study.study.seed)


def _backbone(study: Study) -> str | Path:
    """[train] backbone: a folder, relative to the study file, or the name of a preset."""
    given: str = study.require("train").backbone
    folder = study.folder / given
    return folder if folder.is_dir() else given


def _weights_of(backbone: str | Path) -> str | None:
    """The hash of the weights that training starts from, where they are a folder's."""
    weights = Path(backbone) / "model.safetensors"
    return provenance.sha256(weights) if isinstance(backbone, Path) and weights.is_file() else None


def _told_by_rule(study: Study, people: pl.DataFrame, layers: Any, grid: pl.DataFrame) -> dict[str, Any]:
    """What the study's category rule makes of the out-of-fold scores: the cuts, and the categories' accuracy."""
    rule = (study.model or ModelSection()).category_rule
    n_folds = study.require("train").folds
    cuts = [
        {"exposure": exposure, "fold": fold, "cuts": scores.cut_points(grid, exposure, fold, rule)}
        for exposure in EXPOSURES
        for fold in (NEW, *range(n_folds))
    ]
    return {
        "cut_points": {"rule": rule, "origin": "out-of-fold scores of the training patients", "cuts": cuts},
        "accuracy": scores.accuracy(people, layers, grid, rule, inputs.categories()),
    }


def _refuse_another(study: Study, training_id: str) -> None:
    content = bundle.load(study.bundle, inputs.categories()).content
    if content["training"]["training_id"] != training_id:
        raise BundleError(
            "Another bundle stands where this study trains its own.",
            "Expected a bundle of these films, true categories, seed and [train]; found one of others.",
            "Take [train] out of the study file to go on with the bundle, or move it away to train again.",
        )


def _decode(study: Study, people: pl.DataFrame, scratch: Path, machine: Machine, console: Console) -> pl.DataFrame:
    """Decode every training film once into images.npy; films that cannot be read leave the training, counted."""
    from cohort_scorer.imaging import radiograph

    done = scratch / "people.parquet"
    if done.is_file():
        return pl.read_parquet(done)
    scratch.mkdir(parents=True, exist_ok=True)
    rows = people.select("image_id").join(inputs.index(study), on="image_id", how="left", maintain_order="left")
    size = study.require("train").image_size
    storage.reserve(scratch / "images.npy", len(people) * size * size * 2)
    images = np.lib.format.open_memmap(scratch / "images.npy", "w+", np.uint16, (len(people), size, size))
    hashes: list[str | None] = [None] * len(people)
    with console.progress("Decoding training radiographs", len(people)) as advance:
        for position, found in inputs.radiographs(study, rows, size, machine):
            if isinstance(found, radiograph.Radiograph):
                images[position] = found.image
                hashes[position] = found.pixel_sha256
            advance(1)
    for place, read in enumerate(np.flatnonzero([sha256 is not None for sha256 in hashes])):
        if place < read:
            images[place] = images[read]
    images.flush()
    people = people.with_columns(pl.Series("pixel_sha256", hashes, pl.String))
    readable = people.drop_nulls("pixel_sha256")
    if len(readable) < len(people):
        console.say(f"train: {len(people) - len(readable):,} radiographs cannot be read and are left out")
        judge_refused(study, len(people) - len(readable), len(people))
    storage.write_parquet(readable, done)
    return readable


def _jobs(people: pl.DataFrame, n_folds: int, seed: int) -> list[Any]:
    from cohort_scorer.imaging import training

    fold = people["fold"].to_numpy()
    jobs = []
    for position, threshold in enumerate(THRESHOLD_NAMES):
        for held_out in (NEW, *range(n_folds)):
            own_seed = int(np.random.SeedSequence([seed, position, held_out + 1]).generate_state(1)[0])
            jobs.append(
                training.Job(
                    network_name(threshold, held_out), people[threshold].to_numpy(), fold == held_out, own_seed
                )
            )
    return jobs


def _with_logits(people: pl.DataFrame, finished: Path, n_folds: int) -> pl.DataFrame:
    from cohort_scorer.imaging import training

    fold = people["fold"].to_numpy()
    for threshold in THRESHOLD_NAMES:
        logits = np.empty(len(people))
        for held_out in range(n_folds):
            logits[fold == held_out] = training.held_out_logits(finished, network_name(threshold, held_out))
        people = people.with_columns(pl.Series(f"logit_{threshold}", logits))
    return people


def _content(study: Study, people: pl.DataFrame, training_id: str, preprocessing_id: str) -> dict[str, Any]:
    from cohort_scorer.imaging import radiograph

    section = study.require("train")
    counts = people.group_by("true_category").len()
    return {
        "title": study.study.title,
        "simulated": study.study.simulated,
        "versions": provenance.versions(),
        "categories": bundle.category_grid(inputs.categories()),
        "preprocessing": {**asdict(radiograph.PREPROCESSING), "size": section.image_size},
        "preprocessing_id": preprocessing_id,
        "image_size": section.image_size,
        "design": section.design,
        "backbone": section.backbone,
        "familiar_to": _FAMILIAR_TO,
        "integrate": list(section.integrate),
        "networks": [
            {"name": network_name(threshold, fold), "threshold": threshold, "fold": fold}
            for threshold in THRESHOLD_NAMES
            for fold in (NEW, *range(section.folds))
        ],
        "training": {
            "training_id": training_id,
            "sites": people["site"].unique().sort().to_list(),
            "n_patients": len(people),
            "n_by_category": dict(sorted(counts.iter_rows())),
            "first_study_date": str(people["study_date"].min()),
            "last_study_date": str(people["study_date"].max()),
            "folds": section.folds,
            "epochs": section.epochs,
            "batch_size": section.batch_size,
            "learning_rate": section.learning_rate,
            "stacking": section.stacking,
            "seed": study.study.seed,
        },
    }


def _assemble(
    study: Study,
    people: pl.DataFrame,
    finished: Path,
    grid: pl.DataFrame,
    layers: Any,
    content: dict[str, Any],
    familiar: Any,
) -> None:
    """Put the bundle together beside its place and rename it: a bundle is whole or not there."""
    key_path = study.patient_level / "training.key"
    if not key_path.is_file():
        storage.write_bytes(secrets.token_bytes(32), key_path, private=True)
    key = key_path.read_bytes()
    content = content | {"key_check": bundle.keyed_hash(key, bundle.KEY_CHECK)}
    partial = study.bundle.with_name(f".{study.bundle.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for network in finished.iterdir():
        shutil.copytree(network, partial / network.name, ignore=shutil.ignore_patterns("*.npy"))
    hashed = pl.DataFrame(
        [
            (bundle.keyed_hash(key, site, patient), bundle.keyed_hash(key, pixels), fold)
            for site, patient, pixels, fold in people.select("site", "patient_id", "pixel_sha256", "fold").iter_rows()
        ],
        schema=schemas.columns("training_patients"),
        orient="row",
    )
    storage.write_parquet(hashed.sort("patient_hash"), partial / "training_patients.parquet")
    familiar.save(partial / bundle.FAMILIARITY)
    storage.write_parquet(grid, partial / "cut_grid.parquet")
    storage.write_text(model_card.write(content), partial / "MODEL_CARD.md")
    bundle.seal(partial, content, layers)
    if study.bundle.exists():
        study.bundle.rmdir()
    partial.rename(study.bundle)
