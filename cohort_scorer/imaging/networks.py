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
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may give other bits each time

PRESETS: dict[str, dict[str, Any]] = {
    "resnet-small": {
        "model_type": "resnet",
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 64, 128],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
    },
    "resnet50": {
        "model_type": "resnet",
        "embedding_size": 64,
        "hidden_sizes": [256, 512, 1024, 2048],
        "depths": [3, 4, 6, 3],
        "layer_type": "bottleneck",
    },
    "convnextv2-tiny": {"model_type": "convnextv2", "hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3]},
    "vit-small": {
        "model_type": "vit",
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "patch_size": 16,
    },
    "dinov2-base": {
        "model_type": "dinov2",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 14,
    },
}
"""Architectures by name. Their weights start at random: none are shipped."""

_ALLOWED = ("resnet", "convnextv2", "vit", "dinov2")
_HEADS = ("classifier.", "pooler.")
_NOT_OURS = (
    "model_type", "auto_map", "dtype", "torch_dtype", "quantization_config", "attn_implementation",
    "_attn_implementation", "use_kernels",
)  # fmt: skip


def build(backbone: str, seed: int, size: int, n_outputs: int = 1) -> nn.Module:
    """Make a network with a new head, from a preset or a folder with config.json and model.safetensors.

    Weights of a folder are taken over but for the head. A network made for three channels is shown the grey film in
    each of them, normalised as the folder's preprocessor_config.json says: exactly what it was made for.

    Args:
        backbone: Name of a preset, or a folder that transformers' save_pretrained wrote.
        seed: Seeds the weights that are new.
        size: Side of the images in pixels; one is tried.
        n_outputs: Logits per image.

    Raises:
        StudyFileError: no such preset or folder.
        BundleError: the folder does not hold a network of an allowed kind, or one that takes no such images.
    """
    torch.manual_seed(seed)
    if backbone in PRESETS:
        positions = {"image_size": size} if "patch_size" in PRESETS[backbone] else {}
        network = _from_config({**PRESETS[backbone], **positions, "num_channels": 1, "num_labels": n_outputs})
    elif Path(backbone).is_dir():
        network = _taken_over(Path(backbone), n_outputs)
        _fit_positions(network, size)
    else:
        raise StudyFileError(
            "[train] backbone: no such preset and no such folder.",
            f"Expected one of {', '.join(PRESETS)}, or a folder with config.json and model.safetensors.",
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
    """The outputs of a network for each image: (B, 1, S, S) float32 in [0, 1] -> (B, K)."""
    # The positions of a ViT are those of the size that it was made for, unless it is told to interpolate them.
    settings = {"interpolate_pos_encoding": True} if isinstance(network, transformers.ViTForImageClassification) else {}
    normal: Any = network
    shown = (images - normal.image_mean) / normal.image_std if hasattr(network, "image_mean") else images
    output: torch.Tensor = network(pixel_values=shown, **settings).logits
    return output


def set_head(network: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Give a network another linear head: weight (K, d), bias (K,) on its features."""
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": bias})
    classifier: Any = network.classifier
    if isinstance(classifier, nn.Sequential):
        classifier[-1] = head
    else:
        network.classifier = head
    config: Any = network.config
    config.num_labels = len(bias)


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
    torch.use_deterministic_algorithms(True)
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as fault:
        raise BundleError(
            "A network's config.json is missing or unreadable.",
            "Expected a folder with config.json and model.safetensors.",
            "Get the network again from where it was made.",
        ) from fault
    return config


def _from_config(config: dict[str, Any]) -> nn.Module:
    made = _settings(config)
    network: nn.Module = transformers.AutoModelForImageClassification.from_config(made, trust_remote_code=False)
    return _normalising(network)


def _normalising(network: nn.Module) -> nn.Module:
    """Let `logits` show a network each channel as (image - image_mean) / image_std, as its configuration says."""
    config: Any = network.config
    n_channels = config.num_channels
    mean, std = getattr(config, "image_mean", [0.0] * n_channels), getattr(config, "image_std", [1.0] * n_channels)
    numbers = all(isinstance(value, int | float) for part in (mean, std) for value in part)
    if not numbers or len(mean) != n_channels or len(std) != n_channels or min(std) <= 0:
        raise BundleError(
            "A network's image_mean and image_std cannot be used.",
            f"Expected {n_channels} numbers each, one per channel, the second above 0.",
            "Correct preprocessor_config.json of the backbone, or get the network again from where it was made.",
        )
    if n_channels > 1 or (mean, std) != ([0.0], [1.0]):
        network.register_buffer("image_mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        network.register_buffer("image_std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
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


def _taken_over(folder: Path, n_outputs: int) -> nn.Module:
    """The network of a folder with a new head.

    transformers sorts out the names, which differ between its versions and with the head that was saved; it is given
    the weights, not the folder, so that it reads no pickle and runs no code.
    """
    made = _settings({**_config(folder), **_normalisation(folder), "num_labels": n_outputs})
    kind = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(made)]
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # the missing head is looked at below
    try:
        weights = {
            name: tensor.to(torch.float32)
            for name, tensor in safetensors.torch.load_file(folder / "model.safetensors").items()
            if not name.startswith(_HEADS)
        }
        network, found = kind.from_pretrained(None, config=made, state_dict=weights, output_loading_info=True)
    except (RuntimeError, OSError, safetensors.SafetensorError) as fault:
        raise _unfit("cannot be read, or differ in shape") from fault
    lacking = [name for name in found["missing_keys"] if not name.startswith(_HEADS)]
    if lacking or found["unexpected_keys"]:
        raise _unfit(f"lack {len(lacking)} tensors and have {len(found['unexpected_keys'])} others")
    return _normalising(network)


def _fit_positions(network: nn.Module, size: int) -> None:
    """Interpolate a transformer's positions once: each step would take time, and on CUDA no two give the same bits."""
    whole: Any = network
    embeddings: Any = getattr(getattr(whole, whole.base_model_prefix), "embeddings", None)
    if not hasattr(embeddings, "interpolate_pos_encoding") or size < whole.config.patch_size:
        return
    patches = torch.zeros(1, (size // whole.config.patch_size) ** 2 + 1, whole.config.hidden_size)
    with torch.no_grad():
        fitted = embeddings.interpolate_pos_encoding(patches, size, size)
    embeddings.position_embeddings = nn.Parameter(fitted.clone())
    whole.config.image_size = size


def _normalisation(folder: Path) -> dict[str, Any]:
    """What preprocessor_config.json says of mean and standard deviation; without the file, images go in as they are."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        normalised = told.get("do_normalize", True)
        return {name: list(told[name]) for name in ("image_mean", "image_std") if normalised and name in told}
    except (OSError, ValueError, AttributeError, TypeError) as fault:
        raise BundleError(
            "preprocessor_config.json of [train] backbone cannot be read.",
            "Expected JSON with image_mean and image_std, as transformers' save_pretrained writes it.",
            "Get the backbone again from where it was made, or remove the file if images need no normalisation.",
        ) from fault


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
