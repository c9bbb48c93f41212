"""Objectives by one name: the terms and weights that their papers add up. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...models.errors import did_you_mean
from .objectives import TermConfig, objectives, parse_term

CIFAR_WARMUP = 0.083
"""The share of the run over which Wang et al. bring in the base term: 20 of 240 epochs."""


@dataclass(frozen=True)
class Preset:
    """L = label_weight · task loss + Σ weight · term."""

    title: str
    source: str
    label_weight: float
    terms: tuple[dict[str, Any], ...]


def _nd(weight: float) -> dict[str, Any]:
    return {"kind": "nd", "weight": weight}


_KD = {"kind": "kd", "weight": 1.0, "temperature": 4.0, "warmup": CIFAR_WARMUP}
_DKD = {"kind": "dkd", "weight": 1.0, "alpha": 1.0, "beta": 8.0, "temperature": 4.0, "warmup": CIFAR_WARMUP}
_DIST = {"kind": "dist", "weight": 2.0, "warmup": CIFAR_WARMUP}
_ND = "Wang et al.: Improving Knowledge Distillation via Regularizing Feature Norm and Direction, 2023"

presets: dict[str, Preset] = {
    "kd": Preset("Knowledge distillation", "Hinton et al. 2015", 0.1, ({"kind": "kd", "weight": 0.9, "temperature": 4.0},)),
    "kd++": Preset("KD with feature norm and direction", _ND, 1.0, (_KD, _nd(2.0))),
    "dkd": Preset("Decoupled KD", "Zhao et al. 2022", 1.0, (_DKD,)),
    "dkd++": Preset("Decoupled KD with feature norm and direction", _ND, 1.0, (_DKD, _nd(1.0))),
    "dist": Preset("Correlations between and within classes", "Huang et al. 2022", 1.0, (_DIST,)),
    "dist++": Preset("DIST with feature norm and direction", _ND, 1.0, (_DIST, _nd(1.0))),
    "kd+cosine": Preset(
        "KD with the cosine to the teacher's class mean",
        f"the baseline of {_ND}",
        1.0,
        (_KD, {"kind": "cosine", "weight": 2.0}),
    ),
    "dual-head": Preset("Dual-head KD", "Yang et al. 2025", 1.0, ({"kind": "dual-head", "weight": 1.0},)),
    "landmarks": Preset(
        "KD-Loss for landmarks, one teacher in both roles (give `objectives` to name a tough and a tolerant one)",
        "Fard and Mahoor: Facial Landmark Points Detection Using Knowledge Distillation-Based Neural Networks, 2022",
        0.0,
        ({"kind": "landmark-main", "weight": 2.0}, {"kind": "assistive", "weight": 1.0}),
    ),
    "ema": Preset(
        "The student's own moving average as teacher",
        "Tarvainen and Valpola 2017",
        1.0,
        ({"kind": "kd", "weight": 1.0, "temperature": 1.0, "teacher": "ema", "warmup": 0.25},),
    ),
    "bias": Preset("Bias loss: no teacher", "Abrahamyan et al. 2021", 0.0, ({"kind": "bias", "weight": 1.0},)),
    "nested-dropout": Preset(
        "Features in the order of their use", "Chen et al. 2022", 0.0, ({"kind": "nested-dropout", "weight": 1.0},)
    ),
    "multi-sample-dropout": Preset(
        "Several dropout masks a step", "Inoue 2019", 0.0, ({"kind": "multi-sample-dropout", "weight": 1.0},)
    ),
}


def expand(name: str) -> tuple[float, tuple[TermConfig, ...]]:
    """(the label's weight, the terms) of a preset, or of one registered term beside the full label loss.

    Raises ValueError with a did-you-mean, or with what a term needs that a name alone can't say.
    """
    if name in presets:
        preset = presets[name]
        return preset.label_weight, tuple(parse_term(term) for term in preset.terms)
    if name in objectives:
        return 1.0, (parse_term({"kind": name}),)
    raise ValueError(f"unknown objective {name!r}: {did_you_mean(name, names())}")


def names() -> list[str]:
    """Everything that `objective` may be."""
    return sorted({*presets, *objectives.names()})
