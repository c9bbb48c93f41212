"""A camera and pictures small enough to train on in seconds: the isp task's interface without files, a tiny network, tiny critics."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from trimtab.compress.procedures.unpaired_isp import IspConfig
from trimtab.models.architectures import architectures
from trimtab.models.backbones import FeatureNet
from trimtab.models.contract import Contract, TensorSpec
from trimtab.models.tasks.task import RawBatch

SIDE = 32


class ToySamples:
    def __init__(self, pictures, targets, mosaics):
        self.pictures, self.targets, self.mosaics = pictures, targets, mosaics

    def __len__(self):
        return len(self.targets)

    def __getitems__(self, indices):
        at = torch.tensor(list(indices), dtype=torch.int64)
        return RawBatch(self.mosaics[at], self.targets[at], at)


def smooth(count, seed, side=SIDE):
    """Coloured pictures float32 (count, 3, side, side) with edges and slopes."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return F.interpolate(coarse, (side, side), mode="bicubic", align_corners=False).clamp(0, 1)


def drawn_photographs(folder, count=5, side=64):
    """A folder of finished pictures, PNG, each of another scene."""
    for number, picture in enumerate(smooth(count, 7, side)):
        pixels = (255 * picture).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"scene{number}.png")
    return folder


class ToyIsp:
    """10-bit mosaics (RGGB, black 63) of smooth pictures, too dark and too green; the fixed rendering is bright and half right."""

    name, data, data_id, metric = "isp", "toy", "toy-1", "psnr"

    def __init__(self, *, train=16, val=8, paired=True, side=SIDE):
        self.paired, self.side, self.asked, self.options = paired, side, [], {}
        self._samples = {
            split: self._made(count, seed) for split, count, seed in (("train", train, 1), ("val", val, 2), ("test", val, 3))
        }
        self._pool = smooth(12, 4, side)
        raw = TensorSpec(name="raw", shape=("N", 4, "H", "W"), layout="NCHW", value_range=(0.0, 1.0))
        rgb = TensorSpec(name="rgb", shape=("N", 3, "H2", "W2"), layout="NCHW", value_range=(0.0, 1.0))
        self.contract = Contract(inputs=(raw,), outputs=(rgb,))

    def _made(self, count, seed):
        pictures = smooth(count, seed, self.side)
        linear = pictures**2.2 * torch.tensor([0.5, 0.9, 0.6]).view(1, 3, 1, 1)
        mosaic = torch.empty(count, 1, self.side, self.side)
        for channel, row, column in ((0, 0, 0), (1, 0, 1), (1, 1, 0), (2, 1, 1)):
            mosaic[:, 0, row::2, column::2] = linear[:, channel, row::2, column::2]
        counts = (63 + 960 * mosaic).round().to(torch.int32)
        rendering = (linear ** (1 / 2.2)).clamp(0, 1)
        samples = ToySamples(pictures, pictures if self.paired else rendering, counts)
        samples.rendering = rendering
        return samples

    def samples(self, split):
        return self._samples[split]

    def inputs(self, batch, *, augment=False, generator=None):
        x = (batch.pixels.float() - 63) / 960
        return torch.cat([x[..., 1::2, 1::2], x[..., ::2, 1::2], x[..., ::2, ::2], x[..., 1::2, ::2]], dim=1)

    def training_pair(self, batch, *, augment, generator):
        return self.inputs(batch), batch.targets

    def loss(self, outputs, targets):
        return F.l1_loss(outputs, targets)

    def references(self, batch):
        for samples in self._samples.values():
            if all(torch.equal(samples.mosaics[i], m) for i, m in zip(batch.index.tolist(), batch.pixels, strict=True)):
                return samples.rendering[batch.index]
        raise AssertionError("mosaics of no split")

    def unpaired(self, count, generator):
        at = torch.randint(len(self._pool), (count,), generator=generator)
        self.asked.append(at.tolist())
        return self._pool[at]

    def evaluate(self, predict, split="test", *, limit=None, batch_size=256):
        samples, errors = self.samples(split), []
        for start in range(0, limit or len(samples), batch_size):
            raw = samples.__getitems__(range(start, min(start + batch_size, limit or len(samples))))
            made = predict(self.inputs(raw)).clamp(0, 1).cpu()
            errors += (made - raw.targets).square().flatten(1).mean(1).tolist()
        return {"psnr": float(np.mean(-10 * np.log10(errors))), "loss": float(np.mean(errors))}


def tiny_isp(seed=0):
    """Two convolutions and a pixel shuffle: 4 × h × w → 3 × 2h × 2w."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2))


def tiny_backbone(folder, seed=0):
    """The text that opens a small residual network with random weights as a backbone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = architectures.get("resnet8")()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), folder / f"tiny{seed}.pt")
    return f"resnet8:{folder / f'tiny{seed}.pt'}"


def config(folder, **more):
    """A short run on tiny backbones and critics."""
    text = tiny_backbone(folder)
    made = {
        "content_features": text,
        "texture_features": text,
        "colour_features": text,
        "epochs": 4,
        "batch_size": 4,
        "lr": 2e-3,
        "discriminator_lr": 1e-3,
        "discriminator_width": 0.05,
        "critic_every": 3,
        "candidates": 4,
        "augment": False,
        "checkpoint_s": 1000,
    }
    return IspConfig(**{**made, **more})


def feature_net(seed=0, stages=(0, 2)):
    """A frozen small residual network with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FeatureNet("resnet8", stages=stages).eval().requires_grad_(False)
