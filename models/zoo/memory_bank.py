"""A memory of normal patches: how far each patch's frozen features lie from the nearest one remembered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..architectures import ArchitectureCard, architectures
from ..backbones import FeatureNet
from ..errors import UserError
from ..fitting import Fit, Pictures
from ..outputs import AnomalyOutput
from .frozen_features import BACKBONE, feature_maps, frozen_features, map_sizes, refuse_unknown, two_sides

STAGES = (5, 11)
"""The last blocks at strides 8 and 16 of EfficientNet-Lite0: PatchCore takes a residual network's second and third of four levels."""
CANDIDATES = 50_000
"""Patches that the memory is chosen from."""
PROJECTED = 128
"""Dimensions that distances are measured in while the core set is chosen: a random projection keeps them roughly (the paper's §3.2)."""
SAMPLINGS = ("coreset", "random")


class MemoryBank(nn.Module):
    """Pictures (N, 3, H, W) in 0…1 → `AnomalyOutput`: distances (N, 1, h, w) to the nearest of `bank_size` normal patches, and their maximum.

    A patch's features are those of all stages, averaged over 3×3 places, the deeper maps enlarged to the shallowest one's size and joined.
    With `neighbours` k > 1 the distance is the mean of those to the k nearest. `reweight` b > 0 scales a picture's map by
    1 − exp(d)/Σ exp(dᵢ): d is the distance from the oddest patch to its nearest memory m, dᵢ those from it to the b memories nearest to m.
    Source: Roth et al.: Towards Total Recall in Industrial Anomaly Detection (PatchCore), CVPR 2022, §3; equation 7 for `reweight`, which
    is off by default here.
    """

    bank: Tensor
    centre: Tensor

    def __init__(
        self,
        features: FeatureNet,
        *,
        arguments: Mapping[str, Any],
        size: tuple[int, int],
        bank_size: int,
        neighbours: int,
        reweight: int,
    ) -> None:
        super().__init__()
        if bank_size < 1 or not 1 <= neighbours <= bank_size or not 0 <= reweight <= bank_size:
            raise UserError(
                f"bank_size={bank_size}, neighbours={neighbours}, reweight={reweight}: the bank holds 1 or more, neighbours are "
                "1 … bank_size, reweight 0 … bank_size",
                hint="bank_size=1000 neighbours=1 reweight=0 unless told otherwise",
            )
        self.features, self.arguments = features, dict(arguments)
        self.size = map_sizes(features, size)[0]
        self.neighbours, self.reweight = neighbours, reweight
        self.register_buffer("bank", torch.zeros(bank_size, sum(features.channels), 1, 1))  # as a convolution holds it
        self.register_buffer("centre", torch.zeros(1, sum(features.channels), 1, 1))

    def describe(self, maps: Sequence[Tensor]) -> Tensor:
        """(N, C, h, w): the joined features of each patch."""
        pooled = [F.avg_pool2d(found, 3, 1, 1, count_include_pad=False) for found in maps]
        same = [pooled[0], *(F.interpolate(p, self.size, mode="bilinear", align_corners=False) for p in pooled[1:])]
        return torch.cat(same, dim=1)

    def forward(self, image: Tensor) -> AnomalyOutput:
        """See the class."""
        patches = self.describe(self.features(image)) - self.centre
        # |a − b|² = |a|² + |b|² − 2 a·b: the products of all patches with all memories are one 1×1 convolution
        products = F.conv2d(patches, self.bank)
        norms = self.bank.square().sum(1)[None, :, :]
        squares = patches.square().sum(1, keepdim=True) + (norms - 2 * products)
        if self.neighbours == 1:
            distance = squares.amin(1, keepdim=True).relu().sqrt()
        else:
            nearest = squares.topk(self.neighbours, dim=1, largest=False).values
            distance = nearest.relu().sqrt().mean(1, keepdim=True)
        if self.reweight:
            distance = distance * self._weight(squares)
        return AnomalyOutput(distance, distance.amax((2, 3)))

    def _weight(self, squares: Tensor) -> Tensor:
        """(N, 1, 1, 1): how lonely the memory is that the oddest patch is nearest to (equation 7)."""
        flat = squares.flatten(2)
        nearest = flat.amin(1)
        oddest = nearest.argmax(1)[:, None, None].expand(-1, flat.shape[1], 1)
        mine = flat.gather(2, oddest)[:, :, 0].relu().sqrt()  # (N, M): from the oddest patch to each memory
        bank = self.bank.flatten(1)
        memory = bank[mine.argmin(1)]
        around = (memory.square().sum(1, keepdim=True) - 2 * memory @ bank.T + bank.square().sum(1)).topk(
            self.reweight, dim=1, largest=False
        )
        exponents = mine.gather(1, around.indices)
        # softmax of the distances to m and its neighbours; m is its own nearest neighbour and so among them
        share = (mine.amin(1) - exponents.logsumexp(1)).exp()
        return (1 - share)[:, None, None, None]

    def fitted(
        self, features: FeatureNet, pictures: Pictures, *, size: tuple[int, int], seed: int, options: dict[str, Any]
    ) -> Fit:
        """The memory of these normal pictures' patches, of `candidates` of them drawn by `seed`.

        `options`: `sampling` "coreset" takes each time the candidate that is farthest from those taken (greedy k-centre), "random" any;
        `candidates`. A bank that would be larger than there are candidates is made smaller, with a note.
        """
        refuse_unknown(options, ("sampling", "candidates"), "memory_bank")
        shape = MemoryBank(
            features, arguments=self.arguments, size=size, bank_size=1, neighbours=1, reweight=0
        )  # only its way of describing patches
        drawn, total = _candidates(shape, features, pictures, limit=options.get("candidates", CANDIDATES), seed=seed)
        wanted = len(self.bank)
        taken = min(wanted, len(drawn))
        rng = np.random.default_rng((seed, 1))
        if options.get("sampling", "coreset") == "random":
            chosen = np.sort(rng.permutation(len(drawn))[:taken])
        else:
            chosen = coreset(drawn.numpy(), taken, rng=rng)
        bank = drawn[torch.from_numpy(chosen)]
        centre = bank.mean(0)
        kwargs = {
            **self.arguments,
            "backbone": features.name,
            "backbone_args": features.kwargs,
            "stages": list(features.stages),
            "image_size": list(size),
            "bank_size": taken,
            "neighbours": min(self.neighbours, taken),
            "reweight": min(self.reweight, taken),
        }
        made = MemoryBank(
            features, arguments=kwargs, size=size, bank_size=taken, neighbours=kwargs["neighbours"], reweight=kwargs["reweight"]
        ).eval()
        made.bank.copy_((bank - centre)[:, :, None, None])
        made.centre.copy_(centre.view(1, -1, 1, 1))
        notes = () if taken == wanted else (f"the bank holds {taken} patches in place of {wanted}: there are no more",)
        figures = {"stages": list(features.stages), "patches": total, "candidates": len(drawn), "bank_size": taken}
        return Fit(made, kwargs, figures, notes)


