"""On a GPU that is not there: nothing waits for it, nothing mixes devices, and ranks exchange what NCCL takes."""

import functools

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from pirl_plugin.data.image_files import list_images
from pirl_plugin.evaluation.layers import embed_layers
from pirl_plugin.evaluation.measures import EVALUATIONS, weighted_knn
from pirl_plugin.launch import registration  # noqa: F401
from pirl_plugin.network.devices import Compute
from pirl_plugin.network.features import center_view, embed
from pirl_plugin.network.weights import Architecture, Trunk
from pirl_plugin.objective import triton_contrast
from pirl_plugin.objective.loss import PIRLLoss
from pirl_plugin.pretext import photometric
from pirl_plugin.pretext.base import PRETEXT_TRANSFORMS
from pirl_plugin.pretext.batch_views import draw_jigsaw_views, jigsaw_views
from pirl_plugin.pretext.photometric import PhotometricSettings
from pretended_gpu import pretended_gpu

pytest.importorskip("triton")
ALL_KINDS = {
    "random_photometric": 0.9, "grayscale": 0.5, "blur": 0.5, "blur_sigma_low": 0.01, "blur_sigma_high": 0.03,
}  # fmt: skip
LOSSES = [
    pytest.mark.parametrize("bank", ["memory_bank", "sharded_memory_bank"]),
    pytest.mark.parametrize("negatives", ["per_image", "shared", "all"]),
    pytest.mark.parametrize("contrast", ["nce", "infonce", "npid"]),
]


def every_loss(test):
    for choice in LOSSES:
        test = choice(test)
    return test


def loss_on_gpu(bank, **settings):
    """A loss whose Z is known, and a function that calls it."""
    loss = PIRLLoss(
        num_train_samples=3000, embedding_dim=128, num_negatives=2048, memory_bank={"name": bank},
        batch_size_per_replica=8, **settings,
    ).to("cuda")  # fmt: skip
    loss.z_is_set = True
    outputs = [torch.randn(8, 128, device="cuda", requires_grad=True) for _ in range(2)]
    return lambda: loss(outputs, torch.arange(8, device="cuda"))


@every_loss
def test_the_loss_and_the_bank_wait_for_nothing(contrast, negatives, bank):
    with pretended_gpu() as gpu:
        step = loss_on_gpu(bank, contrast=contrast, negatives=negatives)
        step()  # the kernels are tried once
        gpu.forget()
        value = step()
        assert value.is_cuda and value.dtype == torch.float32 and value.shape == ()
        assert gpu.launches["pass_by"] == (negatives == "per_image") and gpu.launches["draw"] == (negatives != "all")
        assert gpu.waits == [] and gpu.mixed == []


@pytest.fixture(params=[2, 8, 64])
def world(request):
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=request.param)
    yield request.param
    dist.destroy_process_group()


@every_loss
def test_ranks_exchange_what_nccl_takes_and_no_more_than_their_batches_need(
    contrast, negatives, bank, world, monkeypatch
):
    given, refused = [], []
    for name in ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "reduce_scatter_tensor"):

        def collective(*arguments, name=name, **_):
            for tensor in (each for part in arguments for each in (part if isinstance(part, list) else [part])):
                if isinstance(tensor, torch.Tensor):
                    given.append((name, tensor.numel() * tensor.element_size()))
                    if not (tensor.is_cuda and tensor.is_contiguous()):
                        refused.append((name, tensor.device, tuple(tensor.shape), tensor.stride()))

        monkeypatch.setattr(dist, name, collective)
    monkeypatch.setattr(dist, "get_backend", lambda *_: "nccl")
    monkeypatch.setattr(triton_contrast, "largest_over_ranks", lambda number, _: number)  # asked once
    with pretended_gpu() as gpu:
        step = loss_on_gpu(bank, contrast=contrast, negatives=negatives, report_frequency=100)
        step()  # also reports
        gpu.forget()
        given.clear()
        step()
        assert given and refused == []
        assert gpu.waits == [] and gpu.mixed == []
    # What is gathered stands here twice: one rank's part and the whole. Neither N nor |D| plays a part.
    row, index, images = 4 * 128, 8, 8 * (world + 1)
    gathered = [size for name, size in given if name == "all_gather_into_tensor"]
    reduced = [size for name, size in given if name == "all_reduce"]
    assert len(gathered) + len(reduced) == len(given)
    if bank == "memory_bank":  # the batch's f(v_I) and its indices; how many images count, and for npid an estimate
        assert sum(gathered) == images * (row + index) and len(gathered) == 4
        assert sum(reduced) == 8 + 32 * (contrast == "npid")
    else:  # the queries of both terms, too, and back what the shards made of them
        assert sum(gathered) == images * (3 * row + 2 * index) and len(gathered) == 8
        assert sum(reduced) <= 8 * world * 4 * row and len(reduced) <= 6


