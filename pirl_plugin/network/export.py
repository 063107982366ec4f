"""Exports weights to other libraries: torchvision, timm, Detectron2, a plain safetensors file, or VISSL.

A .json file beside the weights records the preprocessing that they need: a mismatch changes no shape, so it would go
unnoticed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from pirl_plugin.network.preprocessing import Preprocessing
from pirl_plugin.network.timm_trunk import TimmArchitecture
from pirl_plugin.network.weights import Architecture, Trunk, load_trunk
from pirl_plugin.paths import written_whole
from pirl_plugin.validation import ConfigError, check_choice, check_other_file

SUFFIXES = {
    "torchvision": ".pth",
    "timm": ".pth",
    "detectron2": ".pth",
    "safetensors": ".safetensors",
    "vissl": ".torch",
}
TOLERANCE = 1e-5  # of the features, relative to the largest


def detectron2_name(name: str) -> str:
    """Detectron2's name of a torchvision weight, e.g. layer1.0.downsample.1.bias -> res2.0.shortcut.norm.bias."""
    name = re.sub(r"^layer(\d)", lambda match: f"res{int(match.group(1)) + 1}", name)
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    name = re.sub(r"bn(\d)", r"conv\1.norm", name)
    return name if name.startswith("res") else f"stem.{name}"


def preprocessing_notes(
    architecture: Architecture | TimmArchitecture, form: str, wanted: Preprocessing
) -> dict[str, Any]:
    """The preprocessing that these weights need, in the terms of a library.

    `images` is what `preprocessing_of` reads back; null if it is not known and ImageNet's is assumed.
    """
    common: dict[str, Any] = {"architecture": architecture.record(), "format": form, "interpolation": "bilinear"}
    common |= {"images": wanted.record() if wanted.known else None, "note": str(wanted)}
    if form == "detectron2":
        assert isinstance(architecture, Architecture)
        return {
            **common,
            "INPUT.FORMAT": "RGB",
            "MODEL.PIXEL_MEAN": [round(255 * value, 3) for value in wanted.mean],
            "MODEL.PIXEL_STD": [round(255 * value, 3) for value in wanted.std],
            "MODEL.RESNETS.STRIDE_IN_1X1": False,
            **_detectron2_keys(architecture),
        }
    levels = {"channels": "RGB", "levels": "[0, 1]", "mean": list(wanted.mean), "std": list(wanted.std)}
    return {**common, **levels, "resize": wanted.resize, "crop": wanted.size}


def _detectron2_keys(architecture: Architecture) -> dict[str, int]:
    """The keys of Detectron2's config that build the network."""
    width = round(64 * architecture.width_multiplier)
    return {
        "MODEL.RESNETS.DEPTH": architecture.depth,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": width,
        "MODEL.RESNETS.WIDTH_PER_GROUP": width,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": width * (4 if architecture.depth >= 50 else 1),
    }


def _torchvision_model(architecture: Architecture) -> nn.Module:
    from torchvision import models

    model = getattr(models, f"resnet{architecture.depth}")(weights=None)
    model.fc = nn.Identity()
    return model


def _timm_model(architecture: Architecture | TimmArchitecture) -> nn.Module:
    if isinstance(architecture, TimmArchitecture):
        return architecture.build().model
    import timm

    return timm.create_model(f"resnet{architecture.depth}", pretrained=False, num_classes=0)


def _detectron2_model(architecture: Architecture) -> nn.Module:
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone.resnet import build_resnet_backbone

    config = get_cfg()
    config.merge_from_list([part for pair in _detectron2_keys(architecture).items() for part in pair])
    config.MODEL.RESNETS.STRIDE_IN_1X1 = False
    config.MODEL.RESNETS.OUT_FEATURES = ["res5"]

    class Averaged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = build_resnet_backbone(config, ShapeSpec(channels=3))

        def forward(self, images: Tensor) -> Tensor:
            return self.backbone(images)["res5"].mean(dim=(2, 3))

        def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
            return self.backbone.load_state_dict(state_dict, strict, assign)

    return Averaged()


_MODELS: dict[str, Callable[[Any], nn.Module]] = {
    "torchvision": _torchvision_model,
    "timm": _timm_model,
    "detectron2": _detectron2_model,
}


