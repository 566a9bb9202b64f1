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
EMBEDDINGS = {
    "ResNet": "resnet.embedder.embedder.convolution",
    "ConvNextV2": "convnextv2.embeddings.patch_embeddings",
    "ViT": "vit.embeddings.patch_embeddings.projection",
    "Dinov2": "dinov2.embeddings.patch_embeddings.projection",
}


def written(folder: Path, kind: str, head: str, **changes: object) -> torch.nn.Module:
    torch.manual_seed(3)
    config = CONFIGS[kind].__class__(**{**CONFIGS[kind].to_dict(), **changes})
    network = getattr(transformers, f"{kind}{head}")(config).eval()
    network.save_pretrained(folder, safe_serialization=True)
    return network


@pytest.mark.parametrize("head", ["Model", "ForImageClassification"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_that_transformers_wrote_is_taken_over(tmp_path: Path, kind: str, head: str) -> None:
    source = written(tmp_path / "backbone", kind, head)
    network = networks.build(str(tmp_path / "backbone"), seed=1, size=SIZE)
    networks.save(network, tmp_path / "saved")
    again = networks.load(tmp_path / "saved")
    grey = torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(networks.logits(again, grey), networks.logits(network.eval(), grey))
        first = source.get_submodule(EMBEDDINGS[kind] if head != "Model" else EMBEDDINGS[kind].split(".", 1)[1])
        summed = network.get_submodule(EMBEDDINGS[kind])
        assert torch.allclose(summed(grey), first(grey.expand(-1, 3, -1, -1)), atol=1e-5)


def test_what_lies_behind_the_first_convolution_is_taken_over_too(tmp_path: Path) -> None:
    source = written(tmp_path, "ViT", "Model")
    network = networks.build(str(tmp_path), seed=1, size=32)
    grey = torch.rand(2, 1, 32, 32)
    with torch.inference_mode():
        expected = source(pixel_values=grey.expand(-1, 3, -1, -1)).last_hidden_state
        assert torch.allclose(network.vit(pixel_values=grey).last_hidden_state, expected, atol=1e-5)


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
