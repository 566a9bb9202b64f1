"""Networks: from a preset or a local folder, to safetensors and back. Never a pickle, never the network.

Knows neither radiographs nor patients.
"""

import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import nn

from cohort_scorer.errors import BundleError, MachineError, StudyFileError

os.environ["HF_HUB_OFFLINE"] = "1"

_PRESETS: dict[str, dict[str, Any]] = {
    "resnet-small": {
        "model_type": "resnet",
        "num_channels": 1,
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 64, 128],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
    },
}
_ALLOWED = ("resnet", "convnextv2", "vit", "dinov2")


def build(backbone: str, seed: int) -> nn.Module:
    """Make a network with one logit, from a preset or a folder with config.json and model.safetensors.

    Args:
        backbone: Name of a preset, or a folder. Weights of a folder are taken over but for the head.
        seed: Seeds the weights that are new.

    Raises:
        StudyFileError: no such preset or folder.
        BundleError: the folder does not hold a network of an allowed kind.
    """
    folder = Path(backbone)
    if backbone in _PRESETS:
        config = _PRESETS[backbone]
    elif folder.is_dir():
        config = _config(folder)
    else:
        raise StudyFileError(
            "[train] backbone: no such preset and no such folder.",
            f"Expected one of {', '.join(_PRESETS)}, or a folder with config.json and model.safetensors.",
            "Correct [train] backbone.",
        )
    torch.manual_seed(seed)
    network = _from_config({**config, "num_labels": 1})
    if folder.is_dir() and backbone not in _PRESETS:
        _take_over(network, folder)
    return network


def save(network: nn.Module, folder: Path) -> None:
    """Write config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config: Any = network.config
    (folder / "config.json").write_text(json.dumps(config.to_diff_dict(), indent=2, sort_keys=True) + "\n")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "model.safetensors")


def load(folder: Path) -> nn.Module:
    """Read a network that `save` wrote; every weight must be there and none may be over.

    Raises:
        BundleError: an unknown kind of network, or weights that do not fit its configuration.
    """
    network = _from_config(_config(folder))
    try:
        network.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"), strict=True)
    except (RuntimeError, OSError, safetensors.SafetensorError) as fault:
        raise BundleError(
            "A network of the bundle cannot be loaded.",
            "Expected weights in safetensors that fit config.json; found others.",
            "Get the bundle again from where it was made.",
        ) from fault
    return network.eval()


def logits(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """One logit per image: (B, 1, S, S) float32 in [0, 1] -> (B,)."""
    output: torch.Tensor = network(pixel_values=images).logits
    return output[:, 0]


def choose_device(wanted: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`; float32 stays float32 on CUDA (no TF32).

    Raises:
        MachineError: cuda was asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise MachineError(
            "--device cuda: there is no CUDA device.",
            "Expected an NVIDIA GPU with a CUDA build of torch; found none.",
            "Use --device cpu, or install a CUDA build of torch (README, Installation).",
        )
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise BundleError(
            "A network's config.json is missing or unreadable.",
            "Expected a folder with config.json and model.safetensors.",
            "Get the network again from where it was made.",
        ) from fault
    return config


def _from_config(config: dict[str, Any]) -> nn.Module:
    kind = config.get("model_type")
    if kind not in _ALLOWED:
        raise BundleError(
            "A network's config.json names a kind of network that is not allowed.",
            f"Expected model_type {', '.join(_ALLOWED)}.",
            "Use a network of an allowed kind; code from a configuration is never run.",
        )
    settings = {key: value for key, value in config.items() if key not in ("model_type", "auto_map")}
    made = transformers.AutoConfig.for_model(kind, **settings)
    network: nn.Module = transformers.AutoModelForImageClassification.from_config(made, trust_remote_code=False)
    return network


def _take_over(network: nn.Module, folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier.")}
    try:
        absent = network.load_state_dict(weights, strict=False)
    except RuntimeError as fault:
        raise _unfit("differ in shape") from fault
    headless = [name for name in absent.missing_keys if not name.startswith("classifier.")]
    if headless or absent.unexpected_keys:
        raise _unfit(f"lack {len(headless)} tensors and have {len(absent.unexpected_keys)} others")


def _unfit(found: str) -> BundleError:
    return BundleError(
        "The weights of [train] backbone do not fit its config.json.",
        f"Expected every tensor but those of the classifier; the weights {found}.",
        "Use a folder that transformers' save_pretrained wrote.",
    )
