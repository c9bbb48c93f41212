"""Structured readout: what unstructured pruning has left dead is cut out for real, without changing what the network computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from .method import Context, MethodCard, MethodConfig, Result, register_method

if TYPE_CHECKING:
    from torch import nn

    from ..models.tasks.task import Task
    from .cost import Cost
    from .readout_rounds import Readout

TOLERANCE = 1e-4
"""Largest float32 deviation of an exact readout, relative to the largest output: sums of fewer terms round otherwise."""
NEARLY = 0.05
"""A channel with fewer of its incoming weights than this share is called nearly dead."""


class ReadoutConfig(MethodConfig):
    """Parameters of the readout. As they come, nothing but what is exact is done."""

    kind: Literal["readout"] = "readout"
    min_weights: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="channels with a smaller share of their incoming weights left count as dead (0: exact only)",
    )
    fold: Literal["exact", "approximate"] = Field(
        "exact", description='"approximate" also removes constants whose reader pads with zeros: edges change'
    )
    keep: tuple[str, ...] = Field((), description="module names that stay whole")


@register_method(
    "readout",
    ReadoutConfig,
    MethodCard(
        title="Structured readout: channels that pruned weights left dead are sliced away",
        source="exact by construction; the channel groups are those of Fang et al., DepGraph (CVPR 2023)",
        needs_data=False,
        needs_labels=False,
        changes_structure=True,
        trains=False,
    ),
)
def apply(module: nn.Module, task: Task | None, config: ReadoutConfig, context: Context) -> Result:
    """The module without its dead channels, with the MACs before and after and the proof that its outputs are what they were.

    Raises UserError when the outputs of the network differ from run to run, and what `analyse` raises.
    """
    import copy

    import torch

    from ..models.masks import admit
    from .cost import count
    from .input_dependence import deviation, outputs_of
    from .readout_rounds import Readout

    contract = context.parent.contract
    dims = contract.example_dims(batch=4)
    probes = [[torch.from_numpy(v) for v in contract.random_inputs(dims, seed=context.seed + i).values()] for i in range(3)]
    inputs = [torch.from_numpy(v) for v in contract.random_inputs(contract.example_dims(), seed=context.seed).values()]
    module.eval()
    before, dense = copy.deepcopy(module), count(module, inputs)
    reader = Readout(module, inputs, probes, config)
    phases = (False, True) if config.min_weights > 0 or config.fold == "approximate" else (False,)
    with context.progress.meter("read out", len(phases), "phase") as meter:
        for approximate in phases:
            reader.run(approximate=approximate)
            meter.advance()
    admit(module)  # a constant may have gone into a pruned bias
    cut = count(module, inputs)
    off = deviation(outputs_of(before, probes), outputs_of(module, probes))
    zeros = {"zeros_before": zero_share(before), "zeros_after": zero_share(module)}
    figures = {**_figures(reader, dense, cut), **zeros, "deviation": off, "tolerance": TOLERANCE}
    return Result(module, plan=reader.plan, figures=figures, notes=tuple(_notes(reader, figures)))


def zero_share(module: nn.Module) -> float:
    """The share of zeros among the weights of convolutions and linear layers."""
    from .input_dependence import LAYERS

    weights: list[Any] = [layer.weight for layer in module.modules() if isinstance(layer, LAYERS)]
    return sum(int((w == 0).sum()) for w in weights) / max(1, sum(w.numel() for w in weights))


def _figures(reader: Readout, dense: Cost, cut: Cost) -> dict[str, Any]:
    """What the step reports of the cost, of the widths (layer by layer) and of how channels went."""
    outs = [e for e in reader.plan.edits if e.side == "out"]
    return {
        "macs_before": dense.macs,
        "macs_after": cut.macs,
        "mac_ratio": cut.macs / dense.macs,
        "params_before": dense.params,
        "params_after": cut.params,
        "param_ratio": cut.params / dense.params,
        "exact": not reader.approximate.removed.total(),
        "removed": dict(+reader.exact.removed),
        "removed_approximately": dict(+reader.approximate.removed),
        "rounds": reader.exact.rounds + reader.approximate.rounds,
        "layers": len({e.path for e in reader.plan.edits}),
        "widths": {e.path: [e.size, len(e.kept)] for e in outs},
        "stuck": dict(reader.last.stuck),
        "spared": sorted(set(reader.spared)),
        "nearly_dead": reader.nearly(NEARLY),
        "channels": reader.channels,
        "fixed": [{"path": f.path, "channels": f.channels, "reason": f.reason} for f in reader.fixed],
    }


def _notes(reader: Readout, figures: dict[str, Any]) -> list[str]:
    """The outcome in words: what went and how exactly, what is stuck and why, what had to stay."""
    notes = []
    exact, rough = reader.exact.removed, reader.approximate.removed
    if exact.total():
        notes.append(
            f"{exact.total()} channels removed exactly: {exact['unread']} that no layer reads, {exact['silent']} that carry 0, "
            f"{exact['folded']} whose constant went into a bias"
        )
    if rough.total():
        notes.append(
            f"{rough.total()} channels removed as an approximation: outputs on random inputs are off by up to "
            f"{figures['deviation']:.2g} of the largest output"
        )
    elif figures["deviation"] > TOLERANCE:
        notes.append(
            f"float32 outputs are off by {figures['deviation']:.2g} of the largest, more than the {TOLERANCE:g} that rounding "
            "should make; in float64 they agree"
        )
    if not exact.total() and not rough.total():
        notes.append(
            f"no channel is dead: nothing was cut; {figures['nearly_dead']} of {figures['channels']} channels have less than "
            f"{NEARLY:.0%} of their incoming weights left"
            + (" (min_weights removes such, as an approximation)" if figures["nearly_dead"] else "")
        )
    for reason, channels in figures["stuck"].items():
        way = '; fold = "approximate" removes them' if "padding" in reason else ""
        notes.append(f"{channels} channels carry a constant that stays, since {reason}{way}")
    if figures["spared"]:
        notes.append(f"all channels are dead, one stays (a layer needs one): {', '.join(figures['spared'])}")
    for root, channels in reader.last.mixed.items():
        notes.append(f"{channels} channels of {root} stay: something that is no layer reads them or is normalised over them")
    return notes
