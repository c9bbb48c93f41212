"""The figures that tell dynamic masks from static ones, on masks whose figures are known."""

import json
import math

import numpy as np
import pytest
import torch

from trimtab.compress.dynamic.diversity import class_agreement, collapsed, diversity
from trimtab.compress.dynamic.observe import Observation

N = 400
CLASSES = torch.arange(N) % 4


def seen(masks, truths=None, targets=CLASSES):
    return Observation(masks, truths or masks, targets)


def by_class():
    """Filter c is on for class c alone: entropy 2 bits, one filter tells its class from the rest."""
    return CLASSES[:, None] == torch.arange(4)


def test_masks_by_class():
    layer = diversity(seen({"a": by_class()}))["layers"]["a"]
    assert layer["distinct"] == 4
    assert layer["entropy_bits"] == pytest.approx(2.0)
    one_of_four = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert layer["class_bits"] == pytest.approx(one_of_four)
    assert layer["flips"] == 0.25
    assert layer["undecided_filters"] == 4
    assert layer["keep"] == 0.25
    assert layer["histogram"] == [0, 0, N, 0, 0, 0, 0, 0, 0, 0]
    assert layer["verdict"] == "dynamic"


def test_verdicts():
    one = torch.zeros(N, 8, dtype=torch.bool)
    one[:, :3] = True
    seldom = one.clone()
    seldom[:20, 3] = True  # another mask for 5 % of inputs: 0.29 bit
    many_but_few = torch.ones(N, 256, dtype=torch.bool)
    many_but_few[torch.arange(N), torch.arange(N) % 256] = False  # 8 bits of entropy, one filter of 256
    figures = diversity(
        seen({"static": one, "seldom": seldom, "few": many_but_few, "on": one | True, "off": one & False, "moves": by_class()})
    )
    assert {path: layer["verdict"] for path, layer in figures["layers"].items()} == {
        "static": "static",
        "seldom": "static",
        "few": "static",
        "on": "all on",
        "off": "all off",
        "moves": "dynamic",
    }
    assert figures["dynamic_layers"] == 1
    assert collapsed(figures) == {"static": ["static", "seldom", "few"], "all on": ["on"], "all off": ["off"]}
    assert figures["layers"]["off"]["none_kept"] == 1
    assert figures["layers"]["few"]["entropy_bits"] > 7


def test_agreement_beyond_the_best_constant():
    """Truth: filter 0 by a coin that shows heads for 75 %, filter 1 always on."""
    heads = torch.arange(N) % 4 != 0
    truth = torch.stack([heads, torch.ones(N, dtype=torch.bool)], 1)
    constant = torch.ones(N, 2, dtype=torch.bool)
    wrong = torch.stack([~heads, torch.ones(N, dtype=torch.bool)], 1)
    figures = {
        name: diversity(seen({"a": mask}, {"a": truth}))["layers"]["a"]
        for name, mask in {"constant": constant, "perfect": truth, "wrong": wrong}.items()
    }
    assert figures["constant"]["constant"] == figures["constant"]["agreement"] == pytest.approx(0.875)
    assert figures["constant"]["beyond_constant"] == pytest.approx(0)
    assert figures["perfect"]["beyond_constant"] == pytest.approx(0.125) == figures["perfect"]["headroom"]
    assert figures["wrong"]["beyond_constant"] == pytest.approx(0.5 - 0.875)


def test_the_whole_network():
    coin = (torch.arange(N) // 4 % 2).bool()[:, None]
    figures = diversity(seen({"a": by_class(), "b": torch.cat([coin, ~coin], 1)}))
    assert figures["distinct"] == 8  # four classes × two sides, though neither layer has more than four
    assert figures["entropy_bits"] == pytest.approx(3)
    assert figures["kept_per_sample"]["p50"] == 2
    assert (figures["samples"], figures["gates"], figures["filters"]) == (N, 2, 6)
    assert figures["layers"]["b"]["class_bits"] == pytest.approx(0)
    json.dumps(figures)


def test_agreement_between_classes():
    masks = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]], bool)
    matrix = class_agreement(masks, np.array([0, 0, 3, 3]))
    assert matrix[0][0] == matrix[3][3] == 1
    assert matrix[0][3] == matrix[3][0] == 0
    assert matrix[1] == [None] * 4
    half = class_agreement(masks[:2], np.array([0, 1]))
    assert half[0][1] == pytest.approx(0.5)  # Σ min / Σ max of (1, 1, 0) and (1, 0, 0)


def test_without_classes_what_needs_them_is_none():
    figures = diversity(seen({"a": by_class()}, targets=torch.rand(N, 10)))
    assert figures["classes"] is None
    assert figures["layers"]["a"]["class_bits"] is None
    json.dumps(figures)


def test_no_gates_is_an_error():
    with pytest.raises(ValueError, match="no masks"):
        diversity(seen({}))
