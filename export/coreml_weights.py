"""Core ML weights kept small in the package: as integers with scales, indices into a palette, or non-zeros under a bit mask.

Arithmetic stays in float16: Core ML unpacks such weights when it loads the model or while it computes. coremltools does the
packing; here lies what is packed how, what is left alone, and from which system on it can be read (iOS 16, or iOS 18).
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..models.errors import UnchangedError, UserError

WEIGHTED = frozenset({"conv", "conv_transpose", "linear", "matmul", "einsum", "gather", "lstm", "gru", "rnn"})
"""The MIL operations whose constants are weights; other constants (position embeddings, windows) are never packed."""
_BLOCK = 32
_SHORTEST_BLOCK = 8
"""Of int4: input channels that share a scale, where their number allows it; shorter blocks would spend as much on scales."""

Pack = Literal["mask", "linear8", "linear4", "palette6", "palette4"]


@dataclass(frozen=True)
class Form:
    """How the weights of one precision are packed: the steps in order, and the oldest program specification that has them.

    Weights of fewer than `least` numbers are left alone: their scales or palettes would take what they save, and in few bits
    they, first convolutions above all, cost more quality than is worth the bytes. `zeros` is the share of zeros from which a bit
    mask pays (1 bit for every number against the bits of one number for every zero).
    """

    steps: tuple[Pack, ...]
    least: int
    specification: int = 7
    zeros: float = 0.0


FORMS: Mapping[str, Form] = {
    "int8": Form(("linear8",), least=64),
    "int4": Form(("linear4",), least=512, specification=9),
    "palette6": Form(("palette6",), least=512),
    "palette4": Form(("palette4",), least=512),
    "sparse": Form(("mask",), least=64, zeros=1 / 16),
    "sparse-int8": Form(("mask", "linear8"), least=64, specification=9, zeros=1 / 8),
    "sparse-palette4": Form(("mask", "palette4"), least=512, specification=9, zeros=1 / 4),
}


@dataclass(frozen=True)
class Weight:
    """A constant of weighted operations: what they are and their MIL names, its shape, and the share of zeros in it."""

    kind: str
    readers: tuple[str, ...]
    shape: tuple[int, ...]
    zeros: float

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def shown(self, places: Mapping[str, str]) -> str:
        """Where it is, by the module's path if `places` (of MIL operations) tells it, and its shape."""
        reader = self.readers[0]
        return f"{places.get(reader) or reader} ({'×'.join(map(str, self.shape))})"


def weights_of(model: Any) -> list[Weight]:
    """The constants with two dimensions or more that weighted operations read and that are not packed."""
    import coremltools.optimize.coreml as cto

    found = []
    for told in cto.get_weights_metadata(model, weight_threshold=2).values():
        kinds = {reader.op_type for reader in told.child_ops}
        if told.val.ndim >= 2 and told.val.dtype.kind == "f" and kinds and kinds <= WEIGHTED:
            readers = tuple(str(reader.name) for reader in told.child_ops)
            found.append(Weight(min(kinds), readers, tuple(int(n) for n in told.val.shape), float((told.val == 0).mean())))
    return found


def packed(model: Any, precision: str, *, group: int, places: Mapping[str, str]) -> tuple[Any, list[Weight]]:
    """(a float16 model with its weights packed as `precision` asks, the weights that stayed as they were).

    `group` output channels share a palette (0: all); `places` names modules by their MIL operations. Raises UserError when nothing
    could be packed: weights too small, too few zeros where zeros are left out, or a refusal of coremltools.
    """
    form = FORMS[precision]
    weights = weights_of(model)
    chosen = [weight for weight in weights if weight.size >= form.least]
    if not chosen:
        largest = max((weight.size for weight in weights), default=0)
        raise UnchangedError(
            f"no weight is worth packing as {precision}: the largest has {largest} numbers, it takes {form.least}",
            hint="use fp16",
        )
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):  # a channel of zeros has scale 0
        warnings.filterwarnings("ignore", message="Number of distinct clusters")  # then the palette is exact
        for number, step in enumerate(form.steps):
            now = _sparse_enough(chosen, form, precision, places) if step == "mask" else chosen
            model = _step(model, step, now, least=form.least, group=group, joint=number > 0)
    rest = weights_of(model)
    if len(rest) >= len(weights):
        raise UnchangedError(
            f"coremltools packed none of the {len(weights)} weights as {precision}", hint="use fp16, and report this network"
        )
    return model, rest