def _candidates(shape: MemoryBank, features: FeatureNet, pictures: Pictures, *, limit: int, seed: int) -> tuple[Tensor, int]:
    """(up to `limit` patches (n, C) drawn evenly from all pictures, how many there were)."""
    if limit < 1:
        raise UserError(f"candidates={limit} must be 1 or more", hint=f"{CANDIDATES} unless told otherwise")
    count = sum(len(batch) for batch in pictures())
    total = count * shape.size[0] * shape.size[1]
    picked = np.sort(np.random.default_rng(seed).choice(total, min(limit, total), replace=False))
    found, start = [], 0
    for maps in feature_maps(features, pictures):
        patches = shape.describe(maps).flatten(2).transpose(1, 2).flatten(0, 1)
        here = picked[(picked >= start) & (picked < start + len(patches))] - start
        found.append(patches[torch.from_numpy(here)])
        start += len(patches)
    return torch.cat(found), total


def coreset(points: np.ndarray, count: int, *, rng: np.random.Generator) -> np.ndarray:
    """Places int64 (count,) of points (n, C) such that every point is near one: greedily the farthest one next, from a random start.

    Distances are Euclidean, in `PROJECTED` random directions where there are more channels. Source: PatchCore, algorithm 1.
    """
    spread = points.astype(np.float32)
    if spread.shape[1] > PROJECTED:
        spread = spread @ (rng.normal(size=(spread.shape[1], PROJECTED)) / np.sqrt(PROJECTED)).astype(np.float32)
    spread = np.ascontiguousarray(spread - spread.mean(0))
    norms = np.einsum("ij,ij->i", spread, spread)
    chosen = np.empty(count, dtype=np.int64)
    chosen[0] = rng.integers(len(spread))
    nearest = np.full(len(spread), np.inf, dtype=np.float32)
    for i in range(1, count):
        last = chosen[i - 1]
        nearest = np.minimum(nearest, norms + norms[last] - 2 * (spread @ spread[last]))
        nearest[last] = -np.inf  # taken ones never come again, not even where points coincide
        chosen[i] = int(nearest.argmax())
    return chosen


@architectures.register(
    "memory_bank",
    ArchitectureCard(
        "A memory of normal patches (PatchCore's k nearest neighbours) on frozen features",
        "Roth et al.: Towards Total Recall in Industrial Anomaly Detection, CVPR 2022",
        (3, 224, 224),
        task="anomaly",
        recipe=({"kind": "anomaly-fit"},),
    ),
)
def memory_bank(
    *,
    backbone: str = BACKBONE,
    backbone_args: Mapping[str, Any] | None = None,
    stages: Sequence[int] = STAGES,
    image_size: int | Sequence[int] = 224,
    bank_size: int = 1000,
    neighbours: int = 1,
    reweight: int = 0,
) -> MemoryBank:
    """A bank of `bank_size` patches on `stages` of the stock network `backbone`, empty until the step `anomaly-fit` fills it."""
    size = two_sides(image_size)
    arguments = {
        "backbone": backbone,
        "backbone_args": dict(backbone_args or {}),
        "stages": list(stages),
        "image_size": list(size),
    }
    return MemoryBank(
        frozen_features(backbone, backbone_args, stages),
        arguments={**arguments, "bank_size": bank_size, "neighbours": neighbours, "reweight": reweight},
        size=size,
        bank_size=bank_size,
        neighbours=neighbours,
        reweight=reweight,
    )
