"""Training of networks, or of heads on their features, on resized radiographs. Knows no patient, fold or category.

On a CPU every network is trained by one thread of one process: small networks gain nothing from more threads, and two
networks side by side are twice as fast. On CUDA they are trained one after the other, in bfloat16 where that is safe.

What is random in an epoch depends on the seed and on the epoch alone: a network that goes on from a checkpoint ends
with the bytes that it would have ended with.
"""

import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import nn

from cohort_scorer import storage
from cohort_scorer import workers as processes
from cohort_scorer.errors import ConvergenceError, MachineError
from cohort_scorer.imaging import networks

_MAXIMUM_ROTATION = 0.07
_MAXIMUM_SHIFT = 0.06
_MAXIMUM_SCALE = 0.06
_MAXIMUM_GAIN = 0.1
_WEIGHT_DECAY = 0.01
_LEAST_PATIENCE = 3
_FILMS_AT_ONCE = 500
_STATISTICS_BATCHES = 16

Advance = Callable[[int, str], None]
"""advance(epochs or images done, what the last one gave)"""

_KILLED = MachineError(
    "A process that trained a network was killed; what was finished stands.",
    "Expected memory for one batch of every network trained side by side; found too little, perhaps.",
    "Run the same command again with fewer --workers.",
)


@dataclass(frozen=True)
class Settings:
    """What all networks of a bundle have in common.

    Attributes:
        backbone: A preset or a folder, as `networks.build` takes them.
        seed: Seeds the weights of a backbone that only heads are trained on.
        epochs: Most epochs; the learning rate rises and falls once over them (Smith LN, arXiv:1803.09820).
        batch_size: Images per step; what is left over in an epoch is drawn in another.
        learning_rate: At its peak.
        device: `cpu` or `cuda`.
    """

    backbone: str
    seed: int
    epochs: int
    batch_size: int
    learning_rate: float
    device: str


@dataclass(frozen=True, eq=False)
class Job:
    """One network to train.

    Attributes:
        name: Name of the network and of its folder.
        outcome: (n, K), true where an output should be high, for all n images.
        members: Positions of the images to train on.
        stopping: Positions of images by whose loss the best epoch is chosen; none: the last epoch is kept.
        held_out: Positions of the images that the network predicts when it is done.
        seed: Seeds weights, order and augmentation.
        epochs: Most epochs of this network, at most those of the settings.
    """

    name: str
    outcome: NDArray[np.bool_]
    members: NDArray[np.int64]
    stopping: NDArray[np.int64]
    held_out: NDArray[np.int64]
    seed: int
    epochs: int


@dataclass(frozen=True)
class Trained:
    """What a finished job left behind.

    Attributes:
        logits: (m, K) float64 of its held-out images, in their order.
        epochs: How many epochs the weights were trained for.
        curve: Per epoch: epoch (from 1), learning_rate (at its end), and per output training_loss (augmented images,
            weights in motion), stopping_loss, stopping_auc (null without stopping images, or with one outcome only).
    """

    logits: NDArray[np.float64]
    epochs: int
    curve: list[dict[str, Any]]


def train_all(
    jobs: Sequence[Job], data: Path, folder: Path, settings: Settings, workers: int, advance: Advance
) -> None:
    """Train the networks that do not stand yet, each into folder/<name>.

    Args:
        jobs: The networks.
        data: A .npy file: (n, S, S) uint16, images for whole networks; or (n, d) float32, features for heads.
        folder: Receives a folder per network, with its weights and what `trained` reads; one that stands there is
            finished and is kept. Checkpoints of the others lie beside it until they are finished.
        settings: What they have in common.
        workers: Processes side by side on a CPU.
        advance: Called with the number of epochs done, those of finished networks included.
    """
    left = [job for job in jobs if not (folder / job.name).is_dir()]
    advance(sum(job.epochs for job in jobs) - sum(job.epochs for job in left), "")
    for job in left:
        for partial in folder.glob(f".{job.name}-*"):
            shutil.rmtree(partial)
    if settings.device == "cuda" or workers == 1 or len(left) < 2:
        for job in left:
            _train_one(job, data, folder, settings, advance)
        return
    # What is half trained when the pool ends early goes on from its checkpoint: waiting for it could take hours.
    with processes.pool(min(workers, len(left)), _KILLED, _one_at_a_time(advance)) as submit:
        for future in as_completed([submit(_train_in_child, job, data, folder, settings) for job in left]):
            future.result()


