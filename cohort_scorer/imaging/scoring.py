"""Index rows x networks -> raw network outputs. Knows no patient, no category and no file but the films.

Threads decode ahead while the network runs, every network runs on one decode, and every batch has one shape (the last
is padded), so that an image's logits depend on neither its neighbours nor how the rows are cut.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import nn

from cohort_scorer import schemas
from cohort_scorer.imaging import networks as networks_module
from cohort_scorer.imaging.radiograph import Radiograph, read_many
from cohort_scorer.imaging.refusal import Refused

_PLACE: Final = ("image_id", "uri", "root", "file_size", "file_mtime_ns")
_BATCHES_IN_FLIGHT: Final = 2
_CUDNN: Final = {"enabled": True, "benchmark": False, "deterministic": True, "allow_tf32": False}

_Record = dict[str, Any]


def score(
    rows: pl.DataFrame,
    roots: Mapping[str, Path],
    size: int,
    networks: Mapping[str, nn.Module],
    batch_size: int,
    device: torch.device,
    workers: int,
    advance: Callable[[int], None],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Run every network on every film of a chunk.

    Args:
        rows: Eligible index rows.
        roots: Folder by the name in the column `root`.
        size: Side of the networks' images in pixels.
        networks: Networks of imaging.networks by name; they are moved to the device and put into evaluation mode.
        batch_size: Images per forward pass.
        device: Where the networks run, in float32.
        workers: Decoding threads.
        advance: Called with the number of rows done since the last call.

    Returns:
        Rows in the schema `network_outputs` without network_id, then `logit_<name>` (Float64 holding float32 values)
        per network; and rows in the schema `refusals`. Both in row order, together as many as `rows`.
    """
    models = {name: network.to(device).eval() for name, network in networks.items()}
    films = rows.rows(named=True)
    records: list[_Record] = []
    refusals: list[_Record] = []
    waiting: list[tuple[int, Radiograph]] = []
    in_flight: deque[tuple[list[tuple[int, Radiograph]], Future[torch.Tensor]]] = deque()
    side_by_side = workers if device.type == "cpu" else 1
    limit = max(_BATCHES_IN_FLIGHT, side_by_side)

    def launch() -> None:
        images = [film.image for _, film in waiting]
        in_flight.append((waiting.copy(), forwards.submit(_forward, models, images, batch_size, device)))
        waiting.clear()

    def collect() -> None:
        batch, outputs = in_flight.popleft()
        for (number, film), logits in zip(batch, outputs.result().cpu().tolist(), strict=False):
            _record(films[number], film, dict(zip(models, logits, strict=True)), records, refusals)
        advance(len(batch))

    with _one_thread_each(device), ThreadPoolExecutor(side_by_side) as forwards:
        for number, film in read_many(rows, roots, size, workers, ahead=limit * batch_size):
            if isinstance(film, Refused):
                refusals.append(_refusal(films[number], film))
                advance(1)
                continue
            waiting.append((number, film))
            if len(waiting) == batch_size:
                launch()
            if len(in_flight) == limit:
                collect()
        if waiting:
            launch()
        while in_flight:
            collect()
    return _outputs(records, models), _refused(refusals, rows)


@contextmanager
def _one_thread_each(device: torch.device) -> Iterator[None]:
    """On a CPU, batches run side by side with one thread each.

    Threads inside an operation wait by spinning: on a machine that does anything else they made scoring ten times
    slower, on an idle one they gained nothing. One thread also makes logits independent of the number of cores.
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _forward(
    models: Mapping[str, nn.Module], images: list[NDArray[np.uint16]], batch_size: int, device: torch.device
) -> torch.Tensor:
    """Run the networks on one batch: images of (S, S) -> (batch_size, n networks) float32, unsynchronised.

    TF32 and autotuned convolutions are off on CUDA: float32 means float32, whatever ran before.
    """
    on_cuda = device.type == "cuda"
    batch = torch.zeros((batch_size, 1, *images[0].shape), dtype=torch.uint16, pin_memory=on_cuda)
    batch.numpy()[: len(images), 0] = images
    with torch.inference_mode(), torch.backends.cudnn.flags(**_CUDNN):
        inputs = batch.to(device, non_blocking=on_cuda).to(torch.float32).div_(65535)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        return torch.stack([networks_module.logits(model, inputs) for model in models.values()], dim=1)


def _record(
    row: _Record, film: Radiograph, logits: Mapping[str, float], records: list[_Record], refusals: list[_Record]
) -> None:
    if not np.isfinite(list(logits.values())).all():
        refusals.append(_refusal(row, Refused("non_finite_output", "a network gave no finite number")))
        return
    place = {name: row[name] for name in _PLACE}
    outputs = {f"logit_{name}": logit for name, logit in logits.items()}
    records.append(place | {"pixel_sha256": film.pixel_sha256} | dict(film.quality) | outputs)


def _refusal(row: _Record, refused: Refused) -> _Record:
    what = {"step": "score", "reason": refused.reason, "detail": refused.detail, "radiograph": True}
    return {name: row[name] for name in _PLACE if name != "image_id"} | what


def _outputs(records: list[_Record], models: Mapping[str, nn.Module]) -> pl.DataFrame:
    columns = {name: dtype for name, dtype in schemas.columns("network_outputs").items() if name != "network_id"}
    columns |= {f"logit_{name}": pl.Float64() for name in models}
    return pl.DataFrame(records, schema=columns)


def _refused(refusals: list[_Record], rows: pl.DataFrame) -> pl.DataFrame:
    """Refusals in row order, whenever they were found."""
    frame = pl.DataFrame(refusals, schema=schemas.columns("refusals"))
    order = rows.select("root", "uri")
    return order.join(frame, on=("root", "uri"), how="inner", maintain_order="left").select(frame.columns)
