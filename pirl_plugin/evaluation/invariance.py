"""Figure 4: how far apart are the representations of an image and of its pretext transformation?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pirl_plugin.data.image_files import load_rgb
from pirl_plugin.evaluation.measures import unit
from pirl_plugin.network.checkpoints import head_state, load_checkpoint, run_config
from pirl_plugin.network.devices import Compute
from pirl_plugin.network.heads import PIRLHead
from pirl_plugin.network.image_batches import OnUnreadable, made_batches
from pirl_plugin.network.preprocessing import preprocessing_of
from pirl_plugin.network.run_networks import build_trunk
from pirl_plugin.pretext.base import PRETEXT_TRANSFORMS, PretextTransform, sample_generator
from pirl_plugin.validation import ConfigError, check_choice, keyword_arguments

BINS = np.linspace(0, 2, 81)  # bin edges of the histograms of distances
LEVELS, STATISTICS = ("heads", "trunk"), ("batch", "running")
# Set to 0, they leave a view's colours unchanged; left out, they would have their defaults.
PHOTOMETRIC = (
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "random_photometric",
    "grayscale",
    "blur",
    "horizontal_flip",
)


def distances(image: np.ndarray, transformed: np.ndarray) -> np.ndarray:
    """L2 distances from unit f(v_I) to unit g(v_It), row by row: [N, d], [N, d] -> float64 [N], in [0, 2]."""
    return np.linalg.norm(unit(image, np.float64) - unit(transformed, np.float64), axis=1)


def distances_between_images(image: np.ndarray, transformed: np.ndarray, draws: int = 1) -> np.ndarray:
    """L2 distances from each unit f(v_I) to the unit g(v_Jt) of another random image J: float64 [draws * N].

    Args:
        image, transformed: [draws * N, d], draw by draw, with the same N >= 2 images in each.
    """
    order = np.random.default_rng(0).permutation(len(image) // draws)
    starts = len(order) * np.arange(draws)[:, None]
    return distances(image[(starts + order).ravel()], transformed[(starts + np.roll(order, 1)).ravel()])


def figures_of(image: np.ndarray, transformed: np.ndarray, draws: int = 1) -> dict[str, float]:
    """Mean and variance of `distances`, and the mean distance between different images as a scale.

    Args: as for `distances_between_images`.

    Returns:
        mean, variance, mean_between_images, and `relative`: mean / mean_between_images, 0 for full invariance and 1
        if the transformation destroys everything that distinguishes an image from others.
    """
    own, others = distances(image, transformed), distances_between_images(image, transformed, draws)
    return {
        "mean": float(own.mean()),
        "variance": float(own.var()),
        "mean_between_images": float(others.mean()),
        "relative": float(own.mean() / max(others.mean(), 1e-12)),
    }


def _heads(config: Mapping[str, Any]) -> list[Any]:
    return config["MODEL"]["HEAD"]["PARAMS"]


def has_two_heads(config: Mapping[str, Any]) -> bool:
    """Whether a run's network has PIRL's heads f and g."""
    return [head[0] for head in _heads(config)] == ["pirl_heads", "pirl_heads"]


def with_histogram(image: np.ndarray, transformed: np.ndarray, draws: int = 1) -> dict[str, Any]:
    """`figures_of` and `histogram`, how many distances are in each of BINS."""
    counts = np.histogram(distances(image, transformed), BINS)[0].tolist()
    return {**figures_of(image, transformed, draws), "histogram": counts}


class Encoders(nn.Module):
    """The networks of a checkpoint that compute f(v_I) and g(v_It).

    Args:
        config: the run's config.
        checkpoint: VISSL's; None for the untrained network.
        statistics: BatchNorm statistics. `batch`: those of the current views, separately for images and transformed
            views, as in training (give large batches). `running`: training's averages, which blend both kinds of view
            and fit neither; feature extraction uses these.
        level: `heads`: the outputs of the heads f and g, which only PIRL's networks have. `trunk`: the trunk's features
            of the image, and the mean of its features of the transformed views; any network has these.
        seed: seed of the untrained network.

    Raises:
        ConfigError: for heads that the network does not have.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        checkpoint: dict[str, Any] | None,
        level: str = "heads",
        statistics: str = "batch",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice(level, LEVELS, "the level of representation")
        check_choice(statistics, STATISTICS, "the BatchNorm statistics")
        self.trunk = build_trunk(config, checkpoint, seed)
        self.heads = nn.ModuleList()
        if level == "heads":
            parameters = _heads(config)
            if not has_two_heads(config):
                raise ConfigError(
                    f"The run's heads are {[head[0] for head in parameters]}; the distance of f(v_I) to g(v_It) needs "
                    f"PIRL's two: use the level trunk for other networks."
                )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.heads.extend(PIRLHead(**arguments) for _, arguments in parameters)
            if checkpoint is not None:
                self.heads.load_state_dict(head_state(checkpoint))
        self.train(statistics == "batch")

    def forward(self, images: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        """images [B, 3, S, S], views [B, V, 3, h, w] -> f [B, d], g [B, d]."""
        (image,) = self.trunk(images, ["flatten"])
        (each,) = self.trunk(views.flatten(0, 1), ["flatten"])
        if self.heads:
            return self.heads[0](image), self.heads[1](each)
        return image, each.view(*views.shape[:2], -1).mean(1)


def transformation(config: Mapping[str, Any]) -> PretextTransform:
    """The pretext transform of an entry of TRANSFORMS, on whole images and without photometric augmentation.

    Only t is random and, for the jigsaw, where in its cell a patch is cut.

    Raises:
        ConfigError: if it yields no pretext views.
    """
    name = check_choice(config["name"], list(PRETEXT_TRANSFORMS), "the pretext transform")
    settings = {key: value for key, value in config.items() if key not in ("name", "indices")}
    known = keyword_arguments(PRETEXT_TRANSFORMS[name])
    settings |= {key: [1.0, 1.0] for key in known if key.endswith("crop_scale")}
    settings |= {"photometric": dict.fromkeys(PHOTOMETRIC, 0), "augment_on": "workers", "normalize_on": "workers"}
    transform = PRETEXT_TRANSFORMS[name].from_config(settings)
    if not transform.num_views:
        raise ConfigError(f"{name} has no pretext views; name another run whose transformation is to be used.")
    return transform


@torch.inference_mode()
def embed_pairs(
    encoders: Encoders,
    transform: PretextTransform,
    files: Sequence[str | Path],
    draws: int = 1,
    seed: int = 0,
    batch_size: int = 250,
    progress: Callable[[int, int], None] | None = None,
    on_unreadable: OnUnreadable | None = None,
    compute: Compute | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """f(v_I) and g(v_It) of image files, each float32 [draws * readable files, d].

    Args:
        transform: from `transformation`; the t of an image depends only on `seed` and its place in `files`.
        draws: number of random t per image.
        progress: called with (done, total).
        on_unreadable: called with a file that cannot be read and why; it is left out. None: the error is raised.
        compute: where and how, as for pirl_plugin.network.features.embed.

    Raises:
        ConfigError: if fewer than two files can be read.
    """
    compute = compute or Compute(next(encoders.parameters()).device)
    encoders = encoders.to(compute.device)
    image, transformed, done = [], [], 0
    # Shuffled batches of nearly equal size, for BatchNorm's statistics: files are often sorted by class.
    order = np.random.default_rng(seed).permutation(len(files))
    batches = [batch.tolist() for batch in np.array_split(order, -(-len(files) // batch_size))]
    for draw in range(draws):
        parts, read = [], list[int]()

        def make(place: int, draw: int = draw) -> tuple[Tensor, Tensor]:
            return transform.views(load_rgb(files[place]), sample_generator(seed, draw, place))

        for places, made, failed in made_batches(make, batches, compute.workers):
            for place, error in failed:
                if on_unreadable is None:
                    raise error
                on_unreadable(files[place], error)
            if places:
                with compute.autocast():
                    parts.append(encoders(*(views.to(compute.device) for views in made)))
                read += places
            done += len(places) + len(failed)
            if progress is not None:
                progress(done, draws * len(files))
        if not read:
            raise ConfigError(f"None of the {len(files)} images can be read, the first {files[0]}.")
        if len(read) == 1:
            raise ConfigError(f"Only {files[read[0]]} can be read; distances between images need at least two.")
        back = np.argsort(read)
        image.append(torch.cat([part[0] for part in parts]).float().cpu().numpy()[back])
        transformed.append(torch.cat([part[1] for part in parts]).float().cpu().numpy()[back])
    return np.concatenate(image), np.concatenate(transformed)


def pretext_of(path: str | Path) -> dict[str, Any]:
    """The pretext transform of the run that wrote a checkpoint: an entry of TRANSFORMS.

    Raises:
        ConfigError: if it had none.
    """
    pretext = run_config(path)["DATA"]["TRAIN"]["TRANSFORMS"][0]
    if pretext.get("name") not in PRETEXT_TRANSFORMS:
        raise ConfigError(
            f"The run of {path} has no pretext transform of this plugin ({pretext.get('name')}); name another run "
            f"whose transformation is to be used (--pretext-of)."
        )
    return pretext


def pairs_of_checkpoint(
    path: str | Path,
    files: Sequence[str | Path],
    level: str = "heads",
    statistics: str = "batch",
    pretext: Mapping[str, Any] | None = None,
    draws: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    on_unreadable: OnUnreadable | None = None,
    compute: Compute | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`embed_pairs` for a checkpoint of VISSL's trainer, with the train_config.yaml beside it.

    Args:
        pretext: the entry of TRANSFORMS; default: the run's own.
    """
    config = run_config(path)
    pretext = pretext or pretext_of(path)
    checkpoint = load_checkpoint(path)
    encoders = Encoders(config, checkpoint, level, statistics)
    wanted = preprocessing_of(path, checkpoint, 224)
    if wanted.known:  # the transformation may be another run's
        pretext = {**pretext, "mean": list(wanted.mean), "std": list(wanted.std)}
    task = transformation(pretext)
    return embed_pairs(encoders, task, files, draws, seed, 250, progress, on_unreadable, compute)