def trained(folder: Path, name: str) -> Trained:
    """What a network of `train_all` left behind."""
    told = json.loads((folder / name / "training.json").read_text(encoding="utf-8"))
    return Trained(np.load(folder / name / "held_out.npy"), told["epochs"], told["curve"])


def embed(images: Path, folder: Path, settings: Settings, workers: int, advance: Advance) -> Path:
    """Compute what the head of the backbone is given for each image, once for all heads.

    Args:
        images: A .npy file, (n, S, S) uint16.
        folder: Receives the features, part by part; parts that stand are kept.
        settings: Its backbone, seed, batch size and device.
        workers: Processes side by side on a CPU.
        advance: Called with the number of images done.

    Returns:
        A .npy file, (n, d) float32.
    """
    whole = folder / "features.npy"
    n = len(np.load(images, mmap_mode="r"))
    if whole.is_file():
        advance(n, "")
        return whole
    starts = range(0, n, _FILMS_AT_ONCE)
    parts = [(images, folder / f"features-{start:09d}.npy", start, min(start + _FILMS_AT_ONCE, n)) for start in starts]
    left = [part for part in parts if not part[1].is_file()]
    advance(n - sum(stop - start for _, _, start, stop in left), "")
    if settings.device == "cuda" or workers == 1 or len(left) < 2:
        for part in left:
            advance(_embed_part(*part, settings), "")
    else:
        with processes.pool(min(workers, len(left)), _KILLED) as submit:
            for future in as_completed([submit(_embed_part, *part, settings) for part in left]):
                advance(future.result(), "")
    storage.write_array(np.concatenate([np.load(path) for _, path, _, _ in parts]), whole)
    return whole


def join_heads(folder: Path, names: Sequence[str], settings: Settings, size: int) -> nn.Module:
    """The backbone with the heads of some jobs on it, whose outputs follow one another in the order of the names."""
    heads = [safetensors.torch.load_file(folder / name / "head.safetensors") for name in names]
    network = networks.build(settings.backbone, settings.seed, size).eval()
    weight, bias = (torch.cat([head[part] for head in heads]) for part in ("weight", "bias"))
    networks.set_head(network, weight, bias)
    return network


def features(network: nn.Module, images: NDArray[np.uint16], settings: Settings) -> NDArray[np.float32]:
    """What the head of a network is given for each image: (n, S, S) -> (n, d)."""
    device, batch_size = torch.device(settings.device), settings.batch_size
    network = network.to(device)
    found = []
    with torch.inference_mode(), networks.Features(network) as given:
        for start in range(0, len(images), batch_size):
            networks.logits(network, _scaled(np.array(images[start : start + batch_size]), device))
            found.append(given.last().cpu().numpy())
    return np.concatenate(found)


def _one_at_a_time(advance: Advance) -> Callable[[tuple[int, str]], None]:
    lock = Lock()

    def heard(told: tuple[int, str]) -> None:
        with lock:
            advance(*told)

    return heard


def _embed_part(images: Path, path: Path, start: int, stop: int, settings: Settings) -> int:
    pixels = np.load(images, mmap_mode="r")[start:stop]
    with _one_thread(settings.device):
        network = networks.build(settings.backbone, settings.seed, pixels.shape[-1]).eval()
        found = features(network, pixels, settings)
    storage.write_array(found, path)
    return len(pixels)


