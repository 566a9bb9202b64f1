"""train: cohort -> model bundle with out-of-fold outputs. Continues from the epochs and networks that stand."""

import hashlib
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cohort_scorer import provenance, schemas, storage
from cohort_scorer.cohort import folds
from cohort_scorer.errors import BundleError, EmptyCohortError, InputTableError, StudyFileError
from cohort_scorer.prediction import bundle, scores
from cohort_scorer.prediction.integration import THRESHOLD_NAMES, passes_thresholds
from cohort_scorer.provenance import Step
from cohort_scorer.reporting.release import publish
from cohort_scorer.stages import Console, Machine, bundling, inputs
from cohort_scorer.stages.index import judge_refused
from cohort_scorer.study import THRESHOLDS, Study

_STOPPING_PARTS = 10  # one of these parts of the training patients chooses the epoch
_PERSON = ["patient_id", "site", "image_id", "study_date", "cacs", "true_category", "age_years", "sex", "bmi"]


@dataclass(frozen=True)
class _Network:
    """A network to train.

    Attributes:
        group: `shared`, or the threshold that it answers.
        thresholds: The thresholds of its outputs.
        left_out: The folds that it must not see: one; two under nested stacking; none for new patients.
    """

    group: str
    thresholds: tuple[str, ...]
    left_out: tuple[int, ...]

    @property
    def name(self) -> str:
        if len(self.left_out) == 2:
            return f"{self.group}-folds{self.left_out[0]}-{self.left_out[1]}"
        return bundle.output_name(self.group, self.left_out[0] if self.left_out else bundle.NEW)


def train(study: Study, machine: Machine, console: Console) -> Path:
    """Train the networks of every fold and those on all patients; fit layers and cuts; seal the bundle.

    A job that has a share of the folds (`machine.folds`) leaves its networks for the run that makes the bundle.
    """
    from cohort_scorer.imaging import networks, radiograph, training

    section = study.require("train")
    step = Step(study, f"train-{machine.share}" if machine.folds else "train")
    people = _training_patients(study, inputs.cohort(study, step))
    scores.fit_layers(people, ("clinical",), section.integrate, section.folds)
    backbone = _backbone(study)
    training_id = provenance.digest(
        [
            bundle.FORMAT,
            section.model_dump(),
            study.study.seed,
            radiograph.PREPROCESSING.identifier(section.image_size),
            _files_of(backbone),
            people.select("patient_id", "site", "image_id", "true_category").rows(),
        ]
    )
    scratch = study.patient_level / "training" / training_id[:16]
    if (study.bundle / "bundle.json").is_file():
        _refuse_another(study, training_id)
        console.say("train: the bundle stands, trained on these films with these settings")
        return _finish(study, step)
    if study.bundle.is_dir() and any(study.bundle.iterdir()):
        raise BundleError(
            "The folder of [model] bundle holds files, but no bundle.",
            "Expected no folder there, an empty one, or a bundle; found other files.",
            "Move them away, or name another [model] bundle.",
        )
    device = networks.choose_device(machine.device)
    # A trial: a backbone that cannot be used is told before hours of decoding.
    networks.build(str(backbone), 0, section.image_size)
    with storage.alone(scratch / ".decoding.lock"):
        people = _decode(study, people, scratch, machine, console)
    _refuse_one_film_in_two_folds(people)
    settings = training.Settings(
        str(backbone), study.study.seed, section.epochs, section.batch_size, section.learning_rate, device.type
    )
    finished = _train_networks(study, people, scratch, settings, machine, console)
    if machine.folds:
        step.facts |= {"folds": list(machine.folds), "training_id": training_id[:16]}
        step.finish()
        return finished
    people = _with_logits(people, finished, section)
    entries, weights = _bundled(section, finished, settings)
    content = _content(study, people, finished, settings, training_id) | {
        "networks": entries,
        "familiar_to": entries[0]["name"],
    }
    familiar = _familiarity(people, weights / entries[0]["name"], scratch / "images.npy", settings)
    bundling.assemble(study, step, people, content, weights, familiar, _curves(finished, section), console)
    step.facts |= {"n_patients": len(people), "n_networks": len(entries), "training_id": training_id[:16]}
    return _finish(study, step)