@pytest.mark.parametrize("negatives", ["per_image", "shared"])
def test_where_kernels_cannot_be_built_a_run_goes_on_and_says_so_once(negatives, caplog):
    with pretended_gpu(kernels_fail=RuntimeError("Failed to find C compiler")) as gpu:
        step = loss_on_gpu("memory_bank", contrast="nce", negatives=negatives)
        assert step().is_cuda and step().is_cuda
        assert not gpu.launches
    said = [record.message for record in caplog.records if "C compiler" in record.message]
    assert len(said) == 1


def test_augmenting_waits_for_nothing():
    parameters = photometric.draw(64, PhotometricSettings(**ALL_KINDS))
    with pretended_gpu() as gpu:
        views = torch.rand(64, 3, 24, 24, device="cuda")
        assert photometric.apply(views, parameters).is_cuda
        assert gpu.waits == [] and gpu.mixed == []


def test_finishing_a_batch_on_the_device_waits_for_nothing():
    task = PRETEXT_TRANSFORMS["jigsaw_patch_transform"](
        augment_on="device", normalize_on="device", photometric=ALL_KINDS
    )
    parameters = np.stack([task.draw_photometric(None) for _ in range(4)])
    with pretended_gpu() as gpu:
        for _ in range(2):
            views = {
                "images": torch.zeros(4, 3, 224, 224, dtype=torch.uint8, device="cuda"),
                "pretext": torch.zeros(36, 3, 64, 64, dtype=torch.uint8, device="cuda"),
            }
            finished = task.finish(views, parameters)
            assert all(view.is_cuda and view.dtype == torch.float32 for view in finished.values())
        assert gpu.waits == [] and gpu.mixed == []


def zeros_of(tensor: torch.Tensor) -> np.ndarray:
    """In place of Tensor.numpy, for tensors without values."""
    return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def test_views_of_images_in_memory_are_made_on_the_device_without_waiting():
    transform = PRETEXT_TRANSFORMS["jigsaw_patch_transform"](
        image_crop_size=32, patch_crop_size=42, patch_size=12, augment_on="device", normalize_on="device",
        photometric=ALL_KINDS,
    )  # fmt: skip
    drawn = draw_jigsaw_views(transform, 5, 32, 32)
    with pretended_gpu() as gpu:
        views = jigsaw_views(transform, torch.zeros(5, 3, 32, 32, dtype=torch.uint8, device="cuda"), drawn)
        assert {name: tuple(view.shape) for name, view in views.items()} == {
            "images": (5, 3, 32, 32), "pretext": (45, 3, 12, 12),
        }  # fmt: skip
        assert all(view.is_cuda and view.dtype == torch.float32 for view in views.values())
        assert gpu.waits == [] and gpu.mixed == []