@contextmanager
def _one_thread(device: str) -> Iterator[None]:
    """On a CPU, what is computed inside uses one thread: bits then do not depend on the number of cores."""
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Trainee(Protocol):
    """What is trained, and on what: a whole network on images, or a head on features."""

    network: nn.Module

    def fetch(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """The inputs of some rows, on the CPU."""

    def outputs(
        self, network: nn.Module, inputs: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Logits (B, K) of inputs on the device, augmented where a generator is given."""

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write the weights."""


class _Whole(_Trainee):
    def __init__(self, images: NDArray[np.uint16], job: Job, settings: Settings) -> None:
        self._images = images
        self.network = networks.build(settings.backbone, job.seed, images.shape[-1], job.outcome.shape[1])

    def fetch(self, rows: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(self._images[rows])

    def outputs(
        self, network: nn.Module, inputs: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        images = inputs.to(torch.float32).div_(65535).unsqueeze(1).contiguous(memory_format=torch.channels_last)
        return networks.logits(network, images if generator is None else _augment(images, generator))

    def save(self, network: nn.Module, folder: Path) -> None:
        networks.save(network, folder)


class _Head(_Trainee):
    """A linear head on features that are standardised as the members are; saved for features as they are."""

    def __init__(self, given: NDArray[np.float32], job: Job) -> None:
        self._features = given
        members = given[job.members].astype(np.float64)
        self._mean, spread = members.mean(axis=0), members.std(axis=0)
        self._spread = np.where(spread > 0, spread, 1.0)
        self.network = nn.Linear(given.shape[1], job.outcome.shape[1])
        nn.init.zeros_(self.network.weight)
        nn.init.zeros_(self.network.bias)

    def fetch(self, rows: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(((self._features[rows] - self._mean) / self._spread).astype(np.float32))

    def outputs(
        self, network: nn.Module, inputs: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        found: torch.Tensor = network(inputs)
        return found

    def save(self, network: nn.Module, folder: Path) -> None:
        folder.mkdir(parents=True)
        head: Any = network
        weight = head.weight.detach().cpu().double() / torch.from_numpy(self._spread)
        bias = head.bias.detach().cpu().double() - weight @ torch.from_numpy(self._mean)
        safetensors.torch.save_file({"weight": weight.float(), "bias": bias.float()}, folder / "head.safetensors")


def _train_in_child(job: Job, data: Path, folder: Path, settings: Settings) -> None:
    _train_one(job, data, folder, settings, lambda n, note: processes.tell((n, note)))


def _train_one(job: Job, data: Path, folder: Path, settings: Settings, advance: Advance) -> None:
    given = np.load(data, mmap_mode="r")
    with _one_thread(settings.device):
        trainee: _Trainee = _Whole(given, job, settings) if given.ndim == 3 else _Head(np.asarray(given), job)
        run = _Run(trainee, job, settings)
        try:
            run.train(folder.parent / "checkpoints" / f"{job.name}.pt", advance)
            logits = run.predict(job.held_out, exact=True)
            if not np.isfinite(logits).all():
                raise ConvergenceError(
                    "The training of a network diverged: it gives no finite number.",
                    f"Expected a loss that falls; the learning rate was {settings.learning_rate:g}.",
                    "Lower [train] learning_rate.",
                )
        except torch.OutOfMemoryError as fault:
            raise MachineError(
                "The memory of the CUDA device is used up.",
                f"Expected room for a training step of {settings.batch_size} images; found too little.",
                "Use a smaller [train] batch_size or image_size, or a device with more memory.",
            ) from fault
    partial = folder / f".{job.name}-{os.getpid()}"  # a process that outlived an earlier run may still write its own
    trainee.save(run.kept.cpu(), partial)
    np.save(partial / "held_out.npy", logits)
    told = {"epochs": run.best_epoch, "curve": run.curve}
    (partial / "training.json").write_text(json.dumps(told), encoding="utf-8")
    try:
        partial.rename(folder / job.name)
    except OSError:
        if not (folder / job.name).is_dir():
            raise
        shutil.rmtree(partial)  # another process finished it meanwhile, with the same bytes
    (folder.parent / "checkpoints" / f"{job.name}.pt").unlink(missing_ok=True)


class _Run:
    """One network on its way: AdamW, one learning-rate cycle, cross-entropy in which both outcomes weigh the same.

    What is judged, kept and predicted with is the average of the weights over about one epoch (Izmailov P and others,
    arXiv:1803.05407; Morales-Brotons D and others, arXiv:2411.18704): between two steps at a high learning rate the
    logits of one network move up and down by more than those of two folds should differ. The statistics of batch
    normalisation are taken anew for these weights, as in the first of the two: those kept while training lag behind,
    and a network judged with them looks worse in the second epoch than in the first, and would be stopped.

    Attributes:
        kept: The network with the averaged weights of the best epoch, once it is trained.
    """

    def __init__(self, trainee: _Trainee, job: Job, settings: Settings) -> None:
        self._trainee, self._job, self._settings = trainee, job, settings
        self._device = torch.device(settings.device)
        self._network = trainee.network.to(self._device)
        self._batch_size = min(settings.batch_size, len(job.members))
        self._steps = max(1, len(job.members) // self._batch_size)
        positives = job.outcome[job.members].sum(axis=0)
        weight = np.where(positives > 0, (len(job.members) - positives) / np.maximum(positives, 1), 1.0)
        self._weight = torch.tensor(weight, dtype=torch.float32)
        self._optimiser = torch.optim.AdamW(
            self._network.parameters(), lr=settings.learning_rate, weight_decay=_WEIGHT_DECAY
        )
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser, settings.learning_rate, total_steps=settings.epochs * self._steps
        )
        averaging = torch.optim.swa_utils.get_ema_multi_avg_fn(1 - 1 / self._steps)  # type: ignore[no-untyped-call]
        self._averaged = torch.optim.swa_utils.AveragedModel(self._network, multi_avg_fn=averaging)
        self.kept: nn.Module = self._averaged.module
        self._norms = [module for module in self.kept.modules() if isinstance(module, nn.BatchNorm2d)]
        self._patience = max(_LEAST_PATIENCE, math.ceil(settings.epochs / 3))
        self._best: dict[str, torch.Tensor] = {}
        self.best_epoch = 0
        self.curve: list[dict[str, Any]] = []

    def train(self, checkpoint: Path, advance: Advance) -> None:
        """Train from the checkpoint on, if there is one; the network ends with the weights of the best epoch."""
        if checkpoint.is_file():
            self._go_on_from(checkpoint)
        advance(len(self.curve), "")
        while len(self.curve) < self._job.epochs and len(self.curve) - self.best_epoch < self._patience:
            losses = self._epoch(len(self.curve))
            self._take_statistics()
            self._judge(losses)
            if isinstance(self._trainee, _Whole):
                self._write(checkpoint)
            advance(1, self._told())
        advance(self._job.epochs - len(self.curve), "")
        self.kept.load_state_dict(self._best)

    def predict(self, rows: NDArray[np.int64], exact: bool) -> NDArray[np.float64]:
        """Logits (m, K) of some rows. Batches have one shape, the last is padded, so that order changes nothing."""
        size = self._settings.batch_size
        found = np.empty((len(rows), self._job.outcome.shape[1]))
        self.kept.eval()
        with torch.inference_mode(), self._precision(exact):
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                padded = self._trainee.fetch(np.concatenate([part, np.repeat(part[-1:], size - len(part))]))
                outputs = self._trainee.outputs(self.kept, padded.to(self._device))
                found[start : start + len(part)] = outputs[: len(part)].float().cpu().numpy()
        return found

    def _take_statistics(self) -> None:
        """Fit batch normalisation to the averaged weights, on members from all over."""
        if not self._norms:
            return
        size, members = self._settings.batch_size, self._job.members
        places = np.linspace(0, len(members) - 1, size * min(_STATISTICS_BATCHES, len(members) // size or 1))
        self.kept.eval()
        for norm in self._norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over batches
            norm.train()
        with torch.no_grad(), self._precision(exact=False):
            for part in np.split(members[places.astype(np.int64)], len(places) // size):
                self._trainee.outputs(self.kept, self._trainee.fetch(part).to(self._device))

    def _precision(self, exact: bool) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda" and not exact)

    def _epoch(self, epoch: int) -> NDArray[np.float64]:
        """One pass over the members; the mean loss of each output, (K,)."""
        drawn = int(np.random.SeedSequence([self._job.seed, epoch]).generate_state(1)[0])
        torch.manual_seed(drawn)
        generator = torch.Generator().manual_seed(drawn)
        order = torch.randperm(len(self._job.members), generator=generator).numpy()
        rows = self._job.members[order[: self._steps * self._batch_size]].reshape(self._steps, -1)
        sums = torch.zeros(len(self._weight), device=self._device)
        weight = self._weight.to(self._device)
        self._network.train()
        for mine, inputs in zip(rows, _ahead(self._trainee.fetch, rows), strict=True):
            labels = torch.from_numpy(self._job.outcome[mine].astype(np.float32)).to(self._device)
            with self._precision(exact=False):
                outputs = self._trainee.outputs(self._network, inputs.to(self._device, non_blocking=True), generator)
            losses = nn.functional.binary_cross_entropy_with_logits(
                outputs.float(), labels, pos_weight=weight, reduction="none"
            ).mean(dim=0)
            self._optimiser.zero_grad()
            losses.mean().backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
            self._schedule.step()
            self._averaged.update_parameters(self._network)
            sums += losses.detach()
        mean: NDArray[np.float64] = (sums / self._steps).cpu().numpy().astype(np.float64)
        return mean

    def _judge(self, training_losses: NDArray[np.float64]) -> None:
        """Note an epoch, and keep its weights if they are the best yet."""
        row: dict[str, Any] = {
            "epoch": len(self.curve) + 1,
            "learning_rate": float(self._optimiser.param_groups[0]["lr"]),
            "training_loss": training_losses.tolist(),
            "stopping_loss": [None] * len(training_losses),
            "stopping_auc": [None] * len(training_losses),
        }
        better = True
        if len(self._job.stopping):
            labels = self._job.outcome[self._job.stopping]
            logits = self.predict(self._job.stopping, exact=False)
            losses = nn.functional.binary_cross_entropy_with_logits(
                torch.from_numpy(logits),
                torch.from_numpy(labels.astype(np.float64)),
                pos_weight=self._weight.double(),
                reduction="none",
            ).mean(dim=0)
            row["stopping_loss"] = losses.tolist()
            row["stopping_auc"] = [
                float(roc_auc_score(label, logit)) if label.any() and not label.all() else None
                for label, logit in zip(labels.T, logits.T, strict=True)
            ]
            lowest = [np.mean(earlier["stopping_loss"]) for earlier in self.curve]
            better = float(losses.mean()) < min(lowest, default=math.inf)
        self.curve.append(row)
        if better or not self._best:
            self._best = {name: tensor.detach().cpu().clone() for name, tensor in self.kept.state_dict().items()}
            self.best_epoch = len(self.curve)

    def _told(self) -> str:
        last = self.curve[-1]
        text = f"{self._job.name}, epoch {last['epoch']}: loss {np.mean(last['training_loss']):.3f}"
        aucs = [auc for auc in last["stopping_auc"] if auc is not None]
        return f"{text}, AUC {np.mean(aucs):.3f}" if aucs else text

    def _write(self, checkpoint: Path) -> None:
        held = io.BytesIO()
        states: dict[str, Any] = {"network": self._network.state_dict(), "optimiser": self._optimiser.state_dict()}
        states |= {"schedule": self._schedule.state_dict(), "averaged": self._averaged.state_dict()}
        torch.save({**states, "best": self._best, "best_epoch": self.best_epoch, "curve": self.curve}, held)
        storage.write_bytes(held.getvalue(), checkpoint)

    def _go_on_from(self, checkpoint: Path) -> None:
        held = torch.load(checkpoint, map_location=self._device, weights_only=True)
        self._network.load_state_dict(held["network"])
        self._optimiser.load_state_dict(held["optimiser"])
        self._schedule.load_state_dict(held["schedule"])
        self._averaged.load_state_dict(held["averaged"])
        self._best = {name: tensor.cpu() for name, tensor in held["best"].items()}
        self.best_epoch, self.curve = held["best_epoch"], held["curve"]


def _ahead(fetch: Callable[[NDArray[np.int64]], torch.Tensor], rows: NDArray[np.int64]) -> Iterator[torch.Tensor]:
    """The inputs of each step; the next ones are fetched while a step is computed."""
    with ThreadPoolExecutor(1, thread_name_prefix="fetch") as pool:
        coming: Future[torch.Tensor] = pool.submit(fetch, rows[0])
        for later in rows[1:]:
            inputs = coming.result()
            coming = pool.submit(fetch, later)
            yield inputs
        yield coming.result()


def _scaled(pixels: NDArray[np.uint16], device: torch.device) -> torch.Tensor:
    batch = torch.from_numpy(pixels).to(device).to(torch.float32).div_(65535).unsqueeze(1)
    return batch.contiguous(memory_format=torch.channels_last)


def _augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift, turn, scale and change contrast a little; no flip: the heart lies on one side."""
    count = len(images)

    def spread(width: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1).mul_(width)

    angle, scale = spread(_MAXIMUM_ROTATION), 1 + spread(_MAXIMUM_SCALE)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    transform = torch.stack(
        [
            torch.stack([cosine, -sine, spread(_MAXIMUM_SHIFT)], dim=1),
            torch.stack([sine, cosine, spread(_MAXIMUM_SHIFT)], dim=1),
        ],
        dim=1,
    ).to(images.device)
    gain = (1 + spread(_MAXIMUM_GAIN)).view(-1, 1, 1, 1).to(images.device)
    grid = nn.functional.affine_grid(transform, list(images.shape), align_corners=False)
    moved = nn.functional.grid_sample(images, grid, align_corners=False, padding_mode="zeros")
    return (moved * gain).clamp_(0, 1)
