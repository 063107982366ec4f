"""`pirl_loss`: Eq. 5, the weighted sum of two contrasts against the memory bank, which the loss owns."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pirl_plugin.distributed import rank, sum_over_ranks, world_size
from pirl_plugin.objective import sharded_memory_bank  # noqa: F401  (registers it)
from pirl_plugin.objective.batch_contrast import BatchContrast
from pirl_plugin.objective.forms import FORMS
from pirl_plugin.objective.fused_contrast import OnScores
from pirl_plugin.objective.memory_bank import MEMORY_BANKS
from pirl_plugin.objective.negatives import NEGATIVES
from pirl_plugin.objective.score_statistics import ScoreStatistics
from pirl_plugin.registry import Registry
from pirl_plugin.validation import (
    ConfigError,
    check_choice,
    check_integer,
    check_keys,
    check_mapping,
    check_number,
    keyword_arguments,
)

TERMS = ("image", "pretext")
# Up to this many times N images, scoring all rows costs no more (measured on a CPU with N = 4,096, B = 32).
NO_DEARER_THAN = {"per_image": 8, "shared": 2}

PIRL_LOSSES: Registry[type[PIRLLoss]] = Registry("PIRL loss")


def register_pirl_loss(name: str) -> Callable[[type[PIRLLoss]], type[PIRLLoss]]:
    """Register PIRLLoss or a subclass under `name`, which LOSS.name and LOSS.<name> of a YAML config then use."""

    def register(cls: type[PIRLLoss]) -> type[PIRLLoss]:
        cls.name = name
        return PIRL_LOSSES.register(name, cls)

    return register


@register_pirl_loss("pirl_loss")
class PIRLLoss(nn.Module):
    """L = lambda L_NCE(m_I, g(v_It)) + (1 - lambda) L_NCE(m_I, f(v_I))     (Eq. 5)

    Both terms use the same negatives, drawn from the bank, never the image itself. After the loss the bank's
    rows of the batch move towards f(v_I), but only in training, and only for images that were read.

    lambda = 0 is NPID++ (no pretext term), lambda = 1 leaves out the plain term.

    Args:
        num_train_samples: |D|, the number of rows of the bank (filled in automatically in a VISSL run).
        contrast: `nce` (Eq. 3-4), `npid`, `infonce` or your own form; see pirl_plugin.objective.forms.
        negatives: how D_N is drawn, uniformly and with replacement, the same for both terms: `per_image` (N for
            each image, the paper's), `shared` (one draw of N for the batch, of which each image ignores its
            own row) or `all` (no draw: every other image, the exact softmax over the bank).
        num_negatives: N, at most |D| - 1; `all` ignores it.
        temperature: tau.
        lambda_: in [0, 1].
        embedding_dim: d, the length of an embedding.
        z_momentum: for `npid`: Z is set from the first batch and then follows the batches' estimates, one batch behind,
            log Z <- z_momentum log Z + (1 - z_momentum) estimate. 1 freezes it, as VISSL does; with few images
            the loss then rises without bound, because training moves the similarities away from those that Z
            was measured on.
        memory_bank: {name: ..., and the bank's own keys}.
        seed: seed of the bank's initial rows and of the draws.
        batch_size_per_replica: the largest number of images per rank and step (the launcher fills it in).
        report_frequency: steps between updates of `report` (the launcher fills in LOG_FREQUENCY).

    Attributes:
        report: by term, means over the last reported batch of all ranks: similarity (cosine) of the positive and
            of the negatives, and the share of the negatives that score above the positive; for `npid` log Z.

    Raises:
        ConfigError: for an unknown key, a value out of range, or too few images.

    Example:
        >>> loss = PIRLLoss(num_train_samples=1000, num_negatives=64, lambda_=0.5)
        >>> f, g = torch.randn(2, 8, 128)  # f(v_I) and g(v_It) of a batch of 8
        >>> loss([f, g], torch.arange(8)).shape
        torch.Size([])
    """

    name: ClassVar[str]
    log_z: Tensor

    def __init__(
        self,
        num_train_samples: int,
        contrast: str = "nce",
        negatives: str = "per_image",
        num_negatives: int = 32000,
        temperature: float = 0.07,
        lambda_: float = 0.5,
        embedding_dim: int = 128,
        z_momentum: float = 0.9,
        memory_bank: Mapping[str, Any] | None = None,
        seed: int = 0,
        batch_size_per_replica: int | None = None,
        report_frequency: int = 1,
    ) -> None:
        super().__init__()
        self.form = FORMS.find(contrast, "pirl_loss.contrast")
        if self.form.closed_form is None:
            self.form.check()
        self.num_rows = check_integer(num_train_samples, "pirl_loss.num_train_samples (|D|)", 2)
        self.num_negatives = check_integer(num_negatives, "pirl_loss.num_negatives (N)", 1)
        self.negatives = check_choice(negatives, NEGATIVES, "pirl_loss.negatives")
        if self.negatives != "all" and self.num_negatives > self.num_rows - 1:
            raise ConfigError(
                f"pirl_loss.num_negatives is {num_negatives}, but the data set has {self.num_rows} images, which "
                f"leaves at most {self.num_rows - 1} negatives: lower num_negatives or add images."
            )
        # At a lower temperature, float32 cannot hold the share of the smallest score.
        self.temperature = check_number(temperature, "pirl_loss.temperature (tau)", 0.025)
        self.lambda_ = check_number(lambda_, "pirl_loss.lambda_", 0, 1)
        self.z_momentum = check_number(z_momentum, "pirl_loss.z_momentum", 0, 1)
        self.seed = check_integer(seed, "pirl_loss.seed", 0)
        self.report_frequency = check_integer(report_frequency, "pirl_loss.report_frequency", 1)
        self.steps = 0
        self.z_is_set = False
        bank = dict(check_mapping(memory_bank or {}, "pirl_loss.memory_bank"))
        bank_class = MEMORY_BANKS.find(bank.pop("name", "memory_bank"), "pirl_loss.memory_bank.name")
        own_keys = keyword_arguments(bank_class) - {"num_rows", "dim", "seed", "batch_capacity"}
        check_keys(bank, own_keys, "pirl_loss.memory_bank")
        self.memory_bank = bank_class(
            self.num_rows, embedding_dim, seed=self.seed, batch_capacity=batch_size_per_replica, **bank
        )
        self.embedding_dim = embedding_dim
        self._held: list[tuple[Tensor, Tensor]] | None = None
        # log Z of the plain and the pretext term; NaN until the first batch.
        self.register_buffer("log_z", torch.full((2,), torch.nan))
        self.report: dict[str, Tensor] = {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from LOSS.<name> of a VISSL config (see the class for its keys)."""
        settings = {key: value for key, value in config.items() if key != "name"}
        check_keys(settings, keyword_arguments(cls), "pirl_loss")
        if settings.get("seed") is None:
            settings["seed"] = 0
        if settings.get("batch_size_per_replica", -1) == -1:
            settings["batch_size_per_replica"] = None
        return cls(**settings)

    def forward(self, output: Sequence[Tensor] | Tensor, target: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            output: [f(v_I), g(v_It)], each float [B, d], not normalised; f(v_I) alone if lambda = 0.
            target: int64 [B], the images' rows in the bank; negative if the image was not read.

        Returns:
            a scalar, at least float32. Averaged over ranks (as DDP averages gradients) it is the mean over all
            images of the global batch that were read; 0 if none was.

        Raises:
            ValueError: an index beyond the bank (on a GPU: a device-side assertion), not one int64 index per
                embedding, or embeddings of another size than the bank's.
        """
        image = output if isinstance(output, Tensor) else output[0]
        pretext = None if isinstance(output, Tensor) or len(output) < 2 else output[1]
        if pretext is None and self.lambda_ > 0:
            raise ConfigError(
                f"pirl_loss.lambda_ is {self.lambda_}, but the model gives no embedding of the pretext views: "
                f"MODEL.MULTI_INPUT_HEAD_MAPPING must list `images`, then `pretext` (or set lambda_ to 0)."
            )
        self._check_target(target, image)
        if pretext is not None and len(pretext) != len(image):
            raise ValueError(
                f"pirl_loss got {len(pretext)} embeddings of pretext views for {len(image)} images; the head of "
                f"`pretext` must combine the views of an image into one."
            )
        weighted = [(0, 1 - self.lambda_, image)] + ([] if pretext is None else [(1, self.lambda_, pretext)])
        terms = [(term, weight, embedding) for term, weight, embedding in weighted if weight > 0]
        # DDP requires a gradient for every parameter.
        total = sum(0 * embedding.float().nan_to_num().sum() for _, weight, embedding in weighted if weight == 0)

        # An image that was not read has no gradient, whatever the network made of its views.
        stacked = torch.stack([embedding.float() for _, _, embedding in terms])
        queries = normalize(stacked.masked_fill((target < 0).unsqueeze(-1), 1.0), dim=-1)
        losses, valid = self._contrast(queries, target, [term for term, _, _ in terms])
        for (_, weight, _), of_term in zip(terms, losses.masked_fill(~valid, 0), strict=True):
            total = total + weight * of_term.sum()

        count = sum_over_ranks(valid.sum())
        loss = total * (world_size() / count.clamp(min=1))
        if self._in_training():
            if not self.steps and rank() == 0:
                self._say_what_is_slow()
            if self._held is None:
                self._update(target, image.detach())
            else:
                self._held.append((target, image.detach()))
        return loss

    def _update(self, target: Tensor, image: Tensor) -> None:
        self.memory_bank.update(target, normalize(image.float(), dim=1))
        self.steps += 1

    def hold_updates(self, hold: bool) -> None:
        """While held, batches are parts of one: they share a draw, and the bank is updated on release."""
        held, self._held = self._held, [] if hold else None
        if held:
            self._update(torch.cat([target for target, _ in held]), torch.cat([image for _, image in held]))

    def _say_what_is_slow(self) -> None:
        if self.form.closed_form is None:
            logging.info(
                f"pirl_loss: the contrast {self.form.name!r} has no closed form; autograd on its definition is used "
                f"instead, which is slower and takes more memory."
            )
        if self.num_rows <= NO_DEARER_THAN.get(self.negatives, 0) * self.num_negatives:
            logging.info(
                f"pirl_loss: with {self.num_rows} images and N = {self.num_negatives}, negatives: all, the exact "
                f"softmax over all of them, costs no more than {self.negatives}."
            )

    def _check_target(self, target: Tensor, image: Tensor) -> None:
        if target.dtype != torch.int64:
            raise ValueError(f"pirl_loss got image indices of {target.dtype}; they must be torch.int64.")
        dim = self.memory_bank.dim
        if not len(image) or image.shape[1:] != (dim,):
            raise ValueError(f"pirl_loss got embeddings {list(image.shape)}; it takes [images, {dim}], as its bank.")
        if target.dim() != 1 or len(target) != len(image):
            raise ValueError(
                f"pirl_loss got {tuple(target.shape)} image indices for {len(image)} embeddings; it needs one each."
            )
        inside = (target < self.num_rows).all()
        if target.device.type != "cpu":
            torch._assert_async(inside)  # stops the device's queue without waiting for it here
        elif not inside:
            raise ValueError(
                f"pirl_loss got the image index {int(target.max())}, but its bank has {self.num_rows} rows; the target "
                f"must be an image's place in the data set, as pirl_collator gives it."
            )

    def _contrast(self, queries: Tensor, target: Tensor, terms: list[int]) -> tuple[Tensor, Tensor]:
        """Losses [T, b] of unit queries [T, b, d], and which of the images count: bool [b]."""
        batch = BatchContrast(self.memory_bank, target, self.negatives, self.num_negatives, self.seed, self.steps)
        statistics = ScoreStatistics(len(terms), batch.valid)
        report = self.steps % self.report_frequency == 0
        if self.form.uses_z:
            offset = (batch.counts().clamp(min=1) / self.num_rows).log().expand(len(terms), -1)
            log_z = self._current_log_z(batch, queries, terms, offset)
            statistics.also_report = report
            threshold: Tensor | None = log_z.unsqueeze(1) + offset
            on_scores: OnScores | None = statistics.sum_exponentials
        else:
            threshold, on_scores = None, statistics.report if report else None
        losses = batch.losses(self.form, queries, self.temperature, threshold, on_scores)
        if self.form.uses_z and self._in_training():
            self._follow_z(statistics, terms)
        if report:
            self.report = statistics.means(self.temperature, [TERMS[term] for term in terms])
            if self.form.uses_z:
                self.report |= {f"{TERMS[term]}/log_z": self.log_z[term].clone() for term in terms}
        return losses, batch.exchange.own(batch.valid)

    def _current_log_z(self, batch: BatchContrast, queries: Tensor, terms: list[int], offset: Tensor) -> Tensor:
        """log Z of the terms [T]; the first batch sets it."""
        chosen = slice(terms[0], terms[-1] + 1)
        if not self.z_is_set:  # waits for the device, until Z is set
            if bool(self.log_z[chosen].isnan().any()):
                first = ScoreStatistics(len(terms), batch.valid)
                with torch.no_grad():
                    batch.losses(self.form, queries, self.temperature, offset, first.sum_exponentials)
                self._follow_z(first, terms)
            self.z_is_set = not bool(self.log_z[chosen].isnan().any())
        return self.log_z[chosen].nan_to_num(0.0)  # NaN: no image was read yet

    def _in_training(self) -> bool:
        # VISSL never calls eval() on a loss, but runs test phases without gradients.
        return self.training and torch.is_grad_enabled()

    @torch.no_grad()
    def _follow_z(self, statistics: ScoreStatistics, terms: list[int]) -> None:
        """Move log Z of the terms towards this batch's estimate, identically on every rank."""
        total, count = sum_over_ranks(torch.stack([statistics.exponentials, statistics.counts]))
        estimate = (total / count.clamp(min=1)).log().float() + math.log(self.num_rows)
        chosen = slice(terms[0], terms[-1] + 1)
        before = self.log_z[chosen]
        after = torch.where(before.isnan(), estimate, torch.lerp(estimate, before, self.z_momentum))
        self.log_z[chosen] = torch.where(count > 0, after, before)

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps, self.z_is_set = int(state["steps"]), False
