"""Networks: from a preset or a local folder, to safetensors and back. Never a pickle, never the network.

Knows neither radiographs nor patients.
"""

import json
import os
import threading
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
_HEADS = ("classifier.", "pooler.")
_COLOURS = 3
_NOT_OURS = ("model_type", "auto_map", "dtype", "torch_dtype", "quantization_config")


def build(backbone: str, seed: int, size: int) -> nn.Module:
    """Make a network with one logit, from a preset or a folder with config.json and model.safetensors.

    Weights of a folder are taken over but for the head. A first convolution that looks at three channels is summed to
    one: a grey film gives what three equal channels would have given.

    Args:
        backbone: Name of a preset, or a folder that transformers' save_pretrained wrote.
        seed: Seeds the weights that are new.
        size: Side of the images in pixels; one is tried.

    Raises:
        StudyFileError: no such preset or folder.
        BundleError: the folder does not hold a network of an allowed kind, or one that takes no such images.
    """
    torch.manual_seed(seed)
    if backbone in _PRESETS:
        network = _from_config({**_PRESETS[backbone], "num_labels": 1})
    elif Path(backbone).is_dir():
        network = _taken_over(Path(backbone))
    else:
        raise StudyFileError(
            "[train] backbone: no such preset and no such folder.",
            f"Expected one of {', '.join(_PRESETS)}, or a folder with config.json and model.safetensors.",
            "Correct [train] backbone.",
        )
    _try(network, size)
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
    # The positions of a ViT are those of the size that it was made for, unless it is told to interpolate them.
    settings = {"interpolate_pos_encoding": True} if isinstance(network, transformers.ViTForImageClassification) else {}
    output: torch.Tensor = network(pixel_values=images, **settings).logits
    return output[:, 0]


class Features:
    """While entered, keeps what the head of a network was given last, in each thread that runs it.

    Args:
        network: One that `build` or `load` made.
    """

    def __init__(self, network: nn.Module) -> None:
        self._head: Any = network.classifier
        self._given = threading.local()

    def __enter__(self) -> "Features":
        self._hook = self._head.register_forward_pre_hook(self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _keep(self, _: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        self._given.features = given[0].flatten(1)

    def last(self) -> torch.Tensor:
        """(B, d) float32: the features of the last batch that this thread ran."""
        features: torch.Tensor = self._given.features
        return features


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
    made = _settings(config)
    network: nn.Module = transformers.AutoModelForImageClassification.from_config(made, trust_remote_code=False)
    return network


def _settings(config: dict[str, Any]) -> transformers.PreTrainedConfig:
    """The configuration of a network of an allowed kind, in float32, without code or quantisation."""
    kind = config.get("model_type")
    if kind not in _ALLOWED:
        raise BundleError(
            "A network's config.json names a kind of network that is not allowed.",
            f"Expected model_type {', '.join(_ALLOWED)}.",
            "Use a network of an allowed kind; code from a configuration is never run.",
        )
    settings = {key: value for key, value in config.items() if key not in _NOT_OURS}
    return transformers.AutoConfig.for_model(kind, **settings)


def _taken_over(folder: Path) -> nn.Module:
    """The network of a folder with a new head.

    transformers sorts out the names, which differ between its versions and with the head that was saved; it is given
    the weights, not the folder, so that it reads no pickle and runs no code.
    """
    made = _settings({**_config(folder), "num_channels": 1, "num_labels": 1})
    kind = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(made)]
    transformers.utils.logging.disable_progress_bar()
    try:
        weights = {
            name: _one_channel(name, tensor.to(torch.float32))
            for name, tensor in safetensors.torch.load_file(folder / "model.safetensors").items()
            if not name.startswith(_HEADS)
        }
        network, found = kind.from_pretrained(None, config=made, state_dict=weights, output_loading_info=True)
    except (RuntimeError, OSError, safetensors.SafetensorError) as fault:
        raise _unfit("cannot be read, or differ in shape") from fault
    lacking = [name for name in found["missing_keys"] if not name.startswith(_HEADS)]
    if lacking or found["unexpected_keys"]:
        raise _unfit(f"lack {len(lacking)} tensors and have {len(found['unexpected_keys'])} others")
    taken: nn.Module = network
    return taken


def _one_channel(name: str, tensor: torch.Tensor) -> torch.Tensor:
    is_first = "embed" in name and tensor.ndim == 4 and tensor.shape[1] == _COLOURS
    return tensor.sum(1, keepdim=True) if is_first else tensor


def _try(network: nn.Module, size: int) -> None:
    """Run one empty image through a network: better now than after hours of decoding."""
    was_training = network.training
    try:
        with torch.inference_mode():
            logits(network.eval(), torch.zeros(1, 1, size, size))
    except (RuntimeError, ValueError) as fault:
        raise BundleError(
            f"The network of [train] backbone does not take images of {size} x {size} pixels.",
            "Expected one that takes one channel of [train] image_size; a trial image failed.",
            "Choose an image_size that fits the network (a multiple of its patch size), or another backbone.",
        ) from fault
    network.train(was_training)


def _unfit(found: str) -> BundleError:
    return BundleError(
        "The weights of [train] backbone do not fit its config.json.",
        f"Expected every tensor but those of the head; the weights {found}.",
        "Use a folder that transformers' save_pretrained wrote.",
    )
