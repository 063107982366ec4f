"""The kernels against plain PyTorch: on a GPU where there is one, else in Triton's interpreter (see conftest.py)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from pirl_plugin.objective import fused_contrast, triton_contrast
from pirl_plugin.objective.counter_generator import keys as draw_keys
from pirl_plugin.objective.forms import FORMS
from pirl_plugin.objective.negatives import draw

pytest.importorskip("triton")
REPOSITORY = Path(__file__).resolve().parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def problem(kind, dim, num_negatives, dtype, terms):
    generator = torch.Generator().manual_seed(0)
    table = normalize(torch.randn(50, dim, generator=generator), dim=1)
    queries = normalize(torch.randn(terms, 3, dim, generator=generator), dim=-1)
    drawn = torch.randint(1, 50, (3, num_negatives), generator=generator)
    if kind == "one negative takes all":
        table[0] = queries[0, 1]
        drawn[1, num_negatives // 2] = 0
    if kind == "two negatives share all":
        table[0] = queries[0, 1]
        drawn[1, [0, num_negatives - 1]] = 0
    positives = table[[40, 41, 42]]
    if kind == "the positive takes all":
        positives = queries[0].clone()
    return queries.to(DEVICE), positives.to(DEVICE), table.to(DEVICE, dtype), drawn.to(DEVICE)


KINDS = ["ordinary", "one negative takes all", "two negatives share all", "the positive takes all"]


@pytest.fixture
def small_programs(monkeypatch):
    monkeypatch.setattr(triton_contrast, "ROWS_OF_A_BLOCK", 16)
    monkeypatch.setattr(triton_contrast, "ROWS_OF_A_PROGRAM", 32)


def both_ways(monkeypatch, form, queries, positives, table, drawn, temperature):
    threshold = torch.linspace(1, 3, queries[..., 0].numel(), device=DEVICE).view(queries.shape[:2])
    seen = []
    results = []
    for usable in (False, True):
        monkeypatch.setattr(triton_contrast, "usable", lambda *_, usable=usable: usable)
        leaf = queries.clone().requires_grad_()
        arguments = (drawn, temperature, threshold if form == "npid" else None, lambda c, p, n: seen.append(n.clone()))
        losses = fused_contrast.contrast_per_image(FORMS[form], leaf, positives, table, *arguments)
        upstream = torch.linspace(0.5, 2, losses.numel(), device=DEVICE).view(losses.shape)
        results.append((losses.detach(), *torch.autograd.grad((losses * upstream).sum(), leaf)))
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-5, atol=1e-5)  # the scores, for the report and Z
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_kernels_equal_plain_pytorch(form, kind, dtype, monkeypatch, small_programs):
    plain, kernels = both_ways(monkeypatch, form, *problem(kind, 16, 70, dtype, 2), temperature=0.07)
    torch.testing.assert_close(kernels[0], plain[0], rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(kernels[1], plain[1], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("dim", "num_negatives", "terms"), [(128, 9, 2), (24, 33, 1), (3, 130, 2)])
@pytest.mark.parametrize("form", FORMS)
def test_kernels_take_any_size(form, dim, num_negatives, terms, monkeypatch):
    sizes = problem("ordinary", dim, num_negatives, torch.float32, terms)
    plain, kernels = both_ways(monkeypatch, form, *sizes, temperature=0.2)
    torch.testing.assert_close(kernels[0], plain[0], rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(kernels[1], plain[1], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("count", "size"), [(3, 10), (5, 1), (1500, 1_281_166), (40, 100_000_000)])
def test_the_draw_by_a_kernel_is_the_plain_draw(count, size):
    keys = draw_keys(torch.tensor([0, 5, 77]), seed=3, step=11)
    assert torch.equal(triton_contrast.draw_on_gpu(keys.to(DEVICE), count, size).cpu(), draw(keys, count, size))


@pytest.mark.parametrize("form", FORMS)
def test_places_that_hold_nothing_do_not_count(form, small_programs):
    queries, positives, table, drawn = problem("ordinary", 16, 40, torch.float32, 2)
    threshold = torch.ones(queries.shape[:2], device=DEVICE) if form == "npid" else None
    positive = (queries * positives).sum(-1) / 0.2
    results = []
    with_gaps = torch.full((3, 90), -1, device=DEVICE)
    with_gaps[:, 5:85:2] = drawn
    for places in (drawn, with_gaps):
        arguments = (table, places, 0.2, threshold, triton_contrast.Alone())
        results.append(triton_contrast.scores_and_losses(form, queries, positive, *arguments)[1:])
    for full, gaps in zip(*results, strict=True):
        torch.testing.assert_close(gaps, full, rtol=1e-5, atol=1e-5)


COMPILE = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pirl_plugin.objective import triton_kernels as kernels

capability, rows, dim = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
tile = {"TERMS": 2, "M": 16, "BLOCK": 32, "BLOCKS": 64, "D": dim, "PRECISION": "tf32x3" if capability >= 80 else "ieee"}
whole = {"drawn": "*i64", "keys": "*i64", "heavy": "*i32", "table": rows, "inverse_temperature": "fp32"}
whole |= dict.fromkeys(("images", "count", "dim", "size"), "i32")
for kernel, constants in [
    *((kernels.pass_by, {"FORM": form, "POWERS": 3 if form == "nce" else 1, **tile}) for form in kernels_forms),
    (kernels.nce_tail, {"TAIL": 1 / 128, **tile}),
    (kernels.draw, {"BLOCK": 1024}),
]:
    signature = {n: "constexpr" if n in constants else whole.get(n, "*fp32") for n in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    compiled = triton.compile(ASTSource(kernel, signature, places), target=GPUTarget("cuda", capability, 32))
    limit = {70: 96, 75: 64, 80: 99, 90: 227}[capability]  # KiB; 80 stands for 8.6 and 8.9, too
    assert compiled.asm["cubin"] and compiled.metadata.shared <= limit * 1024, compiled.metadata.shared
"""


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["*fp32", "*bf16"])
@pytest.mark.parametrize("capability", [70, 75, 80, 90])
@pytest.mark.parametrize("dim", [128, 256])
def test_kernels_compile_for_gpus_that_are_not_here(capability, rows, dim):
    code = COMPILE.replace("kernels_forms", repr(list(FORMS)))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TRITON_INTERPRET": "0"}
    run = [sys.executable, "-c", code, str(capability), rows, str(dim)]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def untried():
    triton_contrast.available.cache_clear()
    triton_contrast._serves.cache_clear()
    yield
    triton_contrast.available.cache_clear()
    triton_contrast._serves.cache_clear()


