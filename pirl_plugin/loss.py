"""`pirl_loss`: Eq. 5, the weighted sum of two contrasts with the memory bank that it owns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from classy_vision.losses import ClassyLoss, register_loss
from torch import Tensor
from torch.nn.functional import normalize

from pirl_plugin import contrast
from pirl_plugin.distributed import rank, sum_over_ranks, world_size
from pirl_plugin.memory_bank import MEMORY_BANKS
from pirl_plugin.negatives import NEGATIVES, draw_negatives, draw_shared_negatives
from pirl_plugin.validation import ConfigError, check_choice, check_integer, check_keys, check_number

_KEYS = (
    "contrast",
    "negatives",
    "num_negatives",
    "temperature",
    "lambda_",
    "embedding_dim",
    "z_momentum",
    "memory_bank",
    "seed",
    "num_train_samples",
    "batch_size_per_replica",
)


@register_loss("pirl_loss")
class PIRLLoss(ClassyLoss):
    """L = lambda L_NCE(m_I, g(v_It)) + (1 - lambda) L_NCE(m_I, f(v_I))     (Eq. 5)

    Both terms use the same negatives, drawn from the bank, never the image itself. After the loss the bank's
    rows of the batch move towards f(v_I); only in training, and only for images that were read.

    lambda = 0 is NPID++ (no pretext term), lambda = 1 leaves out the plain term.

    Args:
        num_train_samples: |D|, rows of the bank (VISSL fills it in).
        contrast: `nce` (Eq. 3-4), `npid` or `infonce`; see pirl_plugin.contrast.
        negatives: how D_N is drawn, uniformly and with replacement, the same for both terms: `per_image` (N for
            each image, the paper's), `shared` (one draw of N for the batch, in which each image passes over its
            own row) or `all` (no draw: every other image, the exact softmax over the bank).
        num_negatives: N, at most |D| - 1; `all` passes over it.
        temperature: tau.
        lambda_: in [0, 1].
        embedding_dim: d.
        z_momentum: for `npid`: Z is set from the first batch and then follows the batches' estimates,
            log Z <- z_momentum log Z + (1 - z_momentum) estimate. 1 freezes it, as VISSL does; with few images
            the loss then rises without bound, because training moves the similarities away from those that Z
            was measured on.
        memory_bank: {name: ..., and the bank's own keys}.
        seed: of the bank's first rows and of the draws.
        batch_size_per_replica: the most images a rank has in a step (the launcher fills it in).

    Raises:
        ConfigError: for an unknown key, a value out of range, or too few images.
    """

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
    ) -> None:
        super().__init__()
        forms = ("nce", "npid", "infonce")
        self.contrast = check_choice(contrast, forms, "pirl_loss.contrast")
        self.num_rows = check_integer(num_train_samples, "pirl_loss.num_train_samples (|D|)", 2)
        self.num_negatives = check_integer(num_negatives, "pirl_loss.num_negatives (N)", 1)
        self.negatives = check_choice(negatives, NEGATIVES, "pirl_loss.negatives")
        if self.negatives != "all" and self.num_negatives > self.num_rows - 1:
            raise ConfigError(
                f"pirl_loss.num_negatives is {num_negatives}, but the data set has {self.num_rows} images, which "
                f"leaves at most {self.num_rows - 1} negatives: lower num_negatives or add images."
            )
        self.temperature = check_number(temperature, "pirl_loss.temperature (tau)", 0, above=True)
        self.lambda_ = check_number(lambda_, "pirl_loss.lambda_", 0, 1)
        self.z_momentum = check_number(z_momentum, "pirl_loss.z_momentum", 0, 1)
        self.seed = check_integer(seed, "pirl_loss.seed", 0)
        self.steps = 0
        bank = dict(memory_bank or {})
        name = check_choice(bank.pop("name", "memory_bank"), [n for n, _ in MEMORY_BANKS], "pirl_loss.memory_bank.name")
        check_keys(bank, ("momentum", "fill_first"), "pirl_loss.memory_bank")
        self.memory_bank = MEMORY_BANKS.get(name)(
            self.num_rows, embedding_dim, seed=self.seed, batch_capacity=batch_size_per_replica, **bank
        )
        self.embedding_dim = embedding_dim
        # log Z of the plain and the pretext term; NaN until the first batch.
        self.register_buffer("log_z", torch.full((2,), torch.nan))
        self.report: dict[str, Tensor] = {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PIRLLoss:
        """Build from LOSS.pirl_loss of a VISSL config (see the class for its keys)."""
        settings = {key: value for key, value in config.items() if key != "name"}
        check_keys(settings, _KEYS, "pirl_loss")
        if settings.get("batch_size_per_replica", -1) == -1:
            settings["batch_size_per_replica"] = None
        return cls(**settings)

    def forward(self, output: Sequence[Tensor] | Tensor, target: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            output: [f(v_I), g(v_It)], each float [B, d], not normalised; f(v_I) alone where lambda = 0.
            target: int64 [B], the images' rows in the bank; negative where the image was not read.

        Returns:
            a scalar, at least float32. Averaged over ranks (as DDP averages gradients) it is the mean over all
            images of the global batch that were read; where none was, 0.
        """
        image, pretext = (output, None) if isinstance(output, Tensor) else (*output, None)[:2]
        if pretext is None and self.lambda_ > 0:
            raise ConfigError(
                f"pirl_loss.lambda_ is {self.lambda_}, but the model gives no embedding of the pretext views: "
                f"MODEL.MULTI_INPUT_HEAD_MAPPING must list `images`, then `pretext` (or set lambda_ to 0)."
            )
        rows = target.clamp(min=0)
        valid = (target >= 0) & self.memory_bank.is_filled(rows)
        positives = self.memory_bank.lookup(rows)
        negatives, keep = self._draw(target)

        terms = [(1 - self.lambda_, image, 0), (self.lambda_, pretext, 1)]
        total = torch.zeros((), device=target.device)
        for weight, embedding, term in terms:
            if embedding is None:
                continue
            if weight == 0:
                total = total + 0 * embedding.sum()  # DDP wants every parameter to have a gradient
                continue
            query = normalize(embedding.float(), dim=1)
            positive = (query * positives).sum(1) / self.temperature
            form = "bd,bnd->bn" if negatives.dim() == 3 else "bd,nd->bn"
            negative = torch.einsum(form, query, negatives) / self.temperature
            losses = self._contrast(positive, negative, keep, valid, term)
            total = total + weight * losses.masked_fill(~valid, 0).sum()
            self._report(("image", "pretext")[term], positive, negative, keep, valid)

        count = sum_over_ranks(valid.sum())
        loss = total * (world_size() / count.clamp(min=1))
        if self._in_training():
            self.memory_bank.update(target, normalize(image.detach().float(), dim=1))
            self.steps += 1
        return loss

    def _draw(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """The negatives [B, N, d] or [N, d], and which of them count for which image, bool [B, N]."""
        if self.negatives == "all":
            drawn = torch.arange(self.num_rows, device=target.device)
        else:
            generator = torch.Generator(device=target.device).manual_seed(self._draw_seed())
            draw = draw_negatives if self.negatives == "per_image" else draw_shared_negatives
            drawn = draw(target, self.num_rows, self.num_negatives, generator)
        return self.memory_bank.lookup(drawn), drawn != target.unsqueeze(1)

    def _contrast(self, positive: Tensor, negative: Tensor, keep: Tensor, valid: Tensor, term: int) -> Tensor:
        if self.contrast == "nce":
            return contrast.nce(positive, negative, keep)
        if self.contrast == "infonce":
            return contrast.infonce(positive, negative, keep)
        log_z = self._follow_z(negative, keep & valid.unsqueeze(1), term, self._in_training())
        return contrast.npid(positive, negative, log_z, self.num_rows, keep)

    def _in_training(self) -> bool:
        # VISSL never calls eval() on a loss, but runs test phases without gradients.
        return self.training and torch.is_grad_enabled()

    @torch.no_grad()
    def _follow_z(self, negative: Tensor, keep: Tensor, term: int, training: bool) -> Tensor:
        """log Z after this batch, the same on every rank; kept only in training, but for the first."""
        total = (negative.double().exp() * keep).sum()
        total, count = sum_over_ranks(torch.stack([total, keep.sum().double()])).unbind()
        estimate = (total / count.clamp(min=1)).log().float() + math.log(self.num_rows)
        before = self.log_z[term].clone()
        after = torch.where(before.isnan(), estimate, torch.lerp(estimate, before, self.z_momentum))
        after = torch.where(count > 0, after, before)
        self.log_z[term] = after if training else torch.where(before.isnan(), after, before)
        return after.nan_to_num(0.0)  # NaN where no image was ever read: the terms do not count then

    def _draw_seed(self) -> int:
        return ((self.seed * 1_000_003 + self.steps) * 65_537 + rank()) % 2**63

    @torch.no_grad()
    def _report(self, name: str, positive: Tensor, negative: Tensor, keep: Tensor, valid: Tensor) -> None:
        count, kept = valid.sum().clamp(min=1), keep.sum(1).clamp(min=1)
        for key, value in (
            ("positive_similarity", positive * self.temperature),
            ("negative_similarity", (negative * keep).sum(1) / kept * self.temperature),
            ("negatives_above_positive", ((negative > positive.unsqueeze(1)) & keep).sum(1) / kept),
        ):
            self.report[f"{name}/{key}"] = (value * valid).sum() / count

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps = int(state["steps"])
