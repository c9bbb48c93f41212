"""What a weight is worth: the higher a score, the longer the weight stays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from ...models.errors import UserError
from ..importance import accumulate_gradients

if TYPE_CHECKING:
    from ...models.tasks.task import Task

Criterion = Literal["magnitude-increase", "magnitude", "movement", "snip", "random"]
UNTRAINED: frozenset[Criterion] = frozenset({"snip", "random"})
"""Criteria that look at the weights before training."""
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


def prunable(module: nn.Module, *, biases: bool = False, keep: Iterable[str] = ()) -> dict[str, Tensor]:
    """The weights of convolutions and linear layers (and their biases) by name, those below a module of `keep` left out.

    Raises UserError when `keep` names a module that the network lacks, and when nothing is left.
    """
    keep = tuple(keep)
    names = [name for name, _ in module.named_modules()]
    for name in keep:
        if name not in names:
            raise UserError(f"keep names {name!r}, which the network lacks", hint="`trimtab inspect` lists the names")
    found = {}
    for path, layer in module.named_modules():
        if not isinstance(layer, _LAYERS) or any(path == name or path.startswith(f"{name}.") for name in keep):
            continue
        for own, parameter in layer.named_parameters(recurse=False):
            if own == "weight" or (biases and own == "bias"):
                found[f"{path}.{own}" if path else own] = parameter.detach()
    if not found:
        raise UserError("there is no weight to prune", hint="the network has no convolution or linear layer outside `keep`")
    return found


def weight_scores(criterion: Criterion, trained: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores of trained weights against those that the round started from, by name and of their shape.

    "magnitude-increase": |w| − |w₀| (Entezari, Saukh 2020, the paper's); "magnitude": |w| (Frankle, Carbin 2019); "movement":
    |w − w₀| (Zhou et al. 2019). Raises UserError naming the layers whose weights are not finite.
    """
    broken = [name for name, weight in trained.items() if not bool(torch.isfinite(weight).all())]
    if broken:
        raise UserError(
            f"weights with NaN or infinity: {', '.join(broken[:10])}", hint="train with a lower lr or clip_norm = 1"
        )
    match criterion:
        case "magnitude-increase":
            return {name: weight.abs() - start[name].abs() for name, weight in trained.items()}
        case "magnitude":
            return {name: weight.abs() for name, weight in trained.items()}
        case "movement":
            return {name: (weight - start[name]).abs() for name, weight in trained.items()}
    raise ValueError(f"{criterion} scores weights before training")


def random_scores(weights: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Uniform scores in 0…1 by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(weight.shape, generator=generator) for name, weight in weights.items()}


def snip_scores(module: nn.Module, task: Task, names: Iterable[str], *, images: int, seed: int) -> dict[str, Tensor]:
    """|g ⊙ w| with the gradients of the task's loss summed over `images` training samples.

    Source: Lee, Ajanthan, Torr: SNIP: Single-shot Network Pruning based on Connection Sensitivity (ICLR 2019), eq. 5 without its
    normalisation, which does not change the order.
    """
    accumulate_gradients(module, task, images=images, batch_size=128, seed=seed)
    parameters = dict(module.named_parameters())
    found = {}
    for name in names:
        gradient = parameters[name].grad
        found[name] = (torch.zeros_like(parameters[name]) if gradient is None else gradient * parameters[name]).detach().abs()
    module.zero_grad()
    return found
