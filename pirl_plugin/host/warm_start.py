"""Starts from VISSL's own PIRL: converts its trunk, heads and memory bank to this plugin's.

VISSL keeps the patches' head first (mlp, siamese_concat_view, mlp), then the image's (mlp), and the bank in the loss as
`nce_average.memory`. The plugin keeps the image's head first and the bank as `memory_bank.rows`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pirl_plugin.data.image_files import list_images
from pirl_plugin.network.checkpoints import load_checkpoint
from pirl_plugin.network.devices import Compute, choose_device
from pirl_plugin.network.features import embed
from pirl_plugin.network.heads import PIRLHead
from pirl_plugin.network.preprocessing import preprocessing_of
from pirl_plugin.network.weights import trunk_from_weights, trunk_weights_in
from pirl_plugin.objective.memory_bank import bank_rows
from pirl_plugin.paths import prepare_output, written_whole
from pirl_plugin.validation import ConfigError, check_other_file

_MLP_LAYER = re.compile(r"^clf\.(\d+)\.(weight|bias)$")


@dataclass(frozen=True)
class ConvertedHeads:
    """Heads of VISSL's PIRL, converted to `pirl_heads`.

    Attributes:
        image, pretext: arguments of pirl_heads for the two branches.
        state: weights by their names in a model with these two heads: `0.` for the image's, `1.` for the patches'.
    """

    image: dict[str, Any]
    pretext: dict[str, Any]
    state: dict[str, Tensor]


def _linears(heads: Mapping[str, Tensor], prefix: str) -> list[tuple[int, Tensor, Tensor]]:
    """(place, weight, bias) of the Linears of an `mlp` of VISSL."""
    layers: dict[int, dict[str, Tensor]] = {}
    for key, value in heads.items():
        if not key.startswith(prefix):
            continue
        match = _MLP_LAYER.match(key.removeprefix(prefix))
        if match is None:
            raise ConfigError(f"The head has {key}, which VISSL's PIRL heads of Linear and ReLU do not have.")
        layers.setdefault(int(match.group(1)), {})[match.group(2)] = value
    if any(len(value.shape) != 2 for layer in layers.values() for key, value in layer.items() if key == "weight"):
        raise ConfigError("The heads have a BatchNorm, which pirl_heads do not have.")
    return [
        (place, layer["weight"], layer.get("bias", torch.zeros(len(layer["weight"]))))
        for place, layer in sorted(layers.items())
    ]


def _projection(heads: Mapping[str, Tensor], prefix: str, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights of `pirl_heads.projection` and the arguments that they need."""
    linears = _linears(heads, prefix)
    channels = linears[0][1].shape[1] if linears else 0
    arguments = {"in_channels": channels, "embedding_dim": len(linears[-1][1]) if linears else 0}
    if len(linears) == 2 and linears[1][0] - linears[0][0] == 1:
        # No ReLU between them (a slip in VISSL's _w2 and _w4 mlphead configs): together they are one Linear.
        (_, first, first_bias), (place, second, second_bias) = linears
        product = (second.double() @ first.double()).float()
        linears = [(place, product, (second.double() @ first_bias.double()).float() + second_bias)]
    if len(linears) == 1:
        (_, weight, bias) = linears[0]
        return {"projection.weight": weight, "projection.bias": bias}, {**arguments, "use_mlp": False}
    if len(linears) == 2 and linears[0][1].shape[0] == channels:
        state: dict[str, Tensor] = {}
        for number, (_, weight, bias) in zip((0, 2), linears, strict=True):
            state |= {f"projection.{number}.weight": weight, f"projection.{number}.bias": bias}
        return state, {**arguments, "use_mlp": True}
    shapes = [tuple(weight.shape) for _, weight, _ in linears]
    raise ConfigError(f"The head of the {name} has Linears of {shapes}; pirl_heads have one, or two with C units.")


def convert_heads(heads: Mapping[str, Tensor], patch_relu: bool | None = None) -> ConvertedHeads:
    """Convert the heads of VISSL's PIRL (jigsaw) to `pirl_heads`.

    Args:
        heads: `classy_state_dict.base_model.model.heads` of a checkpoint.
        patch_relu: whether a ReLU follows each patch's projection, which weights do not show: in VISSL's MLP heads it
            does (skip_last_layer_relu_bn False). None: as in VISSL's own configs.

    Raises:
        ConfigError: if they are not such heads.
    """
    if not any(key.startswith("0.2.") for key in heads) or not any(key.startswith("1.0.") for key in heads):
        raise ConfigError(
            f"The heads ({', '.join(sorted(heads)[:4]) or 'none'} ...) are not those of VISSL's PIRL: a head of the "
            f"patches (mlp, siamese_concat_view, mlp), then one of the image (mlp)."
        )
    image, image_arguments = _projection(heads, "1.0.", "image")
    pretext, pretext_arguments = _projection(heads, "0.0.", "patches")
    combining = _linears(heads, "0.2.")
    if len(combining) != 1:
        raise ConfigError(f"The head over an image's patches has {len(combining)} Linears; pirl_heads have one.")
    ((_, weight, bias),) = combining
    dim = pretext_arguments["embedding_dim"]
    if weight.shape[1] % dim or len(weight) != dim:
        raise ConfigError(f"The Linear over an image's patches is {tuple(weight.shape)}; pirl_heads need {dim} rows.")
    mlp = pretext_arguments["use_mlp"]
    pretext_arguments |= {
        "num_patches": weight.shape[1] // dim,
        "patch_relu": mlp if patch_relu is None else patch_relu,
    }
    state = {f"0.{key}": value for key, value in image.items()}
    state |= {f"1.{key}": value for key, value in pretext.items()}
    state |= {"1.combine.weight": weight, "1.combine.bias": bias}
    return ConvertedHeads({"branch": "image", **image_arguments}, {"branch": "jigsaw", **pretext_arguments}, state)


