"""Images x networks -> raw network outputs, shard by shard. Knows no patient, no category and no file.

Films are decoded elsewhere while the networks run, every network runs on one decode, and every batch has one shape (the
last is padded), so that a film's outputs depend neither on its neighbours nor on how the rows are cut or in which order
films are done. Batches run across shards; a shard is handed on when its last film is done.
"""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import nn

from cohort_scorer import schemas
from cohort_scorer.imaging import networks as networks_module
from cohort_scorer.imaging.familiarity import Familiarity
from cohort_scorer.imaging.radiograph import Radiograph
from cohort_scorer.imaging.refusal import Refused

STAGES: Final = ("read", "decode", "resize", "network")
"""Where the time of a shard goes, beside writing it."""

_PLACE: Final = ("image_id", "uri", "root", "file_size", "file_mtime_ns")
_CUDNN: Final = {"enabled": True, "benchmark": False, "deterministic": True, "allow_tf32": False}
_CUDA_BATCH: Final = 64
_CUDA_BATCHES: Final = 2  # one is computed, the next is copied
_CPU_PIXELS: Final = 2 * 256 * 256  # of a batch: more are slower, memory being the limit

_Record = dict[str, Any]
_Films = list[tuple[int, Radiograph]]
_Outputs = tuple[NDArray[np.float32], NDArray[np.float32] | None, float]


@dataclass(frozen=True)
class Model:
    """What every film goes through.

    Attributes:
        networks: Networks of imaging.networks by name.
        outputs: What each network's outputs are called, in their order.
        size: Side of their images in pixels.
        familiar: The training films as the network `familiar_to` sees them, or None where nobody noted it.
        familiar_to: Name of that network.
        precision: `float32`, or `bfloat16` inside the networks (faster on CUDA; probabilities move in the third digit).
    """

    networks: Mapping[str, nn.Module]
    outputs: Mapping[str, Sequence[str]]
    size: int
    familiar: Familiarity | None = None
    familiar_to: str = ""
    precision: str = "float32"

    @property
    def names(self) -> list[str]:
        """All outputs, in the order in which they come."""
        return [output for network in self.networks for output in self.outputs[network]]


@dataclass(frozen=True)
class ShardOutputs:
    """What became of a shard.

    Attributes:
        shard: Its name.
        outputs: Rows in the schema `network_outputs` without network_id, then `logit_<name>` (Float64 holding float32
            values) per output, in the order of the shard's rows.
        refusals: Rows in the schema `refusals`, in the order of the shard's rows; with outputs as many as its rows.
        seconds: Per stage, summed over its films. Films are worked on side by side, so that stages may add up to more
            than has passed; a batch of several shards counts where it was launched.
    """

    shard: str
    outputs: pl.DataFrame
    refusals: pl.DataFrame
    seconds: Mapping[str, float]


