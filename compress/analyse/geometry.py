"""Where samples lie in front of a network's classifier: norm, angle to their class, distance to the nearest boundary.

The classifier's logits are W_j·X + b_j = ‖W_j‖·‖X‖·cos θ_j + b_j for the embedding X, the last linear layer's input. Source: Li et
al., "Understanding Robustness Lottery: A Geometric Visual Comparative Analysis of Neural Network Pruning Approaches" (TVCG 2024).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...models.errors import UserError
from ...models.routed import RoutedNet
from ..distill.features import linear_head
from ..distill.taps import evaluating


@dataclass(frozen=True)
class Geometry:
    """The samples of a batch, (N,) each, on the CPU: float64 figures and the predicted class int64."""

    norm: Tensor
    angle: Tensor
    margin: Tensor
    confidence: Tensor
    predicted: Tensor


def boundary_distances(weight: Tensor) -> Tensor:
    """‖W_i − W_j‖ of the classifier's rows (classes, d), float64 (classes, classes); exactly 0 for equal rows."""
    rows = weight.detach().double().cpu()
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


def geometry_of(
    features: Tensor, logits: Tensor, targets: Tensor, weight: Tensor, *, distances: Tensor | None = None
) -> Geometry:
    """The geometry of features X (N, d) with their logits (N, classes), targets y int64 (N,) and the classifier's rows W.

    - norm ‖X‖, in the units of the features;
    - angle between X and W_y in degrees, 0…180; 90 where X or W_y is 0 (a dead embedding, a pruned row), which point nowhere;
    - margin min_{j≠y} (logit_y − logit_j) / ‖W_y − W_j‖: the distance to the nearest boundary, negative when misclassified. Two
      equal rows have no boundary between them: where y wins by its bias the pair sets no limit, where it doesn't, the gap of the
      logits (≤ 0) takes the distance's place; it also does when no pair has a boundary;
    - confidence, the largest softmax probability, and predicted, the first largest logit.

    The gaps are of the network's own logits, so margin > 0 means predicted = y and margin < 0 that it is not; 0 is a tie.
    `distances`: those of `weight`, computed once.
    """
    features, logits, targets = features.detach().double().cpu(), logits.detach().double().cpu(), targets.cpu()
    rows = weight.detach().double().cpu()
    distances = boundary_distances(rows) if distances is None else distances
    norm = features.norm(dim=1)
    scale = norm * rows.norm(dim=1)[targets]
    cosine = torch.where(scale > 0, (features * rows[targets]).sum(1) / scale.where(scale > 0, 1.0), 0.0)
    return Geometry(
        norm=norm,
        angle=torch.rad2deg(cosine.clamp(-1, 1).arccos()),
        margin=_margin(logits, targets, distances[targets]),
        confidence=logits.softmax(1).amax(1),
        predicted=logits.argmax(1),
    )


def _margin(logits: Tensor, targets: Tensor, apart: Tensor) -> Tensor:
    """Margins (N,) from logits (N, classes) and the distances (N, classes) between the target's row and every row."""
    own = targets[:, None]
    gaps = logits.gather(1, own) - logits
    bounded = apart > 0
    margins = torch.where(bounded, gaps / apart.where(bounded, 1.0), torch.where(gaps > 0, torch.inf, gaps))
    nearest = margins.scatter(1, own, torch.inf).amin(1)
    return torch.where(nearest.isinf(), gaps.scatter(1, own, torch.inf).amin(1), nearest)


class Head:
    """The linear classifier of a network, and what goes into it. `example` (1, C, H, W) lies where the network does.

    Raises UserError, which starts with `name`, for a network whose logits are not those of one linear layer on features (N, d), and
    for one with several heads.
    """

    def __init__(self, module: nn.Module, example: Tensor, *, name: str) -> None:
        hint = "the geometry needs one linear layer that makes the logits, on features (N, d); leave this network out"
        if any(isinstance(part, RoutedNet) for part in module.modules()):
            raise UserError(f"{name} is a routed network: every branch has a classifier and features of its own", hint=hint)
        try:
            self.path, self.layer = linear_head(module, example)
        except UserError as error:
            raise UserError(f"{name}: {error.what}", hint=hint) from None
        self.module, self.name = module, name
        self.distances = boundary_distances(self.layer.weight)
        self._seen: list[Tensor] = []
        self._handle = self.layer.register_forward_pre_hook(lambda _layer, args: self._seen.append(args[0]))
        with torch.inference_mode(), evaluating(module):
            features, logits = self._features_and_logits(example)
            own = nn.functional.linear(features, self.layer.weight, self.layer.bias)
        # float32 sums of d terms in another order differ by far less than a thousandth of the largest logit
        if logits.shape != own.shape or not torch.allclose(logits, own, rtol=1e-3, atol=1e-3 * own.abs().max().item()):
            self.close()
            raise UserError(f"{name}: its output is not what its last linear layer {self.path!r} returns", hint=hint)

    def _features_and_logits(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        self._seen.clear()
        logits = self.module(inputs)
        features = self._seen.pop()
        if features.ndim != 2 or len(features) != len(logits):
            self.close()
            raise UserError(
                f"{self.name}: its classifier's input has shape {tuple(features.shape)} for {len(inputs)} images",
                hint="the geometry needs features (N, d): pool before the classifier; leave this network out",
            )
        return features, logits

    def look(self, inputs: Tensor, targets: Tensor) -> Geometry:
        """The geometry of normalised inputs (N, C, H, W) with targets (N,), without gradients and in float32.

        The module is expected in eval mode. Raises UserError for logits that are NaN or infinite.
        """
        with torch.inference_mode(), torch.autocast(inputs.device.type, enabled=False):
            features, logits = self._features_and_logits(inputs)
        if not logits.isfinite().all():
            raise UserError(
                f"{self.name} answers NaN or infinity", hint="its weights or batch norm statistics are broken: train it again"
            )
        return geometry_of(features, logits, targets, self.layer.weight, distances=self.distances)

    def close(self) -> None:
        """None; the network has no hook of ours any more."""
        self._handle.remove()
