"""Gaussian-AD: how far a picture's frozen features lie from the Gaussian of normal ones."""

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

STAGES = (1, 3, 5, 8, 11, 15, 16)
"""The last block of each of EfficientNet-Lite0's seven widths: the levels that the paper sums over."""
PLACE_STAGES = (3, 5, 11)
"""The last blocks at strides 4, 8 and 16: PaDiM takes a residual network's first three of four levels."""
EPSILON = 0.01
"""Added to each variance of the per-position Gaussian, as in PaDiM (Defard et al., ICPR 2021, equation 1)."""
REDUCTIONS = ("none", "pca", "npca")


class GaussianAd(nn.Module):
    """Pictures (N, 3, H, W) in 0…1 → `AnomalyOutput`: one distance per picture as a map (N, 1, 1, 1), or one per place (N, 1, h, w).

    Without `per_position`: each stage's map is averaged over its places to f (C,), its distance is Mahalanobis',
    √((f − μ)ᵀ Σ⁻¹ (f − μ)), and the score is the sum over the stages (Rippel, Mertens, Merhof: Modeling the Distribution of Normal
    Data in Pre-Trained Deep Features for Anomaly Detection, ICPR 2020). Σ is Ledoit and Wolf's shrunk covariance. `components` are
    the directions kept of each stage, of PCA or of its tail (NPCA); 0 keeps the features as they are.

    With `per_position`: every place of every map has its own mean and variance per channel, and the map is √(Σ ((f − μ)/σ)²) over the
    channels of all stages, each enlarged to the shallowest one's size, and then the mean over `smooth`×`smooth` places (1: none). This is
    PaDiM (Defard et al., ICPR 2021) with a diagonal in place of its full covariance, which few pictures cannot fill, and that mean in
    place of its Gaussian blur of 4 pixels: at stride 4 three places spread about as wide.
    """

    def __init__(
        self,
        features: FeatureNet,
        *,
        arguments: Mapping[str, Any],
        size: tuple[int, int],
        per_position: bool,
        smooth: int,
        components: Sequence[int],
    ) -> None:
        super().__init__()
        self.features, self.arguments, self.per_position, self.smooth = features, dict(arguments), per_position, smooth
        self.sizes = map_sizes(features, size)
        if smooth < 1 or smooth % 2 == 0:
            raise UserError(
                f"smooth={smooth} must be odd, 1 or more", hint="places a side: 3 unless told otherwise, 1 for none"
            )
        rows = list(components) or [0] * len(features.channels)
        if len(rows) != len(features.channels) or any(
            not 0 <= kept <= channels for kept, channels in zip(rows, features.channels, strict=False)
        ):
            raise UserError(
                f"components={list(components)} must be one number a stage, 0 … {features.channels}",
                hint="leave them out: the step anomaly-fit finds them (reduction = pca or npca)",
            )
        if per_position and any(rows):
            raise UserError("components go with one Gaussian a picture, not with per_position", hint="leave one of them out")
        for i, (channels, place) in enumerate(zip(features.channels, self.sizes, strict=True)):
            shape = (1, channels, *place) if per_position else (channels,)
            self.register_buffer(f"centre_{i}", torch.zeros(shape))
            self.register_buffer(
                f"whiten_{i}", torch.ones(shape) if per_position else torch.zeros(rows[i] or channels, channels)
            )

    def forward(self, image: Tensor) -> AnomalyOutput:
        """See the class."""
        maps = self.features(image)
        parts = [(self.get_buffer(f"centre_{i}"), self.get_buffer(f"whiten_{i}")) for i in range(len(maps))]
        if not self.per_position:
            found = [mahalanobis(f.mean((2, 3)), *part) for f, part in zip(maps, parts, strict=True)]
            score = torch.stack(found).sum(0)
            return AnomalyOutput(score[:, :, None, None], score)
        squares = [
            ((found - centre) * whiten).square().sum(1, keepdim=True)
            for found, (centre, whiten) in zip(maps, parts, strict=True)
        ]
        total = squares[0]
        for deeper in squares[1:]:
            total = total + F.interpolate(deeper, self.sizes[0], mode="bilinear", align_corners=False)
        distance = total.sqrt()
        if self.smooth > 1:
            distance = F.avg_pool2d(distance, self.smooth, 1, self.smooth // 2, count_include_pad=False)
        return AnomalyOutput(distance, distance.amax((2, 3)))

    def fitted(
        self, features: FeatureNet, pictures: Pictures, *, size: tuple[int, int], seed: int, options: dict[str, Any]
    ) -> Fit:
        """The Gaussians of these normal pictures. Nothing is drawn at random: `seed` is not used.

        `options`: `reduction` "pca" keeps the leading directions that hold the share `variance` of it, "npca" the trailing ones, from
        the one before that index on (one is in both, as published); `epsilon` goes with `per_position`.
        Raises UserError for a stage whose features do not vary, and for fewer than two pictures.
        """
        refuse_unknown(options, ("epsilon",) if self.per_position else ("reduction", "variance"), "gaussian_ad")
        found = self._places(features, pictures, options) if self.per_position else self._pooled(features, pictures, options)
        rows = [] if self.per_position else [len(whiten) for _, whiten in found]
        kwargs = {
            **self.arguments,
            "backbone": features.name,
            "backbone_args": features.kwargs,
            "stages": list(features.stages),
            "image_size": list(size),
            "components": rows if options.get("reduction", "none") != "none" else [],
        }
        made = GaussianAd(
            features,
            arguments=kwargs,
            size=size,
            per_position=self.per_position,
            smooth=self.smooth,
            components=kwargs["components"],
        ).eval()
        for i, (centre, whiten) in enumerate(found):
            made.get_buffer(f"centre_{i}").copy_(centre.reshape(made.get_buffer(f"centre_{i}").shape))
            made.get_buffer(f"whiten_{i}").copy_(whiten.reshape(made.get_buffer(f"whiten_{i}").shape))
        return Fit(made, kwargs, {"stages": list(features.stages), "channels": list(features.channels), "components": rows})

    def _pooled(self, features: FeatureNet, pictures: Pictures, options: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
        """(mean (C,), W (k, C)) of each stage: the Mahalanobis distance is ‖W (f − mean)‖."""
        batches = [[found.mean((2, 3)).double() for found in maps] for maps in feature_maps(features, pictures)]
        made = []
        for stage, parts in zip(features.stages, zip(*batches, strict=True), strict=True):
            pooled = torch.cat(parts).numpy()
            _check(pooled, stage)
            mean, whiten = gaussian(pooled, reduction=options.get("reduction", "none"), variance=options.get("variance", 0.99))
            made.append((torch.from_numpy(mean), torch.from_numpy(whiten)))
        return made

    def _places(self, features: FeatureNet, pictures: Pictures, options: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
        """(mean, 1/σ), each (C, h, w), of each stage; sums in float64."""
        count = 0
        sums: list[Tensor] = []
        squares: list[Tensor] = []
        for maps in feature_maps(features, pictures):
            wide = [found.double() for found in maps]
            count += len(wide[0])
            added = [(f.sum(0), f.square().sum(0)) for f in wide]
            sums = [s + a for s, (a, _) in zip(sums, added, strict=True)] if sums else [a for a, _ in added]
            squares = [s + b for s, (_, b) in zip(squares, added, strict=True)] if squares else [b for _, b in added]
        if count < 2:
            raise UserError(f"{count} normal picture(s) have no variance", hint="bring two or more")
        means = [s / count for s in sums]
        variances = [(q / count - m.square()).clamp_min(0) * count / (count - 1) for q, m in zip(squares, means, strict=True)]
        epsilon = options.get("epsilon", EPSILON)
        return [(m, (v + epsilon).rsqrt()) for m, v in zip(means, variances, strict=True)]


def mahalanobis(pooled: Tensor, centre: Tensor, whiten: Tensor) -> Tensor:
    """(N, 1): ‖W (f − μ)‖ of features (N, C)."""
    return F.linear(pooled - centre, whiten).square().sum(1, keepdim=True).sqrt()


def gaussian(pooled: np.ndarray, *, reduction: str = "none", variance: float = 0.99) -> tuple[np.ndarray, np.ndarray]:
    """(mean (C,), W (k, C)) of features (n, C), with WᵀW the inverse of Ledoit–Wolf's covariance (of the projections, after PCA).

    j is the first direction whose cumulative share of the variance exceeds `variance`: PCA keeps 0 … j, NPCA j − 1 to the last, as
    in the published code, where the two overlap.
    """
    from sklearn.covariance import LedoitWolf

    mean = pooled.mean(0)
    centred = pooled - mean
    directions = np.eye(pooled.shape[1])
    if reduction != "none":
        _, spread, rows = np.linalg.svd(centred, full_matrices=False)
        share = np.cumsum(spread**2) / (spread**2).sum()
        j = int(np.argmax(share > variance)) if (share > variance).any() else len(share) - 1
        directions = rows[: j + 1] if reduction == "pca" else rows[max(j - 1, 0) :]
    covariance = LedoitWolf(assume_centered=True).fit(centred @ directions.T).covariance_
    # inverse of L in Σ = L Lᵀ: then Wᵀ W = Dᵀ Σ⁻¹ D
    return mean, np.linalg.solve(np.linalg.cholesky(covariance), directions)


def _check(pooled: np.ndarray, stage: int) -> None:
    if len(pooled) < 2:
        raise UserError(f"{len(pooled)} normal picture(s) have no covariance", hint="bring two or more, better some hundred")
    if np.ptp(pooled, axis=0).max() == 0:
        raise UserError(
            f"stage {stage}'s features are the same for all {len(pooled)} normal pictures",
            hint="are they all the same picture? else choose other stages",
        )


@architectures.register(
    "gaussian_ad",
    ArchitectureCard(
        "Gaussian-AD: Mahalanobis distance of frozen features",
        "Rippel, Mertens, Merhof: Modeling the Distribution of Normal Data in Pre-Trained Deep Features for Anomaly Detection, ICPR 2020",
        (3, 224, 224),
        task="anomaly",
        recipe=({"kind": "anomaly-fit"},),
    ),
)
def gaussian_ad(
    *,
    backbone: str = BACKBONE,
    backbone_args: Mapping[str, Any] | None = None,
    stages: Sequence[int] = (),
    image_size: int | Sequence[int] = 224,
    per_position: bool = False,
    smooth: int = 3,
    components: Sequence[int] = (),
) -> GaussianAd:
    """Gaussian-AD on `stages` of the stock network `backbone`; `per_position` is the PaDiM-like variant with a map, `smooth` its blur.

    `stages` are those of `STAGES` (`PLACE_STAGES` with `per_position`) unless told otherwise, made for EfficientNet-Lite0. `components`
    are the directions kept of each stage (0: all features); the step `anomaly-fit` sets them.
    """
    size = two_sides(image_size)
    stages = tuple(stages) or (PLACE_STAGES if per_position else STAGES)
    arguments = {
        "backbone": backbone,
        "backbone_args": dict(backbone_args or {}),
        "stages": list(stages),
        "per_position": per_position,
        "smooth": smooth,
    }
    return GaussianAd(
        frozen_features(backbone, backbone_args, stages),
        arguments={**arguments, "image_size": list(size), "components": list(components)},
        size=size,
        per_position=per_position,
        smooth=smooth,
        components=components,
    )
