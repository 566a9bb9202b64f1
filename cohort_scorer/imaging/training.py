"""Training of binary networks on resized radiographs. Knows no patient and no category.

On a CPU every network is trained by one thread of one process: small networks gain nothing from more threads, and two
networks side by side are twice as fast. On CUDA they are trained one after the other.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cohort_scorer.errors import MachineError
from cohort_scorer.imaging import networks
from cohort_scorer.imaging import workers as processes

_MAXIMUM_ROTATION = 0.07
_MAXIMUM_SHIFT = 0.06
_MAXIMUM_SCALE = 0.06


@dataclass(frozen=True)
class Settings:
    """What all networks of a bundle have in common: the keys of [train], and the device (`cpu` or `cuda`)."""

    backbone: str
    epochs: int
    batch_size: int
    learning_rate: float
    device: str


@dataclass(frozen=True)
class Job:
    """One network to train.

    Attributes:
        name: Name of the network and of its folder.
        outcome: (n,), true where the calcium score passes the threshold, for all images.
        held_out: (n,), true for images that the network must not see; it predicts them instead.
        seed: Seeds weights, order and augmentation.
    """

    name: str
    outcome: NDArray[np.bool_]
    held_out: NDArray[np.bool_]
    seed: int


def train_all(
    jobs: Sequence[Job], images: Path, folder: Path, settings: Settings, workers: int, advance: Callable[[int], None]
) -> None:
    """Train the networks that do not stand yet, each into folder/<name> with the logits of its held-out images.

    Args:
        jobs: The networks.
        images: A .npy file, (n, S, S) uint16.
        folder: Receives a folder per network; one that stands there is finished and is kept.
        settings: What they have in common.
        workers: Processes side by side on a CPU.
        advance: Called with the number of epochs done, those of finished networks included.
    """
    for partial in folder.glob(".*"):
        shutil.rmtree(partial)
    left = [job for job in jobs if not (folder / job.name).is_dir()]
    advance((len(jobs) - len(left)) * settings.epochs)
    if settings.device == "cuda" or workers == 1 or len(left) < 2:
        for job in left:
            _train_one(job, images, folder, settings)
            advance(settings.epochs)
        return
    for _ in _in_processes(left, images, folder, settings, workers):
        advance(settings.epochs)


def held_out_logits(folder: Path, name: str) -> NDArray[np.float64]:
    """The logits of the images that a network of `train_all` did not see, in the order of the images."""
    logits: NDArray[np.float64] = np.load(folder / name / "held_out.npy")
    return logits


def _in_processes(jobs: Sequence[Job], images: Path, folder: Path, settings: Settings, workers: int) -> Iterator[None]:
    killed = MachineError(
        "A process that trained a network was killed; the networks that were finished stand.",
        "Expected memory for one batch of every network trained side by side; found too little, perhaps.",
        "Run the same command again with fewer --workers.",
    )
    # What is half trained when the pool ends early would not be kept: waiting for it could take hours.
    with processes.pool(min(workers, len(jobs)), killed) as submit:
        for future in as_completed([submit(_train_one, job, images, folder, settings) for job in jobs]):
            yield future.result()


def _train_one(job: Job, images: Path, folder: Path, settings: Settings) -> None:
    pixels = np.load(images, mmap_mode="r")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    network = train(pixels, np.flatnonzero(~job.held_out), job.outcome, settings, job.seed)
    partial = folder / f".{job.name}-{os.getpid()}"  # a process that outlived an earlier run may still write its own
    networks.save(network, partial)
    held_out = np.flatnonzero(job.held_out)
    logits = predict(network, pixels, held_out, settings.batch_size, torch.device(settings.device))
    np.save(partial / "held_out.npy", logits)
    partial.rename(folder / job.name)
    torch.set_num_threads(threads)


def train(
    images: NDArray[np.uint16],
    members: NDArray[np.int64],
    outcome: NDArray[np.bool_],
    settings: Settings,
    seed: int,
) -> nn.Module:
    """Train a network to tell whether the outcome is present (AdamW, one learning-rate cycle, cross-entropy).

    Args:
        images: (n, S, S), full range of uint16; may be memory-mapped, only one batch is held at a time.
        members: Positions of the images to train on.
        outcome: (n,), true where the calcium score passes the threshold.
        settings: Backbone, epochs, images per step (what is left over in an epoch is drawn in another), learning rate
            at the peak of the cycle, device.
        seed: Seeds weights, order and augmentation: the same on one device gives the same network.

    Returns:
        The network in evaluation mode, on the CPU.
    """
    device = torch.device(settings.device)
    network = networks.build(settings.backbone, seed, images.shape[-1]).to(device).train()
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(settings.batch_size, len(members))
    steps = max(1, len(members) // batch_size)
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=settings.epochs * steps
    )
    for _ in range(settings.epochs):
        order = torch.randperm(len(members), generator=generator).numpy()
        for step in range(steps):
            rows = members[order[step * batch_size : (step + 1) * batch_size]]
            batch = _augment(_scaled(images[rows]).to(device), generator)
            labels = torch.from_numpy(outcome[rows].astype(np.float32)).to(device)
            loss = nn.functional.binary_cross_entropy_with_logits(networks.logits(network, batch), labels)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    finished: nn.Module = network.eval().cpu()
    return finished


def predict(
    network: nn.Module, images: NDArray[np.uint16], rows: NDArray[np.int64], batch_size: int, device: torch.device
) -> NDArray[np.float64]:
    """Logits of some images of (n, S, S), in the order of `rows`.

    Batches have one shape, the last is padded, so that order changes nothing.
    """
    network = network.to(device)
    found = np.empty(len(rows))
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            part = images[rows[start : start + batch_size]]
            padded = np.zeros((batch_size, *images.shape[1:]), np.uint16)
            padded[: len(part)] = part
            output = networks.logits(network, _scaled(padded).to(device))
            found[start : start + len(part)] = output[: len(part)].cpu().numpy()
    network.cpu()
    return found


def features(folder: Path, name: str, images: Path, n: int, settings: Settings) -> NDArray[np.float32]:
    """What the head of a network of `train_all` is given for each of the first n images: (n, d), in their order."""
    pixels = np.load(images, mmap_mode="r")
    device = torch.device(settings.device)
    network = networks.load(folder / name).to(device)
    with torch.inference_mode(), networks.Features(network) as given:
        found = []
        for start in range(0, n, settings.batch_size):
            part = np.array(pixels[start : min(n, start + settings.batch_size)])
            networks.logits(network, _scaled(part).to(device))
            found.append(given.last().cpu().numpy())
    return np.concatenate(found)


def _scaled(pixels: NDArray[np.uint16]) -> torch.Tensor:
    batch = torch.from_numpy(pixels).to(torch.float32).div_(65535).unsqueeze(1)
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
    )
    gain = (1 + spread(0.1)).view(-1, 1, 1, 1).to(images.device)
    grid = nn.functional.affine_grid(transform, list(images.shape), align_corners=False).to(images.device)
    moved = nn.functional.grid_sample(images, grid, align_corners=False, padding_mode="zeros")
    return (moved * gain).clamp_(0, 1)
