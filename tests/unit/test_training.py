"""Networks and heads learn, stop where they should, and go on where they were stopped with the same bytes."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch.optim.optimizer import register_optimizer_step_post_hook

from cohort_scorer.imaging import networks, training
from cohort_scorer.imaging.training import Job, Settings

SETTINGS = Settings("resnet-small", 0, 4, 8, 2e-3, "cpu")
NOBODY = np.empty(0, np.int64)


def job(name: str, outcome: np.ndarray, held_out: int = 8, stopping: int = 8, epochs: int = 4) -> Job:
    """The first images are held out, the next choose the epoch."""
    rows = np.arange(len(outcome))
    return Job(name, outcome, rows[held_out + stopping :], rows[held_out:][:stopping], rows[:held_out], 1, epochs)


def quiet(n: int, note: str = "") -> None:
    pass


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 images of 32 pixels; every other has a bright corner."""
    pixels = np.random.default_rng(0).integers(0, 30_000, (64, 32, 32)).astype(np.uint16)
    pixels[1::2, 4:28, 4:28] += 30_000
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, pixels)
    return path


OUTCOME = (np.arange(64) % 2 == 1)[:, None]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_a_killed_run_left_half_written_goes(tmp_path: Path, images: Path) -> None:
    folder = tmp_path / "networks"
    for name in (f".one-{os.getpid()}", ".one-1", ".another-1"):
        (folder / name).mkdir(parents=True)
    training.train_all([job("one", OUTCOME)], images, folder, SETTINGS, 1, quiet)
    assert {path.name for path in folder.iterdir()} == {"one", ".another-1"}  # another job may be at it
    assert not list((tmp_path / "checkpoints").iterdir())
    found = training.trained(folder, "one")
    assert found.logits.shape == (8, 1)
    assert len(found.curve) == 4


def test_it_learns_what_can_be_learnt_and_the_kept_epoch_has_the_lowest_stopping_loss(
    tmp_path: Path, images: Path
) -> None:
    settings = replace(SETTINGS, epochs=12, learning_rate=1e-2)
    training.train_all([job("one", OUTCOME, epochs=12)], images, tmp_path / "n", settings, 1, quiet)
    found = training.trained(tmp_path / "n", "one")
    assert roc_auc_score(OUTCOME[:8, 0], found.logits[:, 0]) > 0.9
    losses = [epoch["stopping_loss"][0] for epoch in found.curve]
    assert found.epochs == 1 + int(np.argmin(losses))
    assert len(losses) == min(12, found.epochs + 4)
    network = networks.load(tmp_path / "n" / "one")
    pixels = torch.from_numpy(np.load(images)[:8].astype(np.float32) / 65535).unsqueeze(1)
    with torch.inference_mode():
        assert np.allclose(networks.logits(network, pixels).numpy(), found.logits, atol=1e-5)


def test_it_stops_when_the_loss_of_the_stopping_part_no_longer_falls(tmp_path: Path, images: Path) -> None:
    """Stopping images whose outcome is the opposite: the first epochs are the best, and 4 more are tried."""
    turned = OUTCOME.copy()
    turned[8:16] = ~turned[8:16]
    settings = replace(SETTINGS, epochs=12, learning_rate=1e-2)
    training.train_all([job("one", turned, epochs=12)], images, tmp_path / "n", settings, 1, quiet)
    found = training.trained(tmp_path / "n", "one")
    assert len(found.curve) == found.epochs + 4 < 12


def test_without_a_stopping_part_the_last_epoch_is_kept(tmp_path: Path, images: Path) -> None:
    whole = replace(job("one", OUTCOME, epochs=3), stopping=NOBODY)
    training.train_all([whole], images, tmp_path / "n", SETTINGS, 1, quiet)
    found = training.trained(tmp_path / "n", "one")
    assert found.epochs == len(found.curve) == 3
    assert {epoch["stopping_loss"][0] for epoch in found.curve} == {None}


class StoppedError(Exception):
    """As if the process had been killed."""