@pytest.mark.parametrize("bfloat16", [False, True])
def test_features_are_computed_where_it_was_asked_for(photo_folder, bfloat16, monkeypatch):
    seen = []
    with pretended_gpu() as gpu:
        trunk = Trunk(Architecture(18, 0.125, "small")).eval().network
        trunk.register_forward_hook(lambda _, given, made: seen.append((given[0].device.type, made[0].dtype)))
        monkeypatch.setattr(torch.Tensor, "numpy", zeros_of)
        compute = Compute(torch.device("cuda"), bfloat16=bfloat16)
        embed(trunk, list_images(photo_folder)[:6], center_view(32), batch_size=3, compute=compute)
        assert sum("to the host" in wait for wait in gpu.waits) == 2  # the features of each batch, and nothing else
    assert seen == [("cuda", torch.bfloat16 if bfloat16 else torch.float32)] * 2


PLANTED = {
    "a value": lambda x: x.sum().item(),
    "a mask": lambda x: x[x > 0],
    "a copy back": lambda x: x.cpu(),
    "a number set": lambda x: x.__setitem__((0, 0), torch.tensor(5.0).to("cuda")),
    "indices of the host": lambda x: x[torch.zeros(2, dtype=torch.int64)],
}


@pytest.mark.parametrize("fault", PLANTED)
def test_the_pretended_gpu_notes_a_planted(fault):
    with pretended_gpu() as gpu:
        x = torch.rand(4, 4, device="cuda")
        assert gpu.waits == [] and gpu.mixed == []
        try:
            PLANTED[fault](x)
        except torch._subclasses.fake_tensor.DataDependentOutputException:
            pass  # there is no value to give
        except torch._subclasses.fake_tensor.DynamicOutputShapeException:
            pass
        assert len(gpu.waits) + len(gpu.mixed) >= 1


def on_the_pretended_gpu(evaluate, monkeypatch):
    """Call an evaluation with features of 300 and 40 images of 5 classes; returns the record of what it did."""
    rng = np.random.default_rng(0)
    train, test = (rng.normal(size=(count, 64)).astype(np.float32) for count in (300, 40))
    labels = [rng.integers(0, 5, count) for count in (300, 40)]

    def backward(*_):  # autograd's engine asks for real devices
        for tensor in leaves:
            tensor.grad = torch.zeros_like(tensor)

    def solver(self, parameters, **more):
        leaves.extend(parameters)
        lbfgs(self, parameters, **more)

    leaves, lbfgs = [], torch.optim.LBFGS.__init__
    with pretended_gpu() as gpu:
        monkeypatch.setattr(torch.Tensor, "numpy", zeros_of)
        monkeypatch.setattr(torch.Tensor, "backward", backward)
        monkeypatch.setattr(torch.optim.LBFGS, "__init__", solver)
        evaluate(train, labels[0], test, labels[1])
    assert gpu.mixed == []
    return gpu


@pytest.mark.parametrize("name", ["knn", "linear"])
def test_an_evaluation_computes_on_the_gpu_where_there_is_one(name, monkeypatch):
    gpu = on_the_pretended_gpu(EVALUATIONS[name], monkeypatch)
    assert gpu.products["cuda"] > 0 and set(gpu.products) == {"cuda"}


def test_an_evaluation_stays_on_the_cpu_where_that_was_asked_for(monkeypatch):
    gpu = on_the_pretended_gpu(functools.partial(weighted_knn, device="cpu"), monkeypatch)
    assert set(gpu.products) == {"cpu"}


def test_features_of_layers_are_computed_where_it_was_asked_for(photo_folder, monkeypatch):
    files = list_images(photo_folder)[:6]
    with pretended_gpu() as gpu:
        monkeypatch.setattr(torch.Tensor, "numpy", zeros_of)
        trunk = Trunk(Architecture(18, 0.125, "small")).eval().network
        compute = Compute(torch.device("cuda"))
        embed_layers(trunk, files, center_view(32), ["res4", "res5"], batch_size=3, compute=compute)
        assert set(gpu.products) == {"cuda"} and gpu.mixed == []
