"""Token relations of a transformer: a student's queries, keys and values relate to each other as its teacher's do.

Hybrid Distill (Shi et al., ICLR 2024) takes them from a teacher trained by masked image modelling, at intermediate layers. Which
relations (QK and VV), which layers (the last two) and the direction of the divergence are from memory, after MiniLMv2 (Wang et al.
2021), whose re-splitting into `relation_heads` is offered for networks with different numbers of heads.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from ...models.errors import UserError
from .masking import BLOCKS, kept_tokens, take_tokens
from .objectives import ObjectiveCard, TaughtTermConfig, register_objective

if TYPE_CHECKING:
    from torch import Tensor

    from .term import Setup, Signals, Term


class RelationsConfig(TaughtTermConfig):
    """KL(teacher ‖ student) of softmax(Q·Kᵀ/√d) and softmax(V·Vᵀ/√d), per head."""

    kind: Literal["relations"] = "relations"
    student_layers: tuple[str, ...] = Field(
        (), description="paths of qkv layers whose output is (N, T, 3·d); empty = those of the last two blocks"
    )
    teacher_layers: tuple[str, ...] = Field(
        (), description="the teacher's, one for each of the student's; empty = the same paths, or its own last two blocks"
    )
    heads: int = Field(0, ge=0, description="heads of the student's attention; 0 = what its module says")
    teacher_heads: int = Field(0, ge=0, description="heads of the teacher's attention; 0 = what its module says")
    relation_heads: int = Field(
        0, ge=0, description="split both networks' vectors into this many heads, whatever theirs are; 0 = their own heads"
    )
    qk_weight: float = Field(1.0, ge=0, allow_inf_nan=False, description="factor of the query-key relations")
    vv_weight: float = Field(1.0, ge=0, allow_inf_nan=False, description="factor of the value-value relations")

    @model_validator(mode="after")
    def _pairs(self) -> RelationsConfig:
        if self.teacher_layers and len(self.teacher_layers) != len(self.student_layers):
            raise ValueError(
                f"{len(self.student_layers)} student_layers and {len(self.teacher_layers)} teacher_layers: they go in pairs"
            )
        return self


def log_relations(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """(log softmax(Q·Kᵀ/√d), log softmax(V·Vᵀ/√d)), each (N, heads, T, T), from (N, T, 3·heads·d); float32."""
    from ..analyse.attention import split_heads

    query, key, value = split_heads(qkv.float(), heads)
    scale = 1 / math.sqrt(query.shape[-1])
    qk, vv = (query * scale) @ key.transpose(-2, -1), (value * scale) @ value.transpose(-2, -1)
    return qk.log_softmax(-1), vv.log_softmax(-1)


def relation_losses(student: Tensor, teacher: Tensor, *, heads: int, teacher_heads: int = 0) -> tuple[Tensor, Tensor]:
    """(QK, VV): KL(teacher ‖ student) in nats, summed over keys, mean over images, heads and queries; inputs (N, T, 3·d).

    d may differ, the numbers of tokens and heads may not (Wang et al. 2021, equations 4–6). Raises ValueError when they do.
    """
    from torch.nn import functional as F

    teacher_heads = teacher_heads or heads
    if student.shape[:2] != teacher.shape[:2] or heads != teacher_heads:
        raise ValueError(
            f"student {tuple(student.shape)} in {heads} heads, teacher {tuple(teacher.shape)} in {teacher_heads}: not alike"
        )
    pairs = zip(log_relations(student, heads), log_relations(teacher, heads), strict=True)
    qk, vv = (F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1).mean() for ours, theirs in pairs)
    return qk, vv


def _last_two(setup: Setup, config: RelationsConfig, whose: str) -> tuple[str, ...]:
    from ..analyse.attention import qkv_layers

    try:
        blocks = setup.student_module(BLOCKS) if whose == "student" else setup.teacher_module(BLOCKS, config.teacher)
        found = qkv_layers(blocks, BLOCKS)[-2:]
    except UserError:
        found = ()
    if not found:
        raise UserError(
            f"the {whose} has no layers called {BLOCKS}.….attn.qkv, whose relations could be compared",
            hint=f"name them: {whose}_layers = [PATH, …], linear layers that return queries, keys and values",
        )
    return found


def _layers(setup: Setup, config: RelationsConfig) -> list[tuple[str, str]]:
    """The pairs (student's path, teacher's path)."""
    student = config.student_layers or _last_two(setup, config, "student")
    teacher = config.teacher_layers or config.student_layers or _last_two(setup, config, "teacher")
    if len(student) != len(teacher):
        raise UserError(
            f"relations: {len(student)} student layers and {len(teacher)} teacher layers",
            hint="name student_layers and teacher_layers",
        )
    return list(zip(student, teacher, strict=True))


def _heads(setup: Setup, config: RelationsConfig, ours: str, theirs: str) -> int:
    """The number of heads in which both layers are compared. Raises UserError where the two can't be."""
    from ..analyse.attention import heads_of

    shape, other = setup.student_shape(ours), setup.teacher_shape(theirs, config.teacher)
    for path, whose, size in ((ours, "student", shape), (theirs, "teacher", other)):
        if len(size) != 2 or size[1] % 3:
            raise UserError(
                f"{path!r} of the {whose} returns {size} for one image, not (tokens, 3·d)", hint="relations want qkv layers"
            )
    if shape[0] != other[0]:
        raise UserError(
            f"{ours!r} of the student has {shape[0]} tokens, {theirs!r} of the teacher {other[0]}",
            hint="relations compare token with token: both need the same image size, patch size and extra tokens",
        )
    widths = (shape[1] // 3, other[1] // 3)
    if config.relation_heads:
        chosen = (config.relation_heads, config.relation_heads)
    else:
        parents = (ours.rpartition(".")[0], theirs.rpartition(".")[0])
        chosen = (
            config.heads or heads_of(setup.student_module(parents[0]), parents[0]),
            config.teacher_heads or heads_of(setup.teacher_module(parents[1], config.teacher), parents[1]),
        )
        if chosen[0] != chosen[1]:
            common = math.gcd(*widths)
            fit = max(n for n in range(1, max(chosen) + 1) if common % n == 0)
            raise UserError(
                f"{ours!r} of the student has {chosen[0]} heads, {theirs!r} of the teacher {chosen[1]}: "
                "relations are compared head by head",
                hint=f"set relation_heads = {fit} to split both anew",
            )
    for path, width, heads in zip((ours, theirs), widths, chosen, strict=True):
        if width % heads:
            raise UserError(
                f"{path!r} is {width} wide: it can't be split into {heads} heads", hint=f"take a divisor of {width}"
            )
    return chosen[0]


@register_objective(
    "relations",
    RelationsConfig,
    ObjectiveCard(
        title="Token relations",
        source="Hybrid Distill (Shi et al.), ICLR 2024, details from memory; MiniLMv2 (Wang et al. 2021), equations 4–6",
        formula="KL(teacher ‖ student) of softmax(Q·Kᵀ/√d) and softmax(V·Vᵀ/√d) per head, mean over layers, heads and queries",
    ),
)
def build(config: RelationsConfig, setup: Setup) -> Term:
    """The term on pairs of qkv layers; tokens that "token-masking" dropped are left out on both sides."""
    from .term import Need, Term

    pairs = [
        (ours, theirs, _heads(setup, config, ours, theirs), kept_tokens(setup, ours)) for ours, theirs in _layers(setup, config)
    ]

    def loss(signals: Signals) -> Tensor:
        total = signals.student[pairs[0][0]].new_zeros(())
        for ours, theirs, heads, kept in pairs:
            teacher, positions = signals.teacher[theirs], kept()
            if positions is not None:
                teacher = take_tokens(teacher, positions)
            qk, vv = relation_losses(signals.student[ours], teacher, heads=heads)
            total = total + config.qk_weight * qk + config.vv_weight * vv
        return total / len(pairs)

    return Term(
        loss=loss,
        student=tuple(dict.fromkeys(pair[0] for pair in pairs)),
        teachers=(Need(which=config.teacher, taps=tuple(dict.fromkeys(pair[1] for pair in pairs))),),
    )
