"""PIRL in plain PyTorch, without VISSL: trains on a folder of photos and writes the trunk's weights.

python examples/plain_pytorch.py photos --epochs 20 --output trunk.pth
pirl embed trunk.pth photos --output features.npy
"""

import argparse

import torch
from torch.utils.data import DataLoader

from pirl_plugin import JigsawPatchTransform, PIRLHead, PIRLLoss, ResNetTrunk
from pirl_plugin.data.collator import pirl_collator
from pirl_plugin.data.views import ImageViews


def train(
    photos: str, epochs: int, batch_size: int, learning_rate: float, workers: int = 0, batch_norm: bool = True
) -> tuple[ResNetTrunk, list]:
    """Train; returns the trunk and the mean loss of each epoch. Few photos need batch_norm, which the paper lacks."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    transform = JigsawPatchTransform(image_crop_size=32, patch_crop_size=42, patch_size=12, seed=0)
    views = ImageViews(photos, transform)
    loader = DataLoader(views, batch_size, shuffle=True, drop_last=True, num_workers=workers, collate_fn=pirl_collator)

    trunk = ResNetTrunk(18, width_multiplier=0.5, stem="small")  # theta
    f = PIRLHead("image", in_channels=256, batch_norm=batch_norm)  # f(v_I): [B, C] -> [B, d]
    g = PIRLHead("jigsaw", in_channels=256, batch_norm=batch_norm)  # g(v_It): [9 B, C] -> [B, d]
    loss = PIRLLoss(
        num_train_samples=len(views),
        negatives="all",
        temperature=0.1,
        memory_bank={"name": "memory_bank", "fill_first": True},
        batch_size_per_replica=batch_size,
    )
    network = torch.nn.ModuleList([trunk, f, g]).to(device)
    loss.to(device)
    optimizer = torch.optim.SGD(network.parameters(), learning_rate, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))

    means = []
    for epoch in range(epochs):
        views.set_epoch(epoch)
        total = 0.0
        for batch in loader:
            (images,), (patches,), (index,) = (batch[key] for key in ("images", "pretext", "image_index"))
            (image_features,) = trunk(images.to(device))  # [B, C]
            (patch_features,) = trunk(patches.to(device))  # [9 B, C]
            value = loss([f(image_features), g(patch_features)], index.to(device))  # Eq. 5; updates the bank
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            total += value.item()
        means.append(total / len(loader))
        print(f"epoch {epoch + 1} of {epochs}: loss {means[-1]:.3f}" + " (the bank is filled)" * (epoch == 0))
    return trunk.cpu().eval(), means


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="a folder of any depth, or a list of files")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=0.015)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--output", default="trunk.pth")
    options = parser.parse_args()
    trunk, _ = train(options.photos, options.epochs, options.batch_size, options.learning_rate, options.workers)
    torch.save(trunk.state_dict(), options.output)
    print(f"Written: {options.output}, which pirl_plugin.load_trunk and `pirl embed` read")
