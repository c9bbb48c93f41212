"""Which iterate of an unpaired run is kept, by a rule that never looks at a pair.

Published is the iterate with the best PSNR on *paired* validation pictures, which an unpaired run has no right to. The rule here: the
iterates are ranked by two figures, both of validation mosaics developed by the iterate and clamped to 0…1,

- `distance`: how far their frozen features lie from those of unpaired target pictures. Per channel and over all positions, mean μ and
  standard deviation σ of both; (μ − μ_real)² / σ_real² + (σ − σ_real)² / σ_real², averaged over the channels, then over the three feature
  maps that the critics see. (A Fréchet distance of Gaussians with diagonal covariance, in units of the real pictures' spread: a full
  covariance of hundreds of channels cannot be estimated from a few pictures.)
- `content`: the run's own content loss per picture, against the fixed rendering;

and the smallest sum of the two ranks wins (equal figures share the mean of their ranks; of equal sums the smaller distance, then the
later iterate). Ranks rather than values: an early iterate that is far off would otherwise set the scale for all. A paired run takes its
own targets in the place of both, the fixed rendering and the unpaired pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from ...models import files
from .isp_losses import content_loss

if TYPE_CHECKING:
    from .isp_features import Eyes

RULE = (
    "smallest sum of ranks by feature distance to {real} and by content distance to {reference}; validation mosaics, no pairs"
)
BATCH = 16
"""Pictures that are judged at a time: bounded memory, whatever their number."""


class Candidates:
    """The iterates of one run that are judged at its end: `count` of them, evenly over its `total` steps, the last one among them.

    They lie in `folder` as the network's weights by the steps done, so a run that was stopped finds them again.
    """

    def __init__(self, folder: Path, *, total: int, count: int) -> None:
        self.folder, self.total = folder, total
        self.steps = tuple(sorted({max(1, round(total * (i + 1) / count)) for i in range(count)}))

    def keep(self, steps: int, network: nn.Module) -> None:
        """None; the weights after so many steps are written, where they are asked for."""
        if steps in self.steps:
            state = {name: t.detach().cpu().clone().contiguous() for name, t in network.state_dict().items()}
            files.write_bytes(self._path(steps), safetensors.torch.save(state))

    def present(self) -> list[int]:
        """The steps of the iterates that are there (a file may have been removed by hand)."""
        return [steps for steps in self.steps if self._path(steps).exists()]

    def load(self, steps: int, network: nn.Module) -> None:
        """None; the network has the weights it had after so many steps."""
        network.load_state_dict(safetensors.torch.load_file(self._path(steps)))

    def _path(self, steps: int) -> Path:
        return self.folder / f"step-{steps:07d}.safetensors"


class Moments:
    """Mean and spread per channel of feature maps, over pictures and positions, collected batch by batch in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, maps: Tensor) -> None:
        """None; maps (N, C, h, w) are counted."""
        flat = maps.detach().double().transpose(0, 1).flatten(1).cpu()
        self.count += flat.shape[1]
        self.sums = self.sums + flat.sum(1)
        self.squares = self.squares + flat.square().sum(1)

    @property
    def mean(self) -> Tensor:
        """float64 (C,)."""
        return torch.as_tensor(self.sums) / self.count

    @property
    def spread(self) -> Tensor:
        """float64 (C,): the standard deviation."""
        return (torch.as_tensor(self.squares) / self.count - self.mean.square()).clamp_min(0).sqrt()


def gaussian_distance(made: Moments, real: Moments) -> float:
    """Mean over channels of ((μ − μ_real)² + (σ − σ_real)²) / σ_real²; see the module.

    Channels that hardly vary in the real pictures get the floor of a thousandth of the mean variance.
    """
    variance = real.spread.square()
    scale = variance.clamp_min(1e-3 * float(variance.mean())).clamp_min(1e-12)
    return float((((made.mean - real.mean).square() + (made.spread - real.spread).square()) / scale).mean())


def _seen(eyes: Eyes, batches: Iterable[Tensor]) -> list[Moments]:
    """The moments of the shallow, deep and colour maps of pictures."""
    moments = [Moments() for _ in range(3)]
    for pictures in batches:
        for one, maps in zip(moments, (*eyes.texture_maps(pictures), eyes.colour_maps(pictures)), strict=True):
            one.add(maps)
    return moments


class Judge:
    """Judges developed pictures: content against `references`, features against `real`, both batches of (N, 3, H, W)."""

    def __init__(self, eyes: Eyes, references: Sequence[Tensor], real: Sequence[Tensor]) -> None:
        self.eyes = eyes
        with torch.inference_mode():
            self.references = [eyes.content_maps(pictures) for pictures in references]
            self.real = _seen(eyes, real)

    def figures(self, developed: Sequence[Tensor]) -> dict[str, float]:
        """{"content", "distance"} of the developed validation mosaics, in the references' order."""
        with torch.inference_mode():
            pictures = [batch.clamp(0, 1) for batch in developed]
            content = sum(
                float(content_loss(self.eyes.content_maps(batch), reference))
                for batch, reference in zip(pictures, self.references, strict=True)
            )
            made = _seen(self.eyes, pictures)
        distance = np.mean([gaussian_distance(a, b) for a, b in zip(made, self.real, strict=True)])
        return {"content": content / sum(map(len, pictures)), "distance": float(distance)}


def ranked(rows: Sequence[Mapping[str, float]]) -> list[float]:
    """The sum of each iterate's two ranks, from 2 (best by both) up. Figures that aren't finite rank last."""
    table = np.array([[row["distance"], row["content"]] for row in rows], dtype=np.float64)
    table = np.where(np.isfinite(table), table, np.inf)
    return rankdata(table, axis=0).sum(1).tolist()


def chosen(rows: Sequence[Mapping[str, float]]) -> int:
    """The place of the iterate that the rule keeps, rows being in the order of the run."""
    sums = ranked(rows)
    return min(range(len(rows)), key=lambda i: (sums[i], rows[i]["distance"], -i))


def judged(
    candidates: Candidates,
    network: nn.Module,
    figures: Callable[[nn.Module], dict[str, float]],
    metrics: Callable[[nn.Module], dict[str, float]] | None,
) -> list[dict[str, Any]]:
    """A row for every iterate: its step, `figures`, sum of ranks, whether it is chosen, and its `metrics` on pairs where there are any.

    The metrics take no part in the choice. `network` has the chosen weights afterwards.
    """
    rows: list[dict[str, Any]] = []
    for steps in candidates.present():
        candidates.load(steps, network)
        rows.append({"step": steps, **figures(network)} | ({"paired": metrics(network)} if metrics else {}))
    best = chosen(rows)
    for place, (row, ranks) in enumerate(zip(rows, ranked(rows), strict=True)):
        row |= {"ranks": ranks, "chosen": place == best}
    candidates.load(rows[best]["step"], network)
    return rows
