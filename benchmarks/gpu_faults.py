"""Faults that only a GPU would show, planted one at a time: does a test on a pretended GPU fail with each?

python benchmarks/gpu_faults.py
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from mutants import ROOT, fails

STEP, PRETENDED = "tests/end_to_end/test_pretended_gpu_step.py", "tests/end_to_end/test_pretended_gpu.py"


class Fault(NamedTuple):
    """A line of one of the plugin's modules, and its faulty replacement."""

    what: str
    module: str
    line: str
    fault: str
    tests: str


FAULTS = [
    Fault("all_reduce of strides that NCCL refuses", "distributed.py",
          "tensor = tensor.clone(memory_format=torch.contiguous_format)", "tensor = tensor.clone()",
          PRETENDED),
    Fault("kernels are taken for usable where no compiler is", "objective/triton_contrast.py",
          'return _tried("be built", lambda: draw_on_gpu(keys, 1024, 2))', "return keys is not None", PRETENDED),
    Fault("a driver that is too old is not compared", "network/devices.py",
          'if oldest is not None and int(driver.split(".")[0]) < oldest:', "if False:",
          "tests/network/test_devices.py"),
    Fault("augmenting waits for a number", "pretext/photometric.py",
          "smooth = views.clone()", "smooth = views.clone() * float(factors.sum() > 0)", PRETENDED),
    Fault("kNN stays on the CPU", "evaluation/search.py",
          "where = device if isinstance(device, torch.device) else choose_device(device)",
          'where = torch.device("cpu")', PRETENDED),
    Fault("features of layers stay on the CPU", "evaluation/layers.py",
          "compute = compute or Compute(next(trunk.parameters()).device)", 'compute = Compute(torch.device("cpu"))',
          PRETENDED),
    Fault("the linear probe stays on the CPU", "evaluation/measures.py",
          "where = device if isinstance(device, torch.device) else choose_device(device)",
          'where = torch.device("cpu")', PRETENDED),
    Fault("a hook reads the loss of every step", "training/progress.py", "self.losses.append(last.loss)",
          "self.losses.append(last.loss + 0 * float(last.loss))", STEP),
    Fault("the step asks whether the loss is finite", "training/train_step.py", "task.last_batch.loss = total",
          "task.last_batch.loss = total\n    assert bool(total.isfinite())", STEP),
]  # fmt: skip


def main() -> None:
    noticed = 0
    for fault in FAULTS:
        path = ROOT / "pirl_plugin" / fault.module
        text = path.read_text(encoding="utf-8")
        assert text.count(fault.line) == 1, f"{fault.module} has another line now: {fault.line}"
        failed, by = fails(path, text.replace(fault.line, fault.fault), [fault.tests])
        noticed += failed
        print(f"{'noticed ' if failed else 'SURVIVES'} {fault.what} ({fault.module}): {by}", flush=True)
    print(f"{noticed} of {len(FAULTS)} noticed")
    sys.exit(noticed != len(FAULTS))


if __name__ == "__main__":
    main()
