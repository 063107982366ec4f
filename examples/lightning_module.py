"""PIRL as a LightningModule, with Lightning's trainer, devices and checkpoints, without VISSL.

pip install lightning
python examples/lightning_module.py photos --epochs 20 --output trunk.pth
"""

import argparse

import lightning as L
import torch
from torch.utils.data import DataLoader

from pirl_plugin import JigsawPatchTransform, PIRLHead, PIRLLoss, ResNetTrunk
from pirl_plugin.data.collator import pirl_collator
from pirl_plugin.data.views import ImageViews


class PIRL(L.LightningModule):
    """Trunk, heads and Eq. 5; Lightning's checkpoints include the loss and its memory bank.

    Args:
        num_images: |D|.
        batch_size: images per device and step.
    """

    def __init__(self, num_images: int, batch_size: int, learning_rate: float = 0.015) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.trunk = ResNetTrunk(18, width_multiplier=0.5, stem="small")
        self.f = PIRLHead("image", in_channels=256, batch_norm=True)
        self.g = PIRLHead("jigsaw", in_channels=256, batch_norm=True)
        self.loss = PIRLLoss(
            num_train_samples=num_images,
            negatives="all",
            temperature=0.1,
            memory_bank={"name": "memory_bank", "fill_first": True},
            batch_size_per_replica=batch_size,
        )

    def training_step(self, batch: dict, batch_index: int) -> torch.Tensor:
        (images,), (patches,), (index,) = (batch[key] for key in ("images", "pretext", "image_index"))
        (image_features,) = self.trunk(images)  # [B, C]
        (patch_features,) = self.trunk(patches)  # [9 B, C]
        value = self.loss([self.f(image_features), self.g(patch_features)], index)
        self.log("loss", value, on_epoch=True, prog_bar=True, batch_size=len(index))
        return value

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), self.learning_rate, momentum=0.9, weight_decay=1e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def make(photos: str, batch_size: int, learning_rate: float, workers: int = 0) -> tuple[PIRL, DataLoader]:
    """Make the module and the loader of its views."""
    transform = JigsawPatchTransform(image_crop_size=32, patch_crop_size=42, patch_size=12)
    views = ImageViews(photos, transform)
    loader = DataLoader(views, batch_size, shuffle=True, drop_last=True, num_workers=workers, collate_fn=pirl_collator)
    return PIRL(len(views), batch_size, learning_rate), loader


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="a folder of any depth, or a list of files")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=0.015)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--output", default="trunk.pth")
    options = parser.parse_args()
    module, loader = make(options.photos, options.batch_size, options.learning_rate, options.workers)
    L.Trainer(max_epochs=options.epochs, logger=False, use_distributed_sampler=True).fit(module, loader)
    torch.save(module.trunk.state_dict(), options.output)
    print(f"Written: {options.output}, which pirl_plugin.load_trunk and `pirl embed` read")