def _finish(study: Study, step: Step) -> Path:
    """Publish the curves that the bundle holds, and forget what it was made of."""
    shutil.rmtree(study.patient_level / "training", ignore_errors=True)
    for path in step.path.parent.glob("train-folds-*.json"):
        path.unlink()
    step.wrote(study.bundle / "bundle.json")
    curves = storage.read_own(study.bundle / bundle.CURVES)
    publish(step, {"training_curves": curves}, inputs.stamps(study))
    step.finish()
    return study.bundle


def _training_patients(study: Study, cohort: pl.DataFrame) -> pl.DataFrame:
    """The patients of the training sites with a true score, and the fold of each: a function of seed and patients."""
    section = study.require("train")
    sites = section.sites or cohort["site"].unique().sort().to_list()
    people = cohort.select(_PERSON).filter(pl.col("site").is_in(sites) & pl.col("cacs").is_not_null())
    people = people.with_columns(passes_thresholds("cacs"))
    repeated = len(people) - people["patient_id"].n_unique()
    if repeated:
        raise InputTableError(
            f"{repeated:,} of {len(people):,} rows of the cohort repeat a patient.",
            "Expected every patient once: one in two folds would be scored by networks that saw the patient.",
            "Run `cohort-scorer link` again; it writes one row per patient.",
        )
    counts = [people[name].sum() for name in THRESHOLD_NAMES]
    smallest = min(min(count, len(people) - count) for count in counts)
    if smallest < 2 * section.folds:
        raise EmptyCohortError(
            f"Too few patients to train: {len(people):,} in all, {smallest:,} on one side of a CACS threshold.",
            f"Expected at least {2 * section.folds} on each side of every threshold: 2 for each of the folds.",
            "Add patients, name more [train] sites, or use fewer [train] folds.",
        )
    return folds.assign(people, section.folds, study.study.seed)


def _refuse_one_film_in_two_folds(people: pl.DataFrame) -> None:
    """One person under two identifiers, known by the film: whichever fold scores it, its networks saw the film."""
    spread = people.filter(pl.col("fold").n_unique().over("pixel_sha256") > 1)
    if len(spread):
        raise InputTableError(
            f"{len(spread):,} of {len(people):,} training patients share a radiograph with a patient in another fold.",
            "Expected every person under one patient_id: networks would be judged on films that they were trained on.",
            "Give them one patient_id, or take them out of the clinical table; then run `cohort-scorer link` again.",
        )


def _backbone(study: Study) -> str | Path:
    """[train] backbone: a folder, relative to the study file, or the name of a preset."""
    given: str = study.require("train").backbone
    folder = study.folder / given
    return folder if folder.is_dir() else given


def _files_of(backbone: str | Path) -> dict[str, str]:
    """The hashes of what training starts from, where it is a folder's."""
    names = ("config.json", "preprocessor_config.json", "model.safetensors")
    found = [backbone / name for name in names] if isinstance(backbone, Path) else []
    return {path.name: provenance.sha256(path) for path in found if path.is_file()}


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
    rows = people.select("image_id").join(inputs.index(study), on="image_id", how="left", maintain_order="left")
    size = study.require("train").image_size
    storage.reserve(scratch / "images.npy", len(people) * size * size * 2)
    images = np.lib.format.open_memmap(scratch / "images.npy", "w+", np.uint16, (len(people), size, size))
    hashes: list[str | None] = [None] * len(people)
    with (
        console.progress("Decoding training radiographs", len(people)) as advance,
        closing(inputs.radiographs(study, rows, size, machine)) as films,
    ):
        for position, found in films:
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


def _groups(section: Any) -> dict[str, tuple[str, ...]]:
    """The networks that are trained on the same patients, with the thresholds of their outputs."""
    return {"shared": THRESHOLD_NAMES} if section.design == "shared" else {name: (name,) for name in THRESHOLD_NAMES}


