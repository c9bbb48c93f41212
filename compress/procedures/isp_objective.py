"""One step of the game: the terms on the developed pictures, balanced, and now and then the critics' own turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..sampling import derived_seed
from .isp_balance import Term, balance, linear, norms_on_weights, term
from .isp_game import Game, check_pictures, critic_step, learning_parts
from .isp_losses import content_loss, critic_loss, network_loss, total_variation

if TYPE_CHECKING:
    from ..loop import TrainBatch
    from .isp_features import Eyes
    from .unpaired_isp import IspConfig

Pictures = Callable[[int, torch.Generator], Tensor]
"""(count, generator) → that many target pictures float32 (N, 3, H, W)."""
CLIP = 1.0
"""Largest norm of a critic's gradient, as published."""


class IspObjective:
    """The engine's objective. `strength` of the terms by name, 0 = off; `pictures` draws unpaired targets (None: the batch's own).

    `before_step(step)` is told of every step, counted from 0, before it is taken.
    """

    def __init__(
        self,
        game: Game,
        eyes: Eyes,
        config: IspConfig,
        *,
        pictures: Pictures | None,
        seed: int,
        before_step: Callable[[int], None] | None = None,
    ) -> None:
        self.game, self.eyes, self.config = game, eyes, config
        self.pictures, self.seed, self.before_step = pictures, seed, before_step
        self.strength = config.strengths()

    def __call__(self, network: nn.Module, batch: TrainBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss, whose gradients are the balanced ones, and its parts: terms, norms, and the critics' losses and penalties."""
        step = int(self.game.steps)
        if self.before_step is not None:
            self.before_step(step)
        developed = network(batch.inputs)
        check_pictures(developed, batch.targets)
        seen = developed.detach().requires_grad_()
        maps = self._critics_maps(seen, self._real(batch, step))
        scores = {name: self._scores(name, *pair) for name, pair in maps.items()}
        terms = self._terms(seen, batch.targets, scores)
        norms = norms_on_weights(developed, self.game.trained, terms)
        factors = balance(norms, self.strength, by_norm=self.config.balance == "gradient-norm")
        loss = torch.stack([factors[name] * one.value for name, one in terms.items()]).sum()
        push = torch.stack([factors[name] * one.gradient for name, one in terms.items()]).sum(0)
        loss = loss + linear([developed], [push])
        for place, (name, (fake, real)) in enumerate(scores.items()):
            self.game.watch(place, torch.cat([fake.detach(), real]), terms[name].gradient)
        self.game.watch_network(norms.values())
        if scores and step % self.config.critic_every == 0:
            loss = loss + self._critics_turn(maps)
        parts = self._parts(terms, norms, scores)
        with torch.no_grad():
            self.game.steps += 1
        # a value that is not finite anywhere makes the loss so, and the engine then names the part
        return loss + 0 * torch.stack(list(parts.values())).sum(), parts

    def _real(self, batch: TrainBatch, step: int) -> Tensor:
        if self.pictures is None:
            return batch.targets
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "isp pictures", step))
        return self.pictures(len(batch.targets), generator).to(batch.targets.device)

    def _critics_maps(self, seen: Tensor, real: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """(maps of the developed pictures, with their graph; maps of the real ones) of every critic there is."""
        critics, found = self.game.critics, {}
        if "texture_shallow" in critics or "texture_deep" in critics:
            made = self.eyes.texture_maps(seen)
            with torch.no_grad():
                true = self.eyes.texture_maps(real)
            found = dict(zip(("texture_shallow", "texture_deep"), zip(made, true, strict=True), strict=True))
        if "colour" in critics:
            with torch.no_grad():
                colours = self.eyes.colour_maps(real)
            found["colour"] = (self.eyes.colour_maps(seen), colours)
        return {name: found[name] for name in critics}

    def _scores(self, name: str, fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        critic = self.game.critics[name]
        with torch.no_grad():
            true = critic(real)
        return critic(fake), true

    def _terms(self, seen: Tensor, targets: Tensor, scores: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Term]:
        found: dict[str, Term] = {}
        if self.strength["content"]:
            with torch.no_grad():
                reference = self.eyes.content_maps(targets)
            found["content"] = term(content_loss(self.eyes.content_maps(seen), reference), seen)
        if self.strength["tv"]:
            found["tv"] = term(total_variation(seen), seen)
        for name, (fake, real) in scores.items():
            found[name] = term(network_loss(fake, real), seen, again=name == "texture_shallow" and "texture_deep" in scores)
        return found

    def _critics_turn(self, maps: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """A scalar of value 0 whose gradient on every critic's parameters is that of its own loss, clipped."""
        total = torch.zeros((), device=self.game.penalties.device)
        for place, (name, (fake, real)) in enumerate(maps.items()):
            critic = self.game.critics[name]
            gradients, _, penalties = critic_step(critic, real, fake, penalty=self.config.penalty, clip=CLIP)
            total = total + linear(learning_parts(critic), gradients)
            self.game.penalties[place] = penalties
        return total

    def _parts(
        self, terms: Mapping[str, Term], norms: Mapping[str, Tensor], scores: Mapping[str, tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        parts = {name: one.value for name, one in terms.items()}
        parts |= {f"norm_{name}": norm for name, norm in norms.items()}
        for place, (name, (fake, real)) in enumerate(scores.items()):
            parts[f"critic_{name}"] = critic_loss(real, fake.detach())
            parts[f"penalty_{name}"] = self.game.penalties[place].clone()
        return parts