def _head_state(state: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """The weights of one head of a model, without the head's number."""
    prefix = f"{number}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def convert(source: str | Path, output: str | Path, patch_relu: bool | None = None) -> str:
    """Convert a checkpoint of VISSL's PIRL to one that this plugin can start from.

    Args:
        source: the checkpoint; nothing in it is run.
        output: a .torch file for MODEL.WEIGHTS_INIT.PARAMS_FILE and LOSS.pirl_loss.memory_bank.initial_rows.
        patch_relu: see `convert_heads`.

    Returns:
        a text that says what to put on the command line.

    Raises:
        ConfigError: if it is not such a checkpoint.
    """
    check_other_file(output, source, "--output")
    prepare_output(Path(output), "--output")
    checkpoint = load_checkpoint(source)
    trunk = trunk_from_weights(trunk_weights_in(checkpoint, str(source)), str(source))
    model = checkpoint["classy_state_dict"].get("base_model", {}).get("model", {})
    if "trunk" not in model or "heads" not in model:
        raise ConfigError(f"{source} is not a checkpoint of VISSL's PIRL: it has no trunk and heads.")
    converted = convert_heads(model["heads"], patch_relu)
    for arguments, number in ((converted.image, 0), (converted.pretext, 1)):
        PIRLHead(**arguments).load_state_dict(_head_state(converted.state, number))
    rows = bank_rows(checkpoint, str(source))
    if rows.shape[1] != converted.image["embedding_dim"]:
        raise ConfigError(f"{source} has a bank of {rows.shape[1]} columns, but its heads have another dimension.")
    content = {
        "classy_state_dict": {"base_model": {"model": {"trunk": model["trunk"], "heads": converted.state}}},
        "loss": {"memory_bank.rows": rows, "memory_bank.updated": torch.ones(len(rows), dtype=torch.bool)},
    }
    with written_whole(Path(output)) as file:
        torch.save(content, file)
    heads = "\n".join(f"    pirl_heads {arguments}" for arguments in (converted.image, converted.pretext))
    return (
        f"{output}: {trunk.architecture}, a bank of {len(rows):,} rows of {rows.shape[1]}, and the heads\n{heads}\n"
        f"Start from it, with the same images in the same order, by\n"
        f"    config.MODEL.WEIGHTS_INIT.PARAMS_FILE={output} config.LOSS.pirl_loss.memory_bank.initial_rows={output}"
    )


def agreement(path: str | Path, images: str | Path, count: int = 256, size: int | None = None) -> tuple[float, float]:
    """Whether row i of a converted checkpoint's bank belongs to image i of a data set.

    Args:
        path: what `convert` wrote.
        images: the data set, as DATA_PATHS names it.
        count: how many images to try, evenly spread.
        size: side of the centre crop; None for the network's usual one.

    Returns:
        mean cosine similarity of f(v_I) with the image's own row, and with the row of the next tried image.

    Raises:
        ConfigError: if the data set has another number of images than the bank rows.
    """
    checkpoint = load_checkpoint(path)
    rows = bank_rows(checkpoint, str(path))
    files = list_images(images)
    if len(files) != len(rows):
        raise ConfigError(f"{images} holds {len(files)} images, but the bank has {len(rows)} rows: another data set.")
    trunk = trunk_from_weights(trunk_weights_in(checkpoint, str(path)), str(path))
    chosen = np.unique(np.linspace(0, len(files) - 1, count).astype(int))
    view = preprocessing_of(path, checkpoint, trunk.architecture.input_size).sized(size).view()
    features = embed(trunk.network, [files[number] for number in chosen], view, compute=Compute(choose_device()))
    own = _head_state(checkpoint["classy_state_dict"]["base_model"]["model"]["heads"], 0)
    mlp = "projection.2.weight" in own
    last = own["projection.2.weight" if mlp else "projection.weight"]
    head = PIRLHead("image", features.shape[1], len(last), use_mlp=mlp)
    head.load_state_dict(own)
    with torch.inference_mode():
        embeddings = normalize(head(torch.from_numpy(features)), dim=1)
    mine = rows[torch.from_numpy(chosen)]
    return float((embeddings * mine).sum(1).mean()), float((embeddings * mine.roll(1, 0)).sum(1).mean())
