"""A GPU for machines that have none: tensors without values that say they are on one, and a record of what they do.

    with pretended_gpu() as gpu:
        loss = PIRLLoss(...).to("cuda")
        gpu.forget()
        loss(outputs, target)
    assert gpu.waits == [] and gpu.mixed == []

PyTorch's FakeTensorMode computes shapes, types and devices; operations that mix devices raise. There are no values, no
backward pass (autograd's engine asks the driver for devices) and no NCCL.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pirl_plugin.objective import kernel_launch, triton_contrast, triton_kernels

if torch.__version__ < (2, 11):
    pytest.skip("tensors of a pretended GPU would start CUDA in PyTorch before 2.11", allow_module_level=True)

aten = torch.ops.aten
# The host learns a value, or how large the result is, only once the device has come so far.
ASKS_FOR_VALUES = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.bincount, aten._unique2}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.convolution}
COPIES = {aten._to_copy: 0, aten.copy_: 1}  # which argument is the source


class Record(TorchDispatchMode):
    """What the operations on the pretended GPU were.

    Attributes:
        waits: what the host would have waited for, and where in the plugin.
        mixed: what was indexed on the GPU by indices of the host, which copies them and waits.
        launches: of the plugin's kernels, by name.
        products: of matrices, by the kind of device that computed them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.mixed: list[str] = []
        self.launches: Counter[str] = Counter()
        self.products: Counter[str] = Counter()

    def forget(self) -> None:
        """Begin anew, after what happens once only."""
        self.waits, self.mixed = [], []
        self.launches.clear()
        self.products.clear()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        keywords, packet = keywords or {}, function.overloadpacket
        if function.namespace == "aten":
            with self:  # in inference mode, operations such as item() arrive whole
                made = function.decompose(*arguments, **keywords)
            if made is not NotImplemented:
                return made
        tensors = [leaf for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, Tensor)]
        on_gpu = any(tensor.is_cuda for tensor in tensors)
        if packet in ASKS_FOR_VALUES and on_gpu:  # not of the host's own memory, for which nobody need wait
            self.waits.append(f"{packet.__name__}: {where()}")
        if packet is aten._local_scalar_dense:
            with unset_fake_temporarily():
                return function(torch.ones((), dtype=arguments[0].dtype))
        if packet in PRODUCTS:
            self.products.update({tensor.device.type for tensor in tensors})
        if packet in INDEXED and on_gpu:
            self._indexed([index for index in arguments[1] if isinstance(index, Tensor)])
        if packet in COPIES:
            self._copied(packet, arguments, keywords)
        return function(*arguments, **keywords)

    def _indexed(self, indices: list[Tensor]) -> None:
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            self.waits.append(f"a mask, whose ones are counted: {where()}")
        if any(not index.is_cuda for index in indices):
            self.mixed.append(f"indices of the host: {where()}")

    def _copied(self, packet, arguments, keywords) -> None:
        source = arguments[COPIES[packet]]
        target = arguments[0].device if packet is aten.copy_ else torch.device(keywords.get("device") or source.device)
        asynchronous = keywords.get("non_blocking") or (packet is aten.copy_ and len(arguments) > 2 and arguments[2])
        if source.is_cuda and target.type == "cpu":
            self.waits.append(f"{tuple(source.shape)} to the host: {where()}")
        if target.type == "cuda" and not source.is_cuda and not (asynchronous and hasattr(source, "is_pinned_here")):
            self.waits.append(f"{tuple(source.shape)} to the GPU: {where()}")


def where() -> str:
    """The innermost lines of the plugin that are being run."""
    lines = [frame for frame in traceback.extract_stack() if "/pirl_plugin/" in frame.filename]
    return ", called by ".join(f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in lines[:-4:-1])


def pinned(tensor: Tensor, *_: object) -> Tensor:
    if tensor.is_cuda:
        raise RuntimeError("only dense CPU tensors can be pinned")  # as PyTorch says
    copy = tensor.view_as(tensor)
    copy.is_pinned_here = True  # type: ignore[attr-defined]
    return copy


class CheckedKernel:
    """Stands for a Triton kernel: it takes what a launch takes, and refuses what a GPU would.

    Attributes:
        fails_with: raised by every launch, as by a compiler that is missing.
    """

    fails_with: Exception | None = None

    def __init__(self, kernel, record: Record) -> None:
        self.kernel, self.record = kernel, record
        self.name = kernel.fn.__name__ if hasattr(kernel, "fn") else kernel.__name__

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert grid[0] < 2**31 and all(0 < blocks < 2**16 for blocks in grid[1:]), f"{self.name}: grid {grid}"

        def launch(*arguments: object, **constants: object) -> None:
            if self.fails_with is not None:
                raise self.fails_with
            for place, value in enumerate(arguments):
                if isinstance(value, Tensor):
                    assert value.is_cuda, f"{self.name}: argument {place} is on the host"
                    assert value.is_contiguous(), f"{self.name}: argument {place} has strides {value.stride()}"
            self.record.launches[self.name] += 1

        return launch


def _move(module: torch.nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> torch.nn.Module:
    """nn.Module._apply, but with new parameters: those without values cannot be changed in place."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                with torch.no_grad():
                    part._parameters[name] = torch.nn.Parameter(function(value), value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                # not itself: a constant would be copied for real
                part._buffers[name] = function(torch.empty(value.shape, dtype=value.dtype, device=value.device))
    return module


@contextlib.contextmanager
def pretended_gpu(capability: tuple[int, int] = (9, 0), kernels_fail: Exception | None = None) -> Iterator[Record]:
    """One GPU of a compute capability, whose kernels may not build."""
    record = Record()

    def is_there() -> bool:  # FakeTensorMode would start CUDA if it believed so
        return not sys._getframe(1).f_code.co_filename.endswith("fake_tensor.py")

    answers: dict[str, object] = {
        "is_available": is_there, "is_initialized": lambda: False, "device_count": lambda: 1,
        "current_device": lambda: 0, "get_device_capability": lambda *_: capability,
        "is_bf16_supported": lambda *_, **__: capability >= (8, 0), "get_device_name": lambda *_: "pretended",
        "current_stream": lambda *_: None,
    }  # fmt: skip
    patches = [mock.patch.object(torch.cuda, name, answer) for name, answer in answers.items()]
    patches += [
        mock.patch("torch._subclasses.fake_tensor.init_gpu_context"),
        mock.patch.object(Tensor, "pin_memory", pinned),
        mock.patch.object(Tensor, "record_stream"),
        mock.patch.object(torch.nn.Module, "_apply", _move),
    ]
    for name in ("draw", "pass_by", "nce_tail"):
        kernel = CheckedKernel(getattr(triton_kernels, name), record)
        kernel.fails_with = kernels_fail
        patches.append(mock.patch.object(triton_kernels, name, kernel))
    patches.append(mock.patch.object(kernel_launch, "milliseconds", lambda run: run() is None))
    probes = (triton_contrast.available, triton_contrast._serves, triton_contrast._launch)
    with contextlib.ExitStack() as stack:
        for probe in probes:
            probe.cache_clear()
            stack.callback(probe.cache_clear)
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(record)
        yield record
