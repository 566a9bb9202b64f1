"""Backbones come from folders that transformers wrote, of the four allowed kinds, and from nothing else."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers

from cohort_scorer.errors import BundleError
from cohort_scorer.imaging import networks

SIZE = 42  # a multiple of no patch size below but DINOv2's, and not the size that the networks were made for
CONFIGS = {
    "ResNet": transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "ConvNextV2": transformers.ConvNextV2Config(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "ViT": transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    ),
    "Dinov2": transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    ),
}
BODIES = {"ResNet": "resnet", "ConvNextV2": "convnextv2", "ViT": "vit", "Dinov2": "dinov2"}
PREPROCESSOR = {"do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}


def written(folder: Path, kind: str, head: str, **changes: object) -> torch.nn.Module:
    torch.manual_seed(3)
    config = CONFIGS[kind].__class__(**{**CONFIGS[kind].to_dict(), **changes})
    network = getattr(transformers, f"{kind}{head}")(config).eval()
    network.save_pretrained(folder, safe_serialization=True)
    return network


@pytest.mark.parametrize("preprocessor", [None, PREPROCESSOR, PREPROCESSOR | {"do_normalize": False}])
@pytest.mark.parametrize("head", ["Model", "ForImageClassification"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_that_transformers_wrote_sees_a_grey_film_as_it_was_made_to(
    tmp_path: Path, kind: str, head: str, preprocessor: dict[str, object] | None
) -> None:
    """The film in each of three channels, normalised as preprocessor_config.json says, also once saved and loaded."""
    source = written(tmp_path / "backbone", kind, head)
    if preprocessor:
        (tmp_path / "backbone" / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    network = networks.build(str(tmp_path / "backbone"), seed=1, size=SIZE, n_outputs=3).eval()
    networks.save(network, tmp_path / "saved")
    again = networks.load(tmp_path / "saved")
    grey = torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    shown = grey.expand(-1, 3, -1, -1)
    if preprocessor and preprocessor["do_normalize"]:
        mean, std = (torch.tensor(preprocessor[name]).view(1, 3, 1, 1) for name in ("image_mean", "image_std"))
        shown = (shown - mean) / std
    settings = {"interpolate_pos_encoding": True} if kind == "ViT" else {}
    with torch.inference_mode():
        found = networks.logits(network, grey)
        assert found.shape == (2, 3)
        assert torch.equal(networks.logits(again, grey), found)
        body = source if head == "Model" else source.get_submodule(BODIES[kind])
        expected = body(pixel_values=shown, **settings).last_hidden_state
        seen = []
        handle = network.get_submodule(BODIES[kind]).register_forward_hook(lambda *call: seen.append(call[2]))
        networks.logits(network, grey)
        handle.remove()
        assert torch.allclose(seen[0].last_hidden_state, expected, atol=1e-5)


@pytest.mark.parametrize("told", ["{", "[1]", json.dumps({"image_mean": [0.5], "image_std": [0.5]})])
def test_a_preprocessor_that_cannot_be_used_is_refused(tmp_path: Path, told: str) -> None:
    written(tmp_path, "ResNet", "Model")
    (tmp_path / "preprocessor_config.json").write_text(told)
    with pytest.raises(BundleError, match=r"preprocessor_config|image_mean"):
        networks.build(str(tmp_path), seed=1, size=SIZE)


@pytest.mark.parametrize("name", networks.PRESETS)
def test_every_preset_gives_the_outputs_asked_for(name: str) -> None:
    network = networks.build(name, seed=1, size=42, n_outputs=3).eval()
    with torch.inference_mode():
        assert networks.logits(network, torch.rand(1, 1, 42, 42)).shape == (1, 3)
    assert not hasattr(network, "image_mean")  # one channel, in [0, 1]


@pytest.mark.parametrize("kind", CONFIGS)
def test_another_head_reads_the_features_that_are_handed_out(tmp_path: Path, kind: str) -> None:
    written(tmp_path, kind, "Model")
    network = networks.build(str(tmp_path), seed=1, size=SIZE).eval()
    grey = torch.rand(2, 1, SIZE, SIZE)
    with torch.inference_mode(), networks.Features(network) as given:
        networks.logits(network, grey)
        features = given.last()
    weight, bias = torch.randn(4, features.shape[1]), torch.randn(4)
    networks.set_head(network, weight, bias)
    networks.save(network, tmp_path / "saved")
    again = networks.load(tmp_path / "saved")
    with torch.inference_mode():
        assert torch.allclose(networks.logits(again, grey), features @ weight.T + bias, atol=1e-5)


def test_a_half_precision_folder_gives_a_float32_network(tmp_path: Path) -> None:
    written(tmp_path, "ResNet", "Model").half().save_pretrained(tmp_path)
    network = networks.build(str(tmp_path), seed=1, size=SIZE)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_a_size_that_the_network_does_not_take_is_refused_at_once(tmp_path: Path) -> None:
    written(tmp_path, "Dinov2", "Model", patch_size=14)
    with pytest.raises(BundleError, match="does not take images of 8 x 8"):
        networks.build(str(tmp_path), seed=1, size=8)


@pytest.mark.parametrize("fault", ["lacking", "over", "shape"])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, fault: str) -> None:
    written(tmp_path, "ResNet", "Model")
    file = tmp_path / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    name = next(name for name in weights if "encoder" in name and name.endswith("convolution.weight"))
    if fault == "lacking":
        del weights[name]
    elif fault == "over":
        weights["another.weight"] = torch.zeros(3)
    else:
        weights[name] = torch.zeros(1, 2, 3, 3)
    safetensors.torch.save_file(weights, file)
    with pytest.raises(BundleError, match="do not fit"):
        networks.build(str(tmp_path), seed=1, size=SIZE)


def test_a_pickle_beside_the_configuration_is_not_read(tmp_path: Path) -> None:
    written(tmp_path, "ResNet", "Model")
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(BundleError):
        networks.build(str(tmp_path), seed=1, size=SIZE)


def test_another_kind_of_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(BundleError, match="not allowed"):
        networks.build(str(tmp_path), seed=1, size=SIZE)
