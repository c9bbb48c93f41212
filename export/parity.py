"""The parity verdict: does the saved artifact compute the same function as the torch module?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..models.contract import Contract, TensorSpec
from .artifact import Parity, ParityCase
from .exporter import Runner, Tensors

GATES_DB = {"fp32": 90.0, "fp16": 45.0, "sparse": 45.0}
REDUCED_DB = 25.0
"""The gate of every other precision: integers, palettes, sparse weights."""
EXACT_DB = 200.0
"""Reported where the outputs are equal to the last bit; an infinite ratio is no number for a manifest."""
MIN_INPUTS = 8
FORCED = 4


def gate_db(precision: str) -> float:
    """The SQNR in dB that an artifact of this precision must reach."""
    return GATES_DB.get(precision, REDUCED_DB)


@dataclass(frozen=True)
class Probe:
    """Inputs at one size, in the module's layout, the module's outputs for them, and the branch that gave those, if it has some."""

    dims: dict[str, int]
    inputs: Tensors
    outputs: Tensors
    branch: int | None = None


def sqnr_db(reference: np.ndarray, output: np.ndarray) -> float:
    """Signal-to-quantisation-noise ratio 10·log10(Σ ref² / Σ (out − ref)²) in dB, at most 200; −200 when `output` is not finite."""
    reference, output = reference.astype(np.float64), output.astype(np.float64)
    if not np.isfinite(output).all():
        return -EXACT_DB
    noise, signal = float(np.square(output - reference).sum()), float(np.square(reference).sum())
    if noise == 0:
        return EXACT_DB
    return max(-EXACT_DB, min(EXACT_DB, 10 * math.log10(signal / noise))) if signal > 0 else -EXACT_DB


def probes(
    contract: Contract,
    reference: Callable[[Tensors], Mapping[str, np.ndarray]],
    *,
    real: np.ndarray | None,
    seed: int,
    settings: Sequence[Tensors] = (),
    branch: Callable[[Tensors], int] | None = None,
    listed: Sequence[Mapping[str, int]] = (),
) -> list[Probe]:
    """Probes at batch 1 (eight of them) and, where dimensions are dynamic, at two other sizes each.

    `real` holds samples (N, …) for a network with one input besides those that have a default; without it inputs are random in
    the value range. Inputs with a default have it, and `FORCED` more probes each have those of `settings`. `branch` tells which
    branch answers. `listed`: the only sizes there may be, each probed.
    """
    if listed:
        return [_listed(contract, reference, size, real=real, seed=seed + k) for size in listed for k in range(FORCED)]
    batches = (1, 2, 5) if "N" in contract.symbols else (None,)
    spatial = [s for s in contract.symbols if s != "N"]
    sizes: list[dict[str, int]] = [dict.fromkeys(spatial, size) for size in ((64, 96, 48) if spatial else (0,))]
    for i, size in enumerate(sizes):
        size.update({s: size[s] + 16 * j for j, s in enumerate(spatial) if i})  # not square: a swapped H and W must show
    if real is not None and spatial:
        drawn = next(spec for spec in contract.inputs if not spec.default)
        sizes[0] |= {d: size for d, size in zip(drawn.shape, real.shape, strict=True) if isinstance(d, str) and d != "N"}

    def probe(dims: dict[str, int], inputs: Tensors) -> Probe:
        return Probe(dims, inputs, dict(reference(inputs)), branch(inputs) if branch else None)

    found = []
    for (i, batch), (j, size) in itertools.product(enumerate(batches), enumerate(sizes)):
        if i and j:
            continue  # other batches at the first size, other sizes at batch 1
        dims = {**size, **({"N": batch} if batch else {})}
        repeats = MIN_INPUTS if not i and not j else 1
        for k in range(repeats):
            inputs = _draw(
                contract, dims, real if not j else None, start=(k + i * MIN_INPUTS), seed=seed + k + 100 * i + 10_000 * j
            )
            found.append(probe(dims, inputs))
    for setting, k in itertools.product(settings, range(FORCED)):
        found.append(probe(found[0].dims, {**_draw(contract, found[0].dims, real, start=k, seed=seed + k), **setting}))
    return found


def _listed(
    contract: Contract,
    reference: Callable[[Tensors], Mapping[str, np.ndarray]],
    size: Mapping[str, int],
    *,
    real: np.ndarray | None,
    seed: int,
) -> Probe:
    """A probe at a listed size, of real samples where they have it."""
    spec = next(spec for spec in contract.inputs if not spec.default)
    fits = real is not None and real.shape[1:] == spec.concrete(size)[1:]
    inputs = _draw(contract, dict(size), real if fits else None, start=seed, seed=seed)
    return Probe(dict(size), inputs, dict(reference(inputs)))


def _draw(contract: Contract, dims: dict[str, int], real: np.ndarray | None, *, start: int, seed: int) -> Tensors:
    settings = contract.defaults()
    drawn = [spec for spec in contract.inputs if spec.name not in settings]
    if real is None or len(drawn) != 1:
        return contract.random_inputs(dims, seed=seed) | settings
    spec = drawn[0]
    count = spec.concrete(dims)[0]
    picked = real[(start + np.arange(count)) % len(real)]
    return {spec.name: np.ascontiguousarray(picked.astype(spec.dtype)), **settings}


def relayout(value: np.ndarray, source: TensorSpec, target: TensorSpec) -> np.ndarray:
    """`value` from one tensor's layout and dtype to another's; integers that stand for real numbers by their scale."""
    if source.layout != target.layout and {source.layout, target.layout} == {"NCHW", "NHWC"}:
        value = value.transpose((0, 2, 3, 1) if target.layout == "NHWC" else (0, 3, 1, 2))
    if (source.scale, source.zero_point) != (target.scale, target.zero_point):
        value = source.real(value)
        return np.asarray(target.stored(value), order="C")
    return np.asarray(value.astype(target.dtype, copy=False), order="C")  # a number stays one: no axis is added


def inputs_in_layout(inputs: Tensors, *, module: Contract, artifact: Contract) -> dict[str, np.ndarray]:
    """The artifact's inputs, in its layout and by its names, from inputs in the module's."""
    return {t.name: relayout(inputs[s.name], s, t) for s, t in zip(module.inputs, artifact.inputs, strict=True)}


def run_in_layout(runner: Runner, inputs: Tensors, *, module: Contract, artifact: Contract) -> dict[str, np.ndarray]:
    """The artifact's outputs in the module's layout for inputs in the module's layout."""
    got = runner(inputs_in_layout(inputs, module=module, artifact=artifact))
    return {s.name: relayout(np.asarray(got[t.name]), t, s) for s, t in zip(module.outputs, artifact.outputs, strict=True)}