def test_where_no_kernel_can_be_built_that_is_said_once_and_plain_pytorch_serves(monkeypatch, caplog, untried):
    tries = []

    def no_compiler(*arguments):
        tries.append(arguments)
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    monkeypatch.setattr(triton_contrast, "draw_on_gpu", no_compiler)
    device = torch.device("cpu")
    for _ in range(3):
        assert not triton_contrast.available(device) and not triton_contrast._serves(
            "nce", 2, 128, torch.float32, device
        )
    assert len(tries) == 1 and len(caplog.records) == 1
    assert "Failed to find C compiler. Please specify via CC" in caplog.text and "Python.h" in caplog.text


@pytest.mark.usefixtures("small_programs", "untried")
def test_a_form_whose_kernel_this_gpu_refuses_is_computed_plainly_and_others_by_kernel(monkeypatch, caplog):
    monkeypatch.setattr(triton_contrast, "draw_on_gpu", lambda *_: None)
    run = triton_contrast.scores_and_losses

    def too_little_shared_memory(kernel, *rest):
        if kernel == "nce":
            raise RuntimeError("out of resource: shared memory, Required: 131072, Hardware limit: 65536")
        return run(kernel, *rest)

    monkeypatch.setattr(triton_contrast, "scores_and_losses", too_little_shared_memory)
    of_run = (2, 32, torch.float32, torch.device(DEVICE))
    assert not triton_contrast._serves("nce", *of_run) and triton_contrast._serves("infonce", *of_run)
    assert len(caplog.records) == 1 and "cannot compute nce with d = 32 here" in caplog.text
