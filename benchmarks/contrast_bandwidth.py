"""How close the loss with per-image negatives comes to reading the bank's rows once at the speed of a copy."""

from __future__ import annotations

import torch
from measuring import alternate

from pirl_plugin.objective.forms import FORMS
from pirl_plugin.objective.fused_contrast import contrast_per_image
from pirl_plugin.objective.negatives import draw_negatives


def bandwidth(num_rows: int, num_negatives: int, batch: int, repeats: int, device: str, dim: int = 128) -> dict:
    """Time of per_image's forward and query gradient, and of a plain copy of as many bytes."""
    torch.manual_seed(0)
    table = torch.nn.functional.normalize(torch.randn(num_rows, dim, device=device), dim=1)
    queries = torch.nn.functional.normalize(torch.randn(2, batch, dim, device=device), dim=2).requires_grad_()
    target = torch.randperm(num_rows)[:batch].to(device)
    source = torch.empty(batch * num_negatives * dim // 2, device=device)  # read and written: as many bytes
    copied = torch.empty_like(source)
    functions = {"copy": lambda: copied.copy_(source)}
    for dtype in (torch.float32, torch.bfloat16):
        rows = table.to(dtype)
        for form in ("nce", "infonce"):

            def step(form=form, rows=rows) -> None:
                drawn = draw_negatives(target, num_rows, num_negatives)
                losses = contrast_per_image(FORMS[form], queries, rows[target].float(), rows, drawn, 0.07)
                torch.autograd.grad(losses.sum(), queries)

            functions[f"{form}, {str(dtype)[6:]}"] = step
    seconds = alternate(functions, repeats)
    sizes = {name: batch * num_negatives * dim * (2 if "bfloat16" in name else 4) for name in functions}
    return {"batch": batch, "device": device, "seconds": seconds, "bytes": sizes}


def rates(measured: dict) -> dict[str, float]:
    """Bytes of rows per second of each, from the result of `bandwidth`."""
    return {name: measured["bytes"][name] / sorted(s)[len(s) // 2] for name, s in measured["seconds"].items()}