@pytest.mark.parametrize("after", [1, 2, 3, 4])
@pytest.mark.parametrize("backbone", ["resnet-small", "dropout"])
def test_training_that_was_stopped_after_any_epoch_ends_with_the_same_bytes(
    tmp_path: Path, images: Path, after: int, backbone: str
) -> None:
    """Weights, running means, momenta, learning rate and what is drawn at random: all as if nothing had happened."""
    settings, outcome = SETTINGS, np.column_stack([OUTCOME, ~OUTCOME])
    if backbone == "dropout":
        import transformers

        config = transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32,
            patch_size=8, hidden_dropout_prob=0.3,
        )  # fmt: skip
        transformers.ViTModel(config).save_pretrained(tmp_path / "vit", safe_serialization=True)
        settings = replace(SETTINGS, backbone=str(tmp_path / "vit"))
    training.train_all([job("one", outcome)], images, tmp_path / "whole" / "n", settings, 1, quiet)

    done = 0

    def stop(n: int, note: str = "") -> None:
        nonlocal done
        done += n
        if note and done == after:
            raise StoppedError

    with pytest.raises(StoppedError):
        training.train_all([job("one", outcome)], images, tmp_path / "part" / "n", settings, 1, stop)
    assert (tmp_path / "part" / "checkpoints" / "one.pt").is_file()
    told: list[int] = []
    training.train_all(
        [job("one", outcome)], images, tmp_path / "part" / "n", settings, 1, lambda n, note: told.append(n)
    )
    assert sum(told) == 4
    assert bytes_of(tmp_path / "part" / "n" / "one") == bytes_of(tmp_path / "whole" / "n" / "one")


def test_side_by_side_in_processes_gives_the_same_bytes_and_tells_every_epoch(tmp_path: Path, images: Path) -> None:
    jobs = [job(name, OUTCOME) for name in ("one", "two", "three")]
    training.train_all(jobs, images, tmp_path / "alone" / "n", SETTINGS, 1, quiet)
    told: list[tuple[int, str]] = []
    training.train_all(jobs, images, tmp_path / "beside" / "n", SETTINGS, 2, lambda n, note: told.append((n, note)))
    for name in ("one", "two", "three"):
        assert bytes_of(tmp_path / "beside" / "n" / name) == bytes_of(tmp_path / "alone" / "n" / name)
    assert sum(n for n, _ in told) == 12
    assert {note.split(",")[0] for _, note in told if note} == {"one", "two", "three"}
    assert all("loss" in note and "AUC" in note for _, note in told if note)


@pytest.fixture
def features(tmp_path: Path) -> tuple[Path, np.ndarray]:
    rng = np.random.default_rng(1)
    given = (rng.normal(size=(400, 5)) * [1, 10, 100, 1, 0] + [0, 5, -300, 0, 7]).astype(np.float32)
    outcome = (given[:, 0] + given[:, 1] / 10 + rng.normal(size=400) > 1)[:, None]
    np.save(tmp_path / "features.npy", given)
    return tmp_path / "features.npy", outcome


def test_a_head_is_a_weighted_logistic_regression_on_the_features_as_they_are(
    tmp_path: Path, features: tuple[Path, np.ndarray]
) -> None:
    """Against scikit-learn's maximum likelihood with balanced classes; one feature is constant."""
    path, outcome = features
    settings = replace(SETTINGS, epochs=300, batch_size=384, learning_rate=0.05)
    whole = replace(job("one", outcome, stopping=0, held_out=16, epochs=300), stopping=NOBODY)
    training.train_all([whole], path, tmp_path / "n", settings, 1, quiet)
    head = safetensors.torch.load_file(tmp_path / "n" / "one" / "head.safetensors")
    given = np.load(path).astype(np.float64)
    reference = LogisticRegression(C=np.inf, class_weight="balanced", tol=1e-10, max_iter=1000)
    scaled = given[16:, :4] / [1, 10, 100, 1]
    reference.fit(scaled, outcome[16:, 0])
    assert head["weight"].numpy()[0, :4] * [1, 10, 100, 1] == pytest.approx(reference.coef_[0], rel=0.05, abs=0.02)
    found = training.trained(tmp_path / "n", "one").logits[:, 0]
    assert found == pytest.approx(reference.decision_function(given[:16, :4] / [1, 10, 100, 1]), rel=0.05, abs=0.05)
    assert found == pytest.approx(given[:16] @ head["weight"].numpy()[0] + head["bias"].numpy()[0], abs=1e-3)