def judge(
    runner: Runner,
    found: Sequence[Probe],
    *,
    module: Contract,
    artifact: Contract,
    precision: str,
    inputs: Literal["real", "random"],
    evaluator: str,
) -> Parity:
    """The verdict over all probes. A runner that fails or returns another shape is a failed parity with the reason, not a crash."""
    gate = gate_db(precision)
    cases, reason = [], ""
    for group in _groups(found):
        dims, branch = group[0].dims, group[0].branch
        try:
            cases.append(_case(runner, group, module, artifact))
        except Exception as error:  # the artifact's own runtime may raise anything
            reason = f"at {_shown(dims, branch)}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            cases.append(ParityCase(dims=dims, inputs=1, max_abs_error=None, sqnr_db=-EXACT_DB, branch=branch))
    worst = min(cases, key=lambda c: c.sqnr_db)
    ok = worst.sqnr_db >= gate and not reason
    if not ok and not reason:
        reason = (
            f"SQNR {worst.sqnr_db:.1f} dB at {_shown(worst.dims, worst.branch)} is below the {precision} gate of {gate:g} dB"
        )
    errors = [c.max_abs_error for c in cases]
    agreements = [c.top1_agreement for c in cases if c.top1_agreement is not None]
    return Parity(
        ok=ok,
        gate_db=gate,
        sqnr_db=worst.sqnr_db,
        max_abs_error=None if any(e is None for e in errors) else max(e for e in errors if e is not None),
        top1_agreement=min(agreements) if agreements else None,
        inputs=inputs,
        evaluator=evaluator,
        cases=tuple(cases),
        reason=reason,
    )


def _groups(found: Sequence[Probe]) -> list[list[Probe]]:
    """Probes of one size and one branch together: each branch is judged by itself, however small its outputs are."""
    groups: dict[tuple[tuple[tuple[str, int], ...], int | None], list[Probe]] = {}
    for probe in found:
        groups.setdefault((tuple(probe.dims.items()), probe.branch), []).append(probe)
    return list(groups.values())


def _shown(dims: Mapping[str, int], branch: int | None) -> str:
    size = " ".join(f"{name}={size}" for name, size in dims.items()) or "the fixed size"
    return size if branch is None else f"{size}, branch {branch}"


def _case(runner: Runner, group: list[Probe], module: Contract, artifact: Contract) -> ParityCase:
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for probe in group:
        outputs = run_in_layout(runner, probe.inputs, module=module, artifact=artifact)
        for name, reference in probe.outputs.items():
            if outputs[name].shape != reference.shape:
                raise ValueError(f"output {name!r} has shape {outputs[name].shape}, the module's is {reference.shape}")
            pairs.setdefault(name, []).append((reference, outputs[name]))
    joined = {name: tuple(np.concatenate([p[i].reshape(-1) for p in both]) for i in (0, 1)) for name, both in pairs.items()}
    agreement = None
    if module.classes:
        first = pairs[module.outputs[0].name]
        agreement = float(np.mean(np.concatenate([(r.argmax(1) == o.argmax(1)).reshape(-1) for r, o in first])))
    return ParityCase(
        dims=group[0].dims,
        branch=group[0].branch,
        inputs=sum(len(next(iter(p.inputs.values()))) for p in group),
        max_abs_error=max(float(np.abs(r.astype(np.float64) - o).max()) for r, o in joined.values()),
        sqnr_db=min(sqnr_db(r, o) for r, o in joined.values()),
        top1_agreement=agreement,
    )