def export(source: str | Path, form: str, output: str | Path) -> str:
    """Write the trunk of a checkpoint in another library's format, with its preprocessing, and check it there.

    Args:
        source: any file that `read_trunk_weights` reads.
        form: one of SUFFIXES.
        output: the file to write; OUTPUT.json beside it has the preprocessing.

    Returns:
        a sentence on what was written and how it was checked.

    Raises:
        ConfigError: for an unknown form, a wrong ending, or a network that the library does not have.
    """
    check_choice(form, list(SUFFIXES), "--format")
    output = Path(output)
    if output.suffix != SUFFIXES[form]:
        raise ConfigError(f"--output is {output}; weights in the format {form} end in {SUFFIXES[form]}.")
    check_other_file(output, source, "--output")
    trunk = load_trunk(source)
    architecture, wanted, own = trunk.architecture, trunk.preprocessing, trunk.network.state_dict()
    _check_form(architecture, form)
    weights = {re.sub(r"^(_feature_blocks|model)\.", "", key): value for key, value in own.items()}
    notes = preprocessing_notes(architecture, form, wanted)
    output.parent.mkdir(parents=True, exist_ok=True)
    content: bytes | dict[str, Any]
    if form == "safetensors":
        named = own if isinstance(architecture, TimmArchitecture) else weights  # as load_trunk expects them
        whole = {key: value.contiguous() for key, value in named.items()}
        content = save(whole, {"pirl_plugin": json.dumps(notes)})
    elif form == "vissl":  # for MODEL.WEIGHTS_INIT.PARAMS_FILE
        model = {"trunk": own, "heads": {}}
        state: dict[str, Any] = {"base_model": {"model": model}}
        if wanted.known:
            state["pirl_plugin"] = {"images": wanted.record()}
        content = {"classy_state_dict": state}
    elif form == "detectron2":
        named = {detectron2_name(key): value for key, value in weights.items() if "num_batches_tracked" not in key}
        content = {"model": named, "__author__": "pirl_plugin", "matching_heuristics": True}
    else:
        content = dict(weights)
    with written_whole(output) as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            torch.save(content, file)
    output.with_suffix(output.suffix + ".json").write_text(json.dumps(notes, indent=2) + "\n")
    return f"{output}: {architecture}, {form}; {_check(output, form, trunk)}; it expects {wanted}"


def _check_form(architecture: Architecture | TimmArchitecture, form: str) -> None:
    """Raise if the library of a form does not have the network."""
    if isinstance(architecture, TimmArchitecture):
        check_choice(form, ["timm", "safetensors"], f"--format, for {architecture},")
        return
    other_width = architecture.width_multiplier != 1 and form != "detectron2"
    other_depth = architecture.depth == 200 and form in ("torchvision", "detectron2")
    other = other_width or other_depth or architecture.stem != "imagenet" or not architecture.is_plain
    if form in _MODELS and other:
        raise ConfigError(f"{form} has no {architecture}; export it as safetensors, which load_trunk reads.")


@torch.inference_mode()
def _check(output: Path, form: str, trunk: Trunk) -> str:
    """Read the file back in its library and compare the features of a random image with the trunk's."""
    architecture, size = trunk.architecture, trunk.preprocessing.size
    if isinstance(architecture, Architecture):
        size = 96 if architecture.stem == "imagenet" else 32
    other: nn.Module
    if form not in _MODELS:
        other = load_trunk(output)
    else:
        try:
            other = _MODELS[form](architecture)
        except ImportError as error:
            return f"not checked, because {error.name or form} is not installed"
        content = torch.load(output, weights_only=True)
        state = content["model"] if form == "detectron2" else content
        missing = other.load_state_dict(state, strict=False)
        left = [key for key in (*missing.missing_keys, *missing.unexpected_keys) if "num_batches_tracked" not in key]
        if left:
            raise RuntimeError(f"{form} does not take {output}: {left[:5]}; please report this.")
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected, got = trunk(images), other.eval()(images)
    difference = float((got - expected).abs().max() / expected.abs().max())
    if not difference < TOLERANCE:
        raise RuntimeError(f"Features of {output} in {form} differ by {difference:.1e} from the trunk's: report this.")
    return f"features in {form} equal the trunk's (largest difference {difference:.1e} of the largest)"


def describe(source: str | Path) -> str:
    """Which network a file holds, in words."""
    trunk = load_trunk(source)
    count = sum(value.numel() for value in trunk.state_dict().values())
    return f"{source}: {trunk.architecture}, {count:,} numbers; it expects {trunk.preprocessing}"