def test_the_weights_kept_are_the_average_of_those_of_about_an_epoch(
    tmp_path: Path, features: tuple[Path, np.ndarray]
) -> None:
    """Against every step's weights, averaged here in float64 with the share of a step that an epoch has."""
    path, outcome = features
    seen: list[np.ndarray] = []

    def remember(optimiser: torch.optim.Optimizer, *_: object) -> None:
        seen.append(np.concatenate([p.detach().numpy().ravel() for p in optimiser.param_groups[0]["params"]]))

    handle = register_optimizer_step_post_hook(remember)
    settings = replace(SETTINGS, epochs=3, batch_size=64, learning_rate=0.05)
    whole = replace(job("one", outcome, stopping=0, held_out=16, epochs=3), stopping=NOBODY)
    try:
        training.train_all([whole], path, tmp_path / "n", settings, 1, quiet)
    finally:
        handle.remove()
    steps = 384 // 64
    assert len(seen) == 3 * steps
    average = seen[0].astype(np.float64)
    for weights in seen[1:]:
        average += (weights - average) / steps
    members = np.load(path)[16:].astype(np.float64)
    spread = members.std(axis=0)
    head = safetensors.torch.load_file(tmp_path / "n" / "one" / "head.safetensors")
    kept = head["weight"].numpy()[0, :4] * spread[:4]  # of features as they were standardised; the last is constant
    assert kept == pytest.approx(average[:4], rel=1e-4, abs=1e-6)
    assert np.abs(kept - seen[-1][:4]).max() > 1e-3


def test_batch_normalisation_is_fitted_to_the_weights_that_are_kept(tmp_path: Path, images: Path) -> None:
    whole = replace(job("one", OUTCOME, epochs=2), stopping=NOBODY)
    training.train_all([whole], images, tmp_path / "n", SETTINGS, 1, quiet)
    network = networks.load(tmp_path / "n" / "one")
    norm = next(module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d))
    inputs: list[torch.Tensor] = []
    norm.register_forward_hook(lambda _, given, __: inputs.append(given[0]))
    pixels = torch.from_numpy(np.load(images)[whole.members].astype(np.float32) / 65535).unsqueeze(1)
    with torch.inference_mode():
        for part in pixels.split(SETTINGS.batch_size):
            networks.logits(network, part)
    assert norm.running_mean is not None
    assert norm.running_mean.numpy() == pytest.approx(torch.cat(inputs).mean(dim=(0, 2, 3)).numpy(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("workers", [1, 2])
def test_heads_on_a_backbone_give_the_outputs_of_one_network(
    tmp_path: Path, images: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_FILMS_AT_ONCE", 20)
    told: list[int] = []
    path = training.embed(images, tmp_path, SETTINGS, workers, lambda n, note: told.append(n))
    assert sum(told) == 64
    jobs = [job("one", OUTCOME), job("two", np.column_stack([~OUTCOME, OUTCOME]))]
    training.train_all(jobs, path, tmp_path / "n", SETTINGS, workers, quiet)
    joined = training.join_heads(tmp_path / "n", ["one", "two"], SETTINGS, 32)
    pixels = torch.from_numpy(np.load(images)[:8].astype(np.float32) / 65535).unsqueeze(1)
    with torch.inference_mode():
        together = networks.logits(joined, pixels).numpy()
    apart = np.column_stack([training.trained(tmp_path / "n", name).logits for name in ("one", "two")])
    assert together == pytest.approx(apart, abs=1e-4)


def refuse(*_: object) -> None:
    raise AssertionError("computed again")


def test_features_that_stand_are_not_computed_again(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = training.embed(images, tmp_path, SETTINGS, 1, quiet)
    before = path.read_bytes()
    called: Callable[..., None] = refuse
    monkeypatch.setattr(training, "features", called)
    path.unlink()  # the parts stand
    assert training.embed(images, tmp_path, SETTINGS, 1, quiet).read_bytes() == before
