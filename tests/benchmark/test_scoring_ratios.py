"""Scoring whole archives: against a loop, against decoding alone, and against what its parts cost alone."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pydicom
import pytest
import skimage.transform
import torch
from films import EXPLICIT, LOSSLESS_SV1, film, read_headers, write_film
from torch import nn

from cohort_scorer.imaging import decoding, radiograph, scoring
from cohort_scorer.imaging.index import Rules, find_files

CPU = torch.device("cpu")
CORES = os.cpu_count() or 1
ROWS, COLUMNS = 2500, 2048


class Tiny(nn.Module):
    """Almost nothing: what is left is the engine."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 7, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(4, 1)

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.classifier(self.layers(pixel_values)))


class Dense(nn.Module):
    """A layer of DenseNet (Huang et al., CVPR 2017): 4 x growth by 1 x 1, growth by 3 x 3, beside what came in."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.layers(x)], dim=1)


class DenseNet121(nn.Module):
    """densenet121 for one channel and one logit, with random weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        channels = 64
        layers: list[nn.Module] = [
            nn.Conv2d(1, channels, 7, 2, 3, bias=False), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        ]  # fmt: skip
        for block, depth in enumerate((6, 12, 24, 16)):
            for _ in range(depth):
                layers.append(Dense(channels, 32))
                channels += 32
            if block < 3:
                layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1), nn.AvgPool2d(2)]
                channels //= 2
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(channels, 1)

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.classifier(self.layers(pixel_values)))


def archive(folder: Path, n: int, syntax: str) -> pl.DataFrame:
    """n files of one film under n identifiers, and their index in shards of 100."""
    content = write_film(folder / "0000", film(ROWS, COLUMNS), syntax).read_bytes()
    for number in range(1, n):
        (folder / f"{number:04}").write_bytes(content)
    rules = Rules(("CR",), ("CHEST",), ("PA",), "exclude")
    rows, _ = read_headers(find_files(folder, None), folder, "root", None, rules, 1, lambda _: None)
    assert rows["eligible"].sum() == n
    return rows.with_columns(shard=pl.format("00000-{}", pl.int_range(pl.len()) // 100))


def score(rows: pl.DataFrame, folder: Path, network: nn.Module, size: int) -> float:
    """Wall seconds."""
    model = scoring.Model({"gt0": network}, {"gt0": ["gt0"]}, size)
    started = time.perf_counter()
    batch_size = scoring.batch_size_for(CPU, size)
    films = decoding.radiographs(rows.iter_rows(named=True), {"root": folder}, size, CORES)
    parts = list(scoring.score(rows, films, model, batch_size, CPU, CORES, lambda _: None))
    assert sum(len(part.outputs) for part in parts) == len(rows)
    return time.perf_counter() - started


def test_300_uncompressed_films_and_a_tiny_network(tmp_path: Path) -> None:
    """Against a loop over 60 of them (read, decode, resize, batch of 1), and against decoding them and no more."""
    rows = archive(tmp_path, 300, EXPLICIT)
    network = Tiny().eval()
    score(rows.head(20), tmp_path, network, 224)

    def naive(path: Path) -> float:
        values = pydicom.dcmread(path).pixel_array.astype(np.float64)
        low, high = np.percentile(values, (1, 99))
        image = np.clip((values - low) / (high - low), 0, 1)
        scale = 224 / max(image.shape)
        small = skimage.transform.resize(image, [round(side * scale) for side in image.shape], anti_aliasing=True)
        square = np.zeros((1, 1, 224, 224), np.float32)
        square[0, 0, : small.shape[0], : small.shape[1]] = small
        with torch.inference_mode():
            return float(network(torch.from_numpy(square)).logits)

    started = time.perf_counter()
    for number in range(60):
        naive(tmp_path / f"{number:04}")
    loop = 60 / (time.perf_counter() - started)
    engines, alone = [], []
    for _ in range(15):  # in turn: what else the machine does comes and goes
        engines.append(300 / score(rows, tmp_path, network, 224))
        started = time.perf_counter()
        assert sum(1 for _ in decoding.radiographs(rows.iter_rows(named=True), {"root": tmp_path}, 224, CORES)) == 300
        alone.append(300 / (time.perf_counter() - started))
    engine, decode = np.median(engines), np.median(alone)
    share = np.median(np.divide(engines, alone))
    print(f"\n300 uncompressed films, tiny network at 224, {CORES} cores, films/s:")
    print(f"  naive loop {loop:.1f}, engine {engine:.1f}: {engine / loop:.1f} x")
    print(f"  decoding alone, same children {decode:.1f}: engine reaches {share:.2f} of it")
    assert engine > 0


@pytest.mark.parametrize("n", [48])
def test_a_large_network_on_a_cpu_costs_what_its_parts_cost(tmp_path: Path, n: int) -> None:
    """Wall x cores of JPEG lossless films through densenet121 at 512, against forward + decode CPU seconds alone."""
    rows = archive(tmp_path, n, LOSSLESS_SV1)
    network = DenseNet121().eval()
    images = torch.rand(1, 1, 512, 512).contiguous(memory_format=torch.channels_last)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def forward(_: int) -> None:
        with torch.inference_mode():
            network(images)

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(forward, range(2 * CORES)))
        started = time.process_time()
        list(pool.map(forward, range(n)))
        forward_seconds = time.process_time() - started
    torch.set_num_threads(threads)
    folder = tmp_path
    every = rows.rows(named=True)
    radiograph.read(every[0], folder, 512)
    started = time.process_time()
    for row in every:
        radiograph.read(row, folder, 512)
    decode_seconds = time.process_time() - started
    wall = score(rows, tmp_path, network, 512)
    ratio = wall * CORES / (forward_seconds + decode_seconds)
    print(f"\n{n} JPEG lossless films, densenet121 at 512, {CORES} cores:")
    print(f"  wall x cores {wall * CORES:.1f} s; forward {forward_seconds:.1f} + decode {decode_seconds:.1f} CPU s")
    print(f"  ratio {ratio:.2f}")
    assert ratio > 0
