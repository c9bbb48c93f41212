"""A network that develops RAW, and the critics it plays against: one module, so that one checkpoint holds the whole game."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ...models.errors import UserError
from ...models.outputs import first_tensor
from ..sampling import derived_seed
from .isp_balance import length
from .isp_critics import MapCritic, TokenCritic
from .isp_losses import critic_loss, gradient_penalty

CONSTANT = 1e-6
"""Scores that differ by less than this share of their size are one constant."""
NO_GRADIENT = 1e-12


def learning_parts(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module that learn."""
    return [p for p in module.parameters() if p.requires_grad]


class Game(nn.Module):
    """Inputs → developed pictures (N, 3, H, W), by `network`; `critics` by their terms' names sit beside it.

    Buffers: `steps` done; per critic, in their order, the steps for which it has `stuck` without a break, and its last penalty;
    and the steps for which the network stands `still`, no term having a gradient on its weights.
    """

    steps: Tensor
    stuck: Tensor
    still: Tensor
    penalties: Tensor

    def __init__(self, network: nn.Module, critics: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.network, self.critics = network, nn.ModuleDict(dict(critics))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("stuck", torch.zeros(len(critics), dtype=torch.int64))
        self.register_buffer("still", torch.zeros((), dtype=torch.int64))
        self.register_buffer("penalties", torch.zeros(len(critics)))

    def forward(self, inputs: Tensor) -> Tensor:
        """See the class."""
        return first_tensor(self.network(inputs))

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters of the network that learn."""
        return learning_parts(self.network)

    @torch.no_grad()
    def watch(self, place: int, scores: Tensor, gradient: Tensor) -> None:
        """None; counts a step in which the critic at `place` taught nothing.

        That is: one constant as `scores` of all pictures, made and real, or no `gradient` of its term on the developed pictures.
        """
        constant = scores.max() - scores.min() <= CONSTANT * (1 + scores.abs().max())
        stuck = constant | (gradient.norm() <= NO_GRADIENT)
        self.stuck[place] = torch.where(stuck, self.stuck[place] + 1, 0)

    @torch.no_grad()
    def watch_network(self, norms: Iterable[Tensor]) -> None:
        """None; counts a step in which no term has a gradient on the network's weights (its last ReLU gives 0 everywhere)."""
        moved = torch.stack(list(norms)).norm() > NO_GRADIENT
        self.still.copy_(torch.where(moved, 0, self.still + 1))

    def collapsed(self, patience: int) -> dict[str, int]:
        """The critics that have taught nothing for at least `patience` steps up to now, with the number of steps."""
        return {name: int(n) for name, n in zip(self.critics, self.stuck.tolist(), strict=True) if n >= patience}


def make_critics(
    terms: Mapping[str, float], shapes: Mapping[str, tuple[int, int, int]], *, width: float, seed: int
) -> dict[str, nn.Module]:
    """The critics of the terms whose strength isn't 0, weights drawn from `seed`, for maps of these shapes (C, h, w)."""
    found: dict[str, nn.Module] = {}
    with torch.random.fork_rng(devices=[]):
        for name, (channels, height, across) in shapes.items():
            torch.manual_seed(derived_seed(seed, f"isp critic {name}"))
            if terms[name]:
                found[name] = (
                    TokenCritic(channels, width=width)
                    if name == "colour"
                    else MapCritic(channels, (height, across), width=width)
                )
    return found


def critic_step(
    critic: nn.Module, real: Tensor, fake: Tensor, *, penalty: float, clip: float
) -> tuple[list[Tensor], Tensor, Tensor]:
    """(the gradient of the critic's loss on each parameter that learns, clipped to the norm `clip`; its loss; R1 + R2).

    `real` and `fake` are feature maps (N, C, h, w) without a graph. Loss: the relativistic one + penalty/2 · (R1 + R2), the penalties
    taken on the feature maps. The norm is the critic's own, as published; torch.nn.utils' rule (never lengthened).
    """
    real, fake = real.detach().requires_grad_(), fake.detach().requires_grad_()
    scores = critic(real), critic(fake)
    loss = critic_loss(*scores)
    penalties = gradient_penalty(scores[0], real) + gradient_penalty(scores[1], fake)
    learning = learning_parts(critic)
    gradients = torch.autograd.grad(loss + penalty / 2 * penalties, learning, allow_unused=True)
    whole = [torch.zeros_like(p) if g is None else g for p, g in zip(learning, gradients, strict=True)]
    factor = (clip / (length(whole) + 1e-6)).clamp(max=1.0) if clip else torch.ones_like(loss)
    return [g * factor for g in whole], loss.detach(), penalties.detach()


def check_pictures(developed: Tensor, wanted: Tensor) -> None:
    """None. Raises UserError when the network's pictures do not have the targets' shape."""
    if developed.shape != wanted.shape:
        raise UserError(
            f"the network makes pictures of shape {tuple(developed.shape)}, and the targets are {tuple(wanted.shape)}",
            hint="isp trains a network that develops RAW: efficient_isp, robust_isp, rmfa_tiny, or one with (N, 3, H, W) out",
        )