def _refits(section: Any) -> list[_Network]:
    """The networks for new patients."""
    return [_Network(group, thresholds, ()) for group, thresholds in _groups(section).items()]


def _planned(section: Any) -> list[_Network]:
    """The networks that leave patients out: one per fold, and under nested stacking one per pair of folds."""
    left_out: list[tuple[int, ...]] = [(fold,) for fold in range(section.folds)]
    if section.stacking == "nested":
        left_out += [(one, two) for one in range(section.folds) for two in range(one + 1, section.folds)]
    return [_Network(group, thresholds, parts) for group, thresholds in _groups(section).items() for parts in left_out]


def _train_networks(
    study: Study, people: pl.DataFrame, scratch: Path, settings: Any, machine: Machine, console: Console
) -> Path:
    """Train what does not stand yet: the networks of the folds, then, unless folds are shared out, the refits."""
    from cohort_scorer.imaging import training

    section = study.require("train")
    unknown = [fold for fold in machine.folds if fold >= section.folds]
    if unknown:
        raise StudyFileError(
            f"--folds names {len(unknown)} folds that there are not: {', '.join(map(str, unknown))}.",
            f"Expected folds from 0 to {section.folds - 1}, since [train] folds is {section.folds}.",
            "Correct --folds.",
        )
    finished = scratch / "networks"
    finished.mkdir(exist_ok=True)
    data = scratch / "images.npy"
    if section.trainable == "head":
        n_images = len(np.load(data, mmap_mode="r"))  # those that cannot be read have their places at the end
        with storage.alone(scratch / ".features.lock"), console.progress("Features of the backbone", n_images) as on:
            data = training.embed(data, scratch, settings, machine.workers, on)
    planned = _planned(section)
    # A network that leaves two folds out belongs to the smaller.
    mine = [network for network in planned if not machine.folds or network.left_out[0] in machine.folds]
    refits = [] if machine.folds else _refits(section)
    console.say(f"train: {len(mine) + len(refits)} networks on {len(people):,} patients, device {settings.device}")
    with console.progress("Training networks (epochs)", (len(mine) + len(refits)) * section.epochs) as advance:
        jobs = [_job(network, people, section.epochs, study.study.seed) for network in mine]
        training.train_all(jobs, data, finished, settings, machine.workers, advance)
        jobs = []
        for network in refits:
            stopped = [
                training.trained(finished, other.name).epochs
                for other in planned
                if other.group == network.group and len(other.left_out) == 1
            ]
            epochs = int(np.floor(np.median(stopped) + 0.5))
            advance(section.epochs - epochs, "")
            jobs.append(_job(network, people, epochs, study.study.seed))
        training.train_all(jobs, data, finished, settings, machine.workers, advance)
    return finished


def _job(network: _Network, people: pl.DataFrame, epochs: int, seed: int) -> Any:
    from cohort_scorer.imaging import training

    held_out = people["fold"].is_in(network.left_out).to_numpy()
    members = ~held_out
    stopping = np.zeros(len(people), np.bool_)
    if network.left_out:
        seen = people.select("patient_id", "site", "true_category").with_row_index("position").filter(members)
        parts = folds.assign(seen, _STOPPING_PARTS, f"{seed}-stopping")
        stopping[parts.filter(pl.col("fold") == 0)["position"].to_numpy()] = True
    return training.Job(
        network.name,
        people.select(network.thresholds).to_numpy(),
        np.flatnonzero(members & ~stopping),
        np.flatnonzero(stopping),
        np.flatnonzero(held_out),
        int(hashlib.sha256(f"{seed}-{network.name}".encode()).hexdigest()[:8], 16),
        epochs,
    )


