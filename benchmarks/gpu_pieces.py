"""The pieces of the GPU report: each measures one thing on the device and returns its part of the report's JSON."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from contrast_bandwidth import bandwidth, rates
from measuring import peak_extra_memory
from plain_pirl import PlainPIRL, Step
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from pirl_plugin.data.collator import pirl_collator
from pirl_plugin.data.views import ImageViews
from pirl_plugin.network.devices import choose_device
from pirl_plugin.objective import triton_contrast
from pirl_plugin.objective.forms import FORMS
from pirl_plugin.objective.fused_contrast import contrast_per_image
from pirl_plugin.objective.loss import PIRLLoss
from pirl_plugin.objective.negatives import draw_negatives
from pirl_plugin.pretext.base import PRETEXT_TRANSFORMS


@dataclass(frozen=True)
class Size:
    """The sizes of the measurements.

    Attributes:
        rows, negatives: of the memory bank and of a draw.
        batches: of the table of batch sizes; the last one is the main one.
        image, canvas, patch: sides in pixels.
        depth, width: of the trunk.
        steps: number of timed steps of each.
        photos, workers: of the loader.
    """

    rows: int = 1_281_167
    negatives: int = 32_000
    batches: tuple[int, ...] = (32, 64, 128, 256)
    image: int = 224
    canvas: int = 255
    patch: int = 64
    depth: int = 50
    width: float = 1.0
    steps: int = 20
    photos: int = 2048
    workers: int = 14

    @property
    def batch(self) -> int:
        return self.batches[-1]


TINY = Size(400, 64, (2, 4), 32, 42, 12, 18, 0.125, 2, 12, 1)


def _error(got: Tensor, wanted: Tensor) -> float:
    """The largest distance between vectors [2, B, d], relative to their length if that is above 1."""
    return float(((got - wanted).norm(dim=2) / wanted.norm(dim=2).clamp(min=1)).max())


def errors_of_kernels(size: Size) -> dict:
    """Losses and gradients on the device against the forms' definitions in float64: the largest errors."""
    where, tau, found = choose_device(), 0.07, {}
    for form, dtype, dim in itertools.product(("nce", "infonce", "npid"), (torch.float32, torch.bfloat16), (128, 256)):
        generator = torch.Generator().manual_seed(0)
        rows = normalize(torch.randn(size.rows // 4, dim, generator=generator), dim=1).to(dtype)
        own = torch.randperm(len(rows), generator=generator)[:8]
        # Near their positives, as in a trained network: shares near 1, where precision is easily lost.
        noise = torch.randn(2, 8, dim, generator=generator)
        queries = normalize(rows[own].float() + noise * torch.linspace(0.02, 0.3, 8).unsqueeze(1), dim=2)
        drawn = draw_negatives(own, len(rows), size.negatives)
        log_z = math.log(len(rows)) + 0.5 / tau**2 / dim
        threshold = log_z + math.log(size.negatives / len(rows))

        exact = queries.double().requires_grad_()
        of_drawn, of_own = rows[drawn].double(), rows[own].double()
        extra = (torch.tensor(log_z), len(rows)) if FORMS[form].uses_z else ()
        losses = [
            FORMS[form].definition((q * of_own).sum(1) / tau, torch.einsum("bd,bnd->bn", q, of_drawn) / tau, *extra)
            for q in exact
        ]
        wanted = torch.stack(losses).detach()
        (wanted_gradient,) = torch.autograd.grad(torch.stack(losses).sum(), exact)

        given = queries.to(where).requires_grad_()
        table, limit = rows.to(where), torch.full((2, 8), threshold, device=where)
        arguments = (table[own.to(where)].float(), table, drawn.to(where), tau, limit if extra else None)
        got = contrast_per_image(FORMS[form], given, *arguments)
        (gradient,) = torch.autograd.grad(got.sum(), given)
        found[f"{form}, rows {str(dtype)[6:]}, d = {dim}"] = {
            "loss": _error(got.detach().cpu().unsqueeze(2), wanted.unsqueeze(2)),
            "gradient": _error(gradient.cpu(), wanted_gradient),
        }
    return found


def share_of_a_copy(size: Size) -> dict:
    """Reading the rows of per_image's negatives, as a share of a plain copy's rate."""
    measured = bandwidth(size.rows, size.negatives, size.batch, size.steps, str(choose_device()))
    found = rates(measured)
    launches = {
        f"{form}, {str(dtype)[6:]}": str(triton_contrast._launch(form, 2, 128, dtype, choose_device()))
        for form in ("nce", "infonce") for dtype in (torch.float32, torch.bfloat16)
    }  # fmt: skip
    shares = {name: rate / found["copy"] for name, rate in found.items()}
    return {"bytes_per_second": found, "of_a_copy": shares, "launches": launches}


def _model(size: Size, step: Step, batch: int, negatives: str = "per_image") -> PlainPIRL:
    torch.manual_seed(0)
    loss = PIRLLoss(
        size.rows,
        negatives=negatives,
        num_negatives=size.negatives,
        batch_size_per_replica=batch,
        report_frequency=1000,
    )
    return PlainPIRL(step, loss, choose_device(), learning_rate=0.001)


def _views(size: Size, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    where = choose_device()
    images = torch.randn(batch, 3, size.image, size.image, device=where)
    patches = torch.randn(9 * batch, 3, size.patch, size.patch, device=where)
    return images, patches, torch.randperm(size.rows)[:batch].to(where)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_each(function: Callable[[], object], count: int, warm_ups: int = 3) -> float:
    """Mean seconds per call over many calls in a row, with one synchronisation at the end."""
    for _ in range(warm_ups):
        function()
    _wait()
    started = time.perf_counter()
    for _ in range(count):
        function()
    _wait()
    return (time.perf_counter() - started) / count


VARIANTS = {"float32": (False, False), "bfloat16": (True, False), "bfloat16, compiled": (True, True)}


def step_of(size: Size, bfloat16: bool, compiled: bool = False) -> Step:
    """The settings of a step of this size."""
    return Step(size.depth, size.width, "imagenet" if size.image > 64 else "small", bfloat16, compiled)


def steps(size: Size) -> dict:
    """A full step of each variant, with views already on the device: images/s, peak memory, the loss's share."""
    found = {}
    compiled = [] if torch.cuda.is_available() else ["bfloat16, compiled"]  # minutes of compiling on a CPU
    for name in (name for name in VARIANTS if name not in compiled):
        print(f"  {name} ...", flush=True)
        model, views = _model(size, step_of(size, *VARIANTS[name]), size.batch), _views(size, size.batch)
        each = seconds_each(lambda m=model, v=views: m.step(*v), size.steps)
        memory = peak_extra_memory(lambda m=model, v=views: m.step(*v))
        outputs = [e.detach().requires_grad_() for e in model.embeddings(*views[:2])]
        of_loss = seconds_each(lambda m=model, o=outputs, v=views: m.loss(o, v[2]).backward(), size.steps)
        found[name] = {
            "images_per_second": size.batch / each,
            "step_ms": 1000 * each,
            "loss_ms": 1000 * of_loss,
            "loss_share": of_loss / each,
            "peak_extra_bytes": memory,
        }
    return found


def memory_by_batch(size: Size) -> dict:
    """Peak memory of a step for each batch size and dtype, including weights and bank if the device reports it."""
    found = {}
    for batch, name in itertools.product(size.batches, ("float32", "bfloat16")):
        model, views = _model(size, step_of(size, *VARIANTS[name]), batch), _views(size, batch)
        model.step(*views)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            model.step(*views)
            found[f"{name}, B = {batch}"] = torch.cuda.max_memory_allocated()
        else:
            found[f"{name}, B = {batch}"] = peak_extra_memory(lambda m=model, v=views: m.step(*v))
    return found


def _endless(loader: DataLoader) -> Iterator[dict]:
    while True:
        yield from loader


def from_files(size: Size, photos: Path) -> dict:
    """Training in bfloat16 from JPEG files: images/s, and the share of the time that the step waits for its input."""
    where, found = choose_device(), {}
    for augment_on in ("workers", "device"):
        print(f"  augmented on {augment_on} ...", flush=True)
        transform = PRETEXT_TRANSFORMS["jigsaw_patch_transform"](
            image_crop_size=size.image, patch_crop_size=size.canvas, patch_size=size.patch,
            augment_on=augment_on, normalize_on="device",
        )  # fmt: skip
        files = ImageViews(photos, transform)
        loader = DataLoader(
            files, size.batch, shuffle=True, drop_last=True, num_workers=size.workers, collate_fn=pirl_collator,
            pin_memory=where.type == "cuda", persistent_workers=size.workers > 0,
        )  # fmt: skip
        model = _model(size, step_of(size, bfloat16=True), size.batch)
        batches, waited = _endless(loader), 0.0
        started = time.perf_counter()
        for number in range(3 + size.steps):
            if number == 3:
                _wait()
                started, waited = time.perf_counter(), 0.0
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            views = {key: batch[key][0].to(where, non_blocking=True) for key in ("images", "pretext")}
            parameters = batch["photometric"][0] if "photometric" in batch else None
            views = transform.finish(views, parameters)
            model.step(views["images"], views["pretext"], batch["image_index"][0].to(where, non_blocking=True))
        _wait()
        seconds = time.perf_counter() - started
        found[f"augmented on {augment_on}"] = {
            "images_per_second": size.steps * size.batch / seconds,
            "input_wait_share": waited / seconds,
        }
        del batches, loader
    return found


def make_jpegs(folder: Path, count: int, width: int = 500, height: int = 375) -> None:
    """JPEGs of ImageNet's usual size from smooth noise with a camera's grain, if no photos are available."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
        noisy = (pixels + rng.normal(0, 6, pixels.shape)).round().clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number:05d}.jpg", quality=90)