def batch_size_for(device: torch.device, size: int) -> int:
    """Images per forward pass where nobody chose: many on CUDA, on a CPU as many as its caches hold (measured)."""
    return _CUDA_BATCH if device.type == "cuda" else max(1, min(8, _CPU_PIXELS // size**2))


def score(
    rows: pl.DataFrame,
    films: Generator[tuple[int, Radiograph | Refused]],
    model: Model,
    batch_size: int,
    device: torch.device,
    workers: int,
    advance: Callable[[int], None],
) -> Generator[ShardOutputs]:
    """Run every network on every film.

    Args:
        rows: Eligible index rows, with their shard.
        films: Row number and what became of the row, each row once, in any order (`decoding.radiographs`); closed when
            it is done with.
        model: The networks; they are moved to the device and put into evaluation mode.
        batch_size: Images per forward pass.
        device: Where the networks run.
        workers: On a CPU, batches side by side.
        advance: Called with the number of rows done since the last call.

    Yields:
        Each shard when it is done.
    """
    collector = _Collector(rows, model)
    with closing(films), _Forwards(model, batch_size, device, workers) as forwards:
        for number, film in films:
            if isinstance(film, Refused):
                collector.refuse(number, film)
                advance(1)
            else:
                forwards.add(number, film)
            for batch in forwards.finished():
                advance(collector.keep(*batch))
            yield from collector.whole_shards()
        for batch in forwards.rest():
            advance(collector.keep(*batch))
        yield from collector.whole_shards()


class _Forwards:
    """Batches on their way through the networks; on a CPU side by side with one thread each.

    Threads inside an operation wait by spinning: on a machine that does anything else they made scoring ten times
    slower, on an idle one they gained nothing. One thread also makes logits independent of the number of cores.
    """

    def __init__(self, model: Model, batch_size: int, device: torch.device, workers: int) -> None:
        on_cuda = device.type == "cuda"
        self._familiar, self._device, self._batch_size = model.familiar, device, batch_size
        self._bfloat16 = model.precision == "bfloat16"
        self._networks = {name: network.to(device).eval() for name, network in model.networks.items()}
        self._side_by_side = _CUDA_BATCHES if on_cuda else workers
        shape = (batch_size, 1, model.size, model.size)
        # Made once: pinning memory takes longer than a batch. One batch waits, so that no network does.
        self._free = [torch.zeros(shape, dtype=torch.uint16, pin_memory=on_cuda) for _ in range(self._side_by_side + 1)]
        self._films: list[tuple[int, Radiograph]] = []
        self._in_flight: deque[tuple[_Films, torch.Tensor, Future[_Outputs]]] = deque()
        self._features = networks_module.Features(self._networks[model.familiar_to]) if model.familiar else None
        self._left = ExitStack()

    def __enter__(self) -> "_Forwards":
        self._left.enter_context(torch.backends.cudnn.flags(**_CUDNN))
        if self._device.type == "cpu":
            self._left.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        if self._features is not None:
            self._left.enter_context(self._features)
        self._pool = ThreadPoolExecutor(self._side_by_side, thread_name_prefix="network")
        self._left.callback(self._pool.shutdown, wait=True, cancel_futures=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._left.close()

    def add(self, number: int, film: Radiograph) -> None:
        """Take a film; a full batch is launched."""
        self._films.append((number, film))
        if len(self._films) == self._batch_size:
            self._launch()

    def finished(self) -> Iterator[tuple[_Films, _Outputs]]:
        """The batches that are done; where all have been launched that may be, the oldest is waited for."""
        while self._in_flight and (not self._free or self._in_flight[0][2].done()):
            films, buffer, outputs = self._in_flight.popleft()
            self._free.append(buffer)
            yield films, outputs.result()

    def rest(self) -> Iterator[tuple[_Films, _Outputs]]:
        """Everything that is left."""
        if self._films:
            self._launch()
        for films, _, outputs in self._in_flight:
            yield films, outputs.result()

    def _launch(self) -> None:
        buffer = self._free.pop()
        pixels = buffer.numpy()
        for place, (_, film) in enumerate(self._films):
            pixels[place, 0] = film.image
        self._in_flight.append((self._films, buffer, self._pool.submit(self._run, buffer)))
        self._films = []

    def _run(self, batch: torch.Tensor) -> _Outputs:
        """(batch size, 1, S, S) uint16 -> logits (batch size, n outputs) float32, features (batch size, d), seconds.

        TF32 and autotuned convolutions are off on CUDA: float32 means float32, whatever ran before.
        """
        started = time.perf_counter()
        with torch.inference_mode():
            inputs = batch.to(self._device, non_blocking=True).to(torch.float32).div_(65535)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
                outputs = [networks_module.logits(network, inputs).float() for network in self._networks.values()]
            features = None if self._features is None else self._features.last().float().cpu().numpy()
            found = torch.cat(outputs, dim=1).cpu().numpy()
        return found, features, time.perf_counter() - started


class _Collector:
    """Puts what comes back in any order together, shard by shard."""

    def __init__(self, rows: pl.DataFrame, model: Model) -> None:
        self._rows, self._model = rows.select(*_PLACE, "shard"), model
        self._left = dict(rows.group_by("shard").len().iter_rows())
        self._outputs: defaultdict[str, dict[int, _Record]] = defaultdict(dict)
        self._refusals: defaultdict[str, dict[int, _Record]] = defaultdict(dict)
        self._seconds: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._whole: list[str] = []

    def refuse(self, number: int, refused: Refused) -> None:
        """Note a film that became no image, or to which a network gave no number."""
        row = self._rows.row(number, named=True)
        shard = row.pop("shard")
        del row["image_id"]
        what = {"step": "score", "reason": refused.reason, "detail": refused.detail, "radiograph": True}
        self._refusals[shard][number] = row | what
        self._count(shard)

    def keep(self, films: _Films, outputs: _Outputs) -> int:
        """Note what a batch gave; returns how many films it had."""
        logits, features, seconds = outputs
        for place, (number, film) in enumerate(films):
            row = self._rows.row(number, named=True)
            shard = row.pop("shard")
            spent = (film.read_seconds, film.decode_seconds, film.resize_seconds, seconds / len(films))
            self._seconds[shard].update(dict(zip(STAGES, spent, strict=True)))
            if not np.isfinite(logits[place]).all():
                self.refuse(number, Refused("non_finite_output", "a network gave no finite number"))
                continue
            self._outputs[shard][number] = (
                row
                | {"pixel_sha256": film.pixel_sha256}
                | dict(film.quality)
                | self._distance(None if features is None else features[place])
                | {f"logit_{name}": float(x) for name, x in zip(self._model.names, logits[place], strict=True)}
            )
            self._count(shard)
        return len(films)

    def _distance(self, features: NDArray[np.float32] | None) -> _Record:
        if features is None or self._model.familiar is None:
            return {}
        distance = self._model.familiar.distance(features)
        return {"feature_distance": distance, "feature_distance_percent": self._model.familiar.percent(distance)}

    def _count(self, shard: str) -> None:
        self._left[shard] -= 1
        if not self._left[shard]:
            self._whole.append(shard)

    def whole_shards(self) -> Iterator[ShardOutputs]:
        """The shards whose last film has been noted since the last call."""
        columns = {name: dtype for name, dtype in schemas.columns("network_outputs").items() if name != "network_id"}
        columns |= {f"logit_{name}": pl.Float64() for name in self._model.names}
        for shard in self._whole:
            outputs, refusals = (
                [record for _, record in sorted(found.pop(shard, {}).items())]
                for found in (self._outputs, self._refusals)
            )
            yield ShardOutputs(
                shard,
                pl.DataFrame(outputs, schema=columns),
                pl.DataFrame(refusals, schema=schemas.columns("refusals")),
                self._seconds.pop(shard, Counter()),
            )
        self._whole.clear()