def _with_logits(people: pl.DataFrame, finished: Path, section: Any) -> pl.DataFrame:
    """Add logit_<threshold>, out of fold; under nested stacking also logit_<threshold>_without_<fold>."""
    from cohort_scorer.imaging import training

    fold = people["fold"].to_numpy()
    columns: dict[str, np.ndarray] = {}
    for network in _planned(section):
        found = training.trained(finished, network.name).logits
        held_out = np.isin(fold, network.left_out)
        for position, threshold in enumerate(network.thresholds):
            for without in network.left_out if len(network.left_out) == 2 else (None,):
                name = f"logit_{threshold}" if without is None else f"logit_{threshold}_without_{without}"
                column = columns.setdefault(name, np.full(len(people), np.nan))
                mine = held_out & (fold != without) if without is not None else held_out
                column[mine] = found[mine[held_out], position]
    return people.with_columns(pl.Series(name, column, nan_to_null=True) for name, column in columns.items())


def _content(study: Study, people: pl.DataFrame, finished: Path, settings: Any, training_id: str) -> dict[str, Any]:
    """What bundle.json tells of the training."""
    from cohort_scorer.imaging import training

    section = study.require("train")
    counts = people.group_by("true_category").len()
    epochs = {path.name: training.trained(finished, path.name).epochs for path in sorted(finished.glob("[!.]*"))}
    return {
        "title": study.study.title,
        "simulated": study.study.simulated,
        "design": section.design,
        "trainable": section.trainable,
        "backbone": section.backbone,
        "image_size": section.image_size,
        "integrate": list(section.integrate),
        "training": {
            "training_id": training_id,
            "sites": people["site"].unique().sort().to_list(),
            "n_patients": len(people),
            "n_by_category": dict(sorted(counts.iter_rows())),
            "first_study_date": str(people["study_date"].min()),
            "last_study_date": str(people["study_date"].max()),
            "folds": section.folds,
            "epochs": section.epochs,
            "epochs_kept": epochs,
            "batch_size": section.batch_size,
            "learning_rate": section.learning_rate,
            "stacking": section.stacking,
            "seed": study.study.seed,
            "device": settings.device,
        },
    }


def _bundled(section: Any, finished: Path, settings: Any) -> tuple[list[dict[str, Any]], Path]:
    """The networks of the bundle with their outputs, that without fold 0 first, and the folder that holds them."""
    from cohort_scorer.imaging import networks, training

    single = [network for network in _planned(section) if len(network.left_out) == 1]
    outputs = {
        network.name: [
            {"threshold": threshold, "fold": network.left_out[0] if network.left_out else bundle.NEW}
            for threshold in network.thresholds
        ]
        for network in (*single, *_refits(section))
    }
    if section.trainable == "all":
        return [{"name": name, "outputs": given} for name, given in outputs.items()], finished
    joined = finished.with_name("joined")
    networks.save(training.join_heads(finished, list(outputs), settings, section.image_size), joined / "backbone")
    return [{"name": "backbone", "outputs": [output for given in outputs.values() for output in given]}], joined


def _familiarity(people: pl.DataFrame, network: Path, images: Path, settings: Any) -> Any:
    """Describe the training films as a network sees them that, if it was trained at all, was trained without fold 0."""
    from cohort_scorer.imaging import familiarity, networks, training

    films = np.load(images, mmap_mode="r")[: len(people)]
    seen = training.features(networks.load(network), films, settings)
    unseen = people["fold"].to_numpy() == 0
    return familiarity.fit(seen[~unseen], seen[unseen])


def _curves(finished: Path, section: Any) -> pl.DataFrame:
    """Losses and AUCs by network, threshold and epoch."""
    from cohort_scorer.imaging import training

    names = dict(zip(THRESHOLD_NAMES, THRESHOLDS, strict=True))
    rows = []
    for network in (*_planned(section), *_refits(section)):
        found = training.trained(finished, network.name)
        for epoch in found.curve:
            for position, threshold in enumerate(network.thresholds):
                several = {key: value[position] for key, value in epoch.items() if isinstance(value, list)}
                place = {"network": network.name, "threshold": names[threshold]}
                rows.append(place | epoch | several | {"kept": epoch["epoch"] == found.epochs})
    return schemas.conform(pl.DataFrame(rows, infer_schema_length=None), "training_curves")
