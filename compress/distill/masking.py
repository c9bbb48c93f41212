"""Progressive masking of redundant tokens: while it trains, a vision transformer drops patches that resemble the others.

Hybrid Distill (Shi et al., ICLR 2024) drops redundant tokens progressively and keeps them out of its losses. How it scores and
schedules them is not in what was read of the paper: the score (mean cosine similarity), the stages and the share below are from
memory, and are parameters for that reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from ...models.errors import UserError
from .objectives import ObjectiveCard, TermConfig, register_objective

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .term import Setup, Term

BLOCKS = "blocks"
"""The path of the sequence of transformer blocks (timm's name)."""


class TokenMaskingConfig(TermConfig):
    """Drops the most redundant patch tokens in stages, in training mode only; the terms "relations" and "tokens" follow suit."""

    kind: Literal["token-masking"] = "token-masking"
    weight: float = Field(0.0, ge=0, le=0, description="always 0: this changes what the student computes and adds no loss")
    ratio: float = Field(0.3, gt=0, lt=1, description="share of the patch tokens that is gone after the last stage")
    stages: tuple[float, ...] = Field(
        (0.33, 0.66), min_length=1, description="where tokens are dropped: fractions of the depth, rising, within (0, 1)"
    )
    prefix_tokens: int = Field(1, ge=0, description="tokens at the front that are never dropped (the class token)")

    @model_validator(mode="after")
    def _whole_run(self) -> TokenMaskingConfig:
        if self.warmup or self.until < 1:
            raise ValueError("tokens are dropped during the whole run: leave warmup and until out")
        if any(not 0 < s < 1 for s in self.stages) or list(self.stages) != sorted(set(self.stages)):
            raise ValueError(
                f"stages {self.stages} must rise and lie strictly between 0 and 1: they are fractions of the depth"
            )
        return self


def distinct_tokens(tokens: Tensor, keep: int, prefix: int) -> Tensor:
    """The positions (N, prefix + keep), rising, of the first `prefix` tokens and the `keep` others that resemble their like least.

    A token's redundancy is the mean cosine similarity to all other patch tokens of its image; tokens (N, T, d).
    """
    import torch
    from torch.nn import functional as F

    with torch.no_grad():
        unit = F.normalize(tokens[:, prefix:].detach().float(), dim=-1)
        # Σ_{j≠i} u_i·u_j = u_i·Σ_j u_j − u_i·u_i: no P×P matrix; the factor 1/(P − 1) does not change the order
        similarity = (unit * (unit.sum(1, keepdim=True) - unit)).sum(-1)
        kept = similarity.topk(keep, dim=1, largest=False).indices.sort(dim=1).values + prefix
        front = torch.arange(prefix, device=kept.device).expand(len(kept), prefix)
        return torch.cat([front, kept], dim=1)


def take_tokens(values: Tensor, kept: Tensor) -> Tensor:
    """(N, K, …) from values (N, T, …) and positions (N, K)."""
    index = kept.reshape(*kept.shape, *(1 for _ in values.shape[2:]))
    return values.gather(1, index.expand(*kept.shape, *values.shape[2:]))


class _Drop:
    """A forward pre-hook of one block: drops tokens down to `share` of the image's patches (None: none here).

    `kept` (N, K): the positions, in the whole image's tokens, of what the block sees in this step; None when it sees them all.
    """

    def __init__(self, before: _Drop | None, *, share: float | None, prefix: int) -> None:
        self.before, self.share, self.prefix = before, share, prefix
        self.kept: Tensor | None = None
        self.patches = 0

    def __call__(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        self.kept = None
        if not block.training:
            return None
        tokens = args[0]
        self.patches = self.before.patches if self.before else tokens.shape[1] - self.prefix
        self.kept = self.before.kept if self.before else None
        if self.share is None:
            return None
        place = distinct_tokens(tokens, max(1, round(self.share * self.patches)), self.prefix)
        self.kept = place if self.kept is None else self.kept.gather(1, place)
        return (take_tokens(tokens, place), *args[1:])


def _drop_of(block: nn.Module) -> _Drop | None:
    return next((hook for hook in block._forward_pre_hooks.values() if isinstance(hook, _Drop)), None)


def kept_tokens(setup: Setup, path: str) -> Callable[[], Tensor | None]:
    """A function that tells which tokens the student's module at `path` saw in its last training pass: (N, K), None = all.

    A module outside the blocks is taken to come after them. A student without blocks is never masked.
    """
    try:
        blocks = list(setup.student_module(BLOCKS).named_children())
    except UserError:
        return lambda: None
    inside = [block for name, block in blocks if path.startswith(f"{BLOCKS}.{name}.") or path == f"{BLOCKS}.{name}"]
    block = (inside or [blocks[-1][1]])[0]

    def kept() -> Tensor | None:
        drop = _drop_of(block)
        return drop.kept if drop else None

    return kept


def stage_shares(depth: int, config: TokenMaskingConfig) -> dict[int, float]:
    """{index of a block: the share of the image's patches that enters it}, falling in equal parts from stage to stage."""
    count = len(config.stages)
    return {
        min(max(1, round(stage * depth)), depth - 1): 1 - config.ratio * (done + 1) / count
        for done, stage in enumerate(config.stages)
    }


@register_objective(
    "token-masking",
    TokenMaskingConfig,
    ObjectiveCard(
        title="Progressive masking of redundant tokens",
        source="Hybrid Distill (Shi et al.), ICLR 2024; scores and stages from memory",
        formula="no loss: the student drops the patch tokens of highest mean cosine similarity to the others, while it trains",
    ),
)
def build(config: TokenMaskingConfig, setup: Setup) -> Term:
    """The term without a loss; what is recorded under its name is the share of tokens that was dropped."""
    from .term import Signals, Term

    depth = len(list(setup.student_module(BLOCKS).children()))
    if depth < 2:
        raise UserError(
            f"token-masking drops tokens between blocks, and the student has {depth}",
            hint="take a student with two blocks or more",
        )
    last: list[_Drop] = []

    def hooks(student: nn.Module) -> list[Any]:
        from ...models.bundle import bare

        handles, before, shares = [], None, stage_shares(depth, config)
        for index, block in enumerate(bare(student).get_submodule(BLOCKS).children()):
            if _drop_of(block):
                raise UserError("token-masking is there twice", hint="one term with several stages does it")
            before = _Drop(before, share=shares.get(index), prefix=config.prefix_tokens)
            handles.append(block.register_forward_pre_hook(before))
        last[:] = [before] if before else []
        return handles

    def dropped(signals: Signals) -> Tensor:
        drop, logits = last[0] if last else None, signals.student["logits"]
        if drop is None or drop.kept is None:
            return logits.new_zeros(())
        return logits.new_tensor(1 - (drop.kept.shape[1] - config.prefix_tokens) / drop.patches)

    return Term(loss=dropped, hooks=hooks)