def _sparse_enough(chosen: Sequence[Weight], form: Form, precision: str, places: Mapping[str, str]) -> list[Weight]:
    found = [weight for weight in chosen if weight.zeros >= form.zeros]
    if not found:
        most = max(chosen, key=lambda weight: weight.zeros)
        raise UnchangedError(
            f"{precision} stores zeros as bits, and no weight has enough of them: {most.shown(places)} has the most, "
            f"{most.zeros:.1%}; from {form.zeros:.1%} on it pays",
            hint="prune the network first (a lottery ticket), or use int8",
        )
    return found


def _step(model: Any, step: Pack, weights: Sequence[Weight], *, least: int, group: int, joint: bool) -> Any:
    """The model after one step; `joint`: over weights that are packed already."""
    import coremltools.optimize.coreml as cto

    configs = {name: _config(step, weight, least=least, group=group) for weight in weights for name in weight.readers}
    plain = _config(step, replace(weights[0], kind="matmul"), least=least, group=0)
    config = cto.OptimizationConfig(op_name_configs=_agreed(model, configs, plain))
    try:
        if step == "mask":
            return cto.prune_weights(model, config)
        if step in ("linear8", "linear4"):
            return cto.linear_quantize_weights(model, config, joint_compression=joint)
        return cto.palettize_weights(model, config, joint_compression=joint)
    except (ValueError, NotImplementedError, AssertionError) as error:
        raise UserError(f"coremltools cannot pack these weights: {error}", hint="use fp16 or another precision") from error


def _agreed(model: Any, configs: Mapping[str, Any], plain: Any) -> dict[str, Any]:
    """The configs by operation, `plain` (no blocks, no groups) where operations that share a constant, were it a bias that stays as
    it is, had different ones: coremltools takes that for a contradiction."""
    import coremltools.optimize.coreml as cto

    agreed = dict(configs)
    constants = cto.get_weights_metadata(model, weight_threshold=0).values()
    sharing = [[str(op.name) for op in told.child_ops if str(op.name) in agreed] for told in constants]
    while apart := [names for names in sharing if any(agreed[name] != agreed[names[0]] for name in names)]:
        agreed |= {name: plain for names in apart for name in names}
    return agreed


def _config(step: Pack, weight: Weight, *, least: int, group: int) -> Any:
    import coremltools.optimize.coreml as cto

    least -= 1  # coremltools packs what is larger than this
    if step == "mask":  # threshold 0: what is zero already, nothing more
        return cto.OpThresholdPrunerConfig(threshold=0.0, minimum_sparsity_percentile=0.0, weight_threshold=least)
    if step in ("palette6", "palette4"):
        grouped = group and _outputs(weight) % group == 0 and _outputs(weight) > group
        shared = {"granularity": "per_grouped_channel", "group_size": group} if grouped else {"granularity": "per_tensor"}
        return cto.OpPalettizerConfig(mode="kmeans", nbits=int(step[-1]), weight_threshold=least, **shared)
    block = _block_of(weight) if step == "linear4" else 0
    shared = {"granularity": "per_block", "block_size": block} if block else {"granularity": "per_channel"}
    kind = "int4" if step == "linear4" else "int8"
    return cto.OpLinearQuantizerConfig(mode="linear_symmetric", dtype=kind, weight_threshold=least, **shared)


def _outputs(weight: Weight) -> int:
    """The output channels of a weight."""
    return weight.shape[1 if weight.kind == "conv_transpose" else 0]


def _block_of(weight: Weight) -> int:
    """How many input channels share a scale in int4: 32, or the longest block below that divides them; 0: all of them."""
    if weight.kind not in ("conv", "conv_transpose", "linear"):
        return 0
    inputs = weight.shape[0 if weight.kind == "conv_transpose" else 1]
    return max((n for n in range(_SHORTEST_BLOCK, _BLOCK + 1) if inputs % n == 0 and n < inputs), default=0)


def left_alone(rest: Sequence[Weight], precision: str, places: Mapping[str, str]) -> list[str]:
    """The warning that names the weights which stayed float16; empty when none did."""
    if not rest:
        return []
    form, shown = FORMS[precision], ", ".join(weight.shown(places) for weight in rest[:3])
    more = f" and {len(rest) - 3} more" if len(rest) > 3 else ""
    noun = "weight stays" if len(rest) == 1 else "weights stay"
    small = f"fewer than {form.least} numbers"
    why = f"{small} or {form.zeros:.1%} zeros" if form.steps == ("mask",) else small
    return [f"{len(rest)} {noun} float16 in the {precision} package, with {why} too small to gain: {shown}{more}"]


def islands(rest: Sequence[Weight]) -> dict[str, int]:
    """The operations by kind whose weights stayed float16."""
    return dict(sorted(Counter(weight.kind for weight in rest for _ in weight.readers).items()))
