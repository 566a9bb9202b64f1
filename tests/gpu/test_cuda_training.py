"""Training on CUDA, in bfloat16: the same bytes each time, also when it was stopped; what it says holds on a CPU."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from cohort_scorer.imaging import networks, training
from cohort_scorer.imaging.training import Job, Settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

SETTINGS = Settings("resnet-small", 0, 3, 16, 2e-3, "cuda")
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
FOLDERS = {
    "vit": transformers.ViTConfig(**VIT, intermediate_size=64, image_size=96, patch_size=16, hidden_dropout_prob=0.1),
    "convnextv2": transformers.ConvNextV2Config(hidden_sizes=[16, 32, 32, 32], depths=[1, 1, 1, 1]),
    "dinov2 of another size": transformers.Dinov2Config(**VIT, image_size=56, patch_size=14, drop_path_rate=0.1),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = np.random.default_rng(0).integers(0, 30_000, (128, 98, 98)).astype(np.uint16)
    pixels[1::2, 20:60, 20:60] += 20_000
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, pixels)
    return path


def job() -> Job:
    rows, outcome = np.arange(128), (np.arange(128) % 2 == 1)[:, None]
    return Job("one", outcome, rows[32:], rows[16:32], rows[:16], 1, 3)


def trained(images: Path, folder: Path, settings: Settings, stop_after: int = 99) -> dict[str, bytes]:
    done = 0

    def advance(n: int, note: str = "") -> None:
        nonlocal done
        done += n
        if note and done == stop_after:
            raise KeyboardInterrupt

    networks.choose_device("cuda")
    training.train_all([job()], images, folder / "networks", settings, 1, advance)
    return {path.name: path.read_bytes() for path in (folder / "networks" / "one").iterdir()}


@pytest.mark.parametrize("backbone", ["resnet-small", *FOLDERS])
def test_training_gives_the_same_bytes_each_time_and_when_it_was_stopped(
    tmp_path: Path, images: Path, backbone: str
) -> None:
    settings = SETTINGS
    if backbone in FOLDERS:
        torch.manual_seed(0)
        transformers.AutoModel.from_config(FOLDERS[backbone]).save_pretrained(tmp_path / "backbone")
        settings = replace(SETTINGS, backbone=str(tmp_path / "backbone"))
    first = trained(images, tmp_path / "first", settings)
    assert trained(images, tmp_path / "second", settings) == first
    with pytest.raises(KeyboardInterrupt):
        trained(images, tmp_path / "third", settings, stop_after=2)
    assert trained(images, tmp_path / "third", settings) == first


def test_held_out_logits_are_those_of_the_saved_network_on_a_cpu(tmp_path: Path, images: Path) -> None:
    trained(images, tmp_path, SETTINGS)
    network = networks.load(tmp_path / "networks" / "one")
    pixels = torch.from_numpy(np.load(images)[:16].astype(np.float32) / 65535).unsqueeze(1)
    with torch.inference_mode():
        on_cpu = networks.logits(network, pixels).numpy()
    assert np.abs(training.trained(tmp_path / "networks", "one").logits - on_cpu).max() < 1e-4


def test_heads_train_on_cuda_as_on_a_cpu(tmp_path: Path, images: Path) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        settings = replace(SETTINGS, device=device)
        features = training.embed(images, tmp_path / device, settings, 1, lambda n, note="": None)
        training.train_all([job()], features, tmp_path / device / "n", settings, 1, lambda n, note="": None)
        found[device] = training.trained(tmp_path / device / "n", "one").logits
    assert np.abs(found["cpu"] - found["cuda"]).max() < 0.05
