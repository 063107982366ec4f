"""The kernels against plain PyTorch: on a GPU where there is one, else in Triton's interpreter (see conftest.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from pirl_plugin.objective import fused_contrast, kernel_launch, triton_contrast
from pirl_plugin.objective.counter_generator import keys as draw_keys
from pirl_plugin.objective.forms import FORMS
from pirl_plugin.objective.kernel_launch import LAUNCHES, Launch, fastest_launch, usual_launch
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
    monkeypatch.setattr(triton_contrast, "_launch", lambda *_: Launch(16, 4))
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
import json, os, re, subprocess, sys, tempfile, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pirl_plugin.objective import triton_contrast, triton_kernels as kernels
from pirl_plugin.objective.kernel_launch import LAUNCHES

capability, rows, dim = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
tools = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
whole = {"drawn": "*i64", "keys": "*i64", "heavy": "*i32", "table": rows, "inverse_temperature": "fp32"}
whole |= dict.fromkeys(("images", "count", "dim", "size"), "i32")
for launch in LAUNCHES:
    tile = {"TERMS": 2, "M": 16, "BLOCK": launch.rows, "BLOCKS": triton_contrast.ROWS_OF_A_PROGRAM // launch.rows}
    tile |= {"D": dim, "PRECISION": "tf32x3" if capability >= 80 else "ieee"}
    for name, kernel, constants in [
        *((form, kernels.pass_by, {"FORM": form, "POWERS": powers, **tile})
          for form, (powers, _) in triton_contrast.KERNELS.items()),
        ("tail", kernels.nce_tail, {"TAIL": triton_contrast.TAIL, **tile}),
        ("draw", kernels.draw, {"BLOCK": 1024}),
    ]:
        names = kernel.arg_names
        signature = {n: "constexpr" if n in constants else whole.get(n, "*fp32") for n in names}
        # As a run specialises them: addresses, N and d are multiples of 16.
        multiples = [n for n in names if signature[n][0] == "*" or n in ("images", "count", "dim")]
        source = ASTSource(
            kernel, signature, {(names.index(n),): value for n, value in constants.items()},
            {(names.index(n),): [["tt.divisibility", 16]] for n in multiples},
        )
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(source, target=target, options={"num_warps": launch.warps})
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            usage = subprocess.run([f"{tools}/cuobjdump", "-res-usage", file.name], capture_output=True, text=True)
            code = subprocess.run([f"{tools}/nvdisasm", "-c", file.name], capture_output=True, text=True)
        found = {"registers": int(re.search("REG:([0-9]+)", usage.stdout)[1])}
        found["spills"] = len(re.findall(r"(STL|LDL)[.]?", code.stdout))  # to and from a thread's own memory
        found |= {"kernel": name, "rows": launch.rows, "warps": launch.warps, "shared": compiled.metadata.shared}
        found["wide loads"] = len(re.findall(r"(LDG|LDGSTS)[.]E\\S*[.]128", code.stdout))
        print(json.dumps(found))
"""
SHARED_MEMORY = {75: 64, 80: 163, 86: 99, 90: 227, 100: 227, 120: 99}  # KiB a program may take


def compiled_for(capability: int, rows: str, dim: int) -> list[dict]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TRITON_INTERPRET": "0"}
    run = [sys.executable, "-c", COMPILE, str(capability), rows, str(dim)]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["*fp32", "*bf16"])
@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_for_gpus_that_are_not_here_kernels_fit_spill_nothing_and_read_16_bytes_at_a_time(capability, rows):
    kernels = compiled_for(capability, rows, 128)
    assert len(kernels) == 5 * len(LAUNCHES)
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_MEMORY[capability] * 1024, kernel
        usual = Launch(kernel["rows"], kernel["warps"]) == usual_launch(128)
        assert kernel["spills"] <= (0 if usual else 4), kernel
        assert kernel["wide loads"] >= 1 or kernel["kernel"] == "draw", kernel


@pytest.mark.slow
@pytest.mark.parametrize("capability", [75, 90])
def test_for_long_vectors_kernels_compile_and_the_usual_launch_spills_least(capability):
    kernels = [kernel for kernel in compiled_for(capability, "*fp32", 256) if kernel["kernel"] == "nce"]
    assert all(kernel["shared"] <= SHARED_MEMORY[capability] * 1024 for kernel in kernels)
    spilled = {Launch(kernel["rows"], kernel["warps"]): kernel["spills"] for kernel in kernels}
    assert spilled[usual_launch(256)] == min(spilled.values())


@pytest.mark.parametrize("launch", LAUNCHES)
@pytest.mark.parametrize("form", FORMS)
def test_every_launch_gives_the_same_losses(form, launch, monkeypatch):
    queries, positives, table, drawn = problem("two negatives share all", 16, 70, torch.float32, 2)
    threshold = torch.ones(queries.shape[:2], device=DEVICE) if form == "npid" else None
    arguments = (queries, (queries * positives).sum(-1) / 0.2, table, drawn, 0.2, threshold, triton_contrast.Alone())
    wanted = triton_contrast.scores_and_losses(form, *arguments, Launch(64, 4))
    for got, want in zip(triton_contrast.scores_and_losses(form, *arguments, launch), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_of_the_launches_that_a_gpu_takes_the_fastest_is_chosen(monkeypatch, caplog):
    caplog.set_level("INFO")
    times = {LAUNCHES[0]: 3.0, LAUNCHES[2]: 1.0, LAUNCHES[3]: 2.0}  # LAUNCHES[1] is refused
    monkeypatch.setattr(kernel_launch, "milliseconds", lambda run: times[run()])
    assert fastest_launch("nce", 128, lambda launch: launch) == LAUNCHES[2]
    assert "GPU kernels of nce, d = 128: 16 rows and 4 warps (32 rows and 4 warps 3.00 ms" in caplog.text
    assert "with 32 rows and 8 warps: KeyError" in caplog.text
    times.clear()
    assert fastest_launch("nce", 128, lambda launch: launch) == usual_launch(128) == LAUNCHES[0]


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
    monkeypatch.setattr(triton_contrast, "draw_on_gpu", lambda keys, count, _: keys.new_zeros(len(keys), count))
    run = triton_contrast.scores_and_losses

    def too_little_shared_memory(kernel, *rest):
        if kernel == "nce":
            raise RuntimeError("out of resource: shared memory, Required: 131072, Hardware limit: 65536")
        return run(kernel, *rest)

    monkeypatch.setattr(triton_contrast, "scores_and_losses", too_little_shared_memory)
    of_run = (2, 32, torch.float32, torch.device(DEVICE))
    assert not triton_contrast._serves("nce", *of_run) and triton_contrast._serves("infonce", *of_run)
    assert len(caplog.records) == 1 and "cannot compute nce with d = 32 here" in caplog.text
