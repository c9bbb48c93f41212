import numpy as np
import pytest

from trimtab.export.parity import EXACT_DB, judge, probes, relayout, run_in_layout, sqnr_db
from trimtab.models.contract import Contract, TensorSpec, image_classifier

CONTRACT = image_classifier(channels=3, height=6, width=4, classes=tuple("abc"), mean=(0.0,) * 3, std=(1.0,) * 3)
WEIGHT = np.random.default_rng(0).normal(size=(72, 3)).astype(np.float32)


def network(inputs):
    return {"logits": inputs["image"].reshape(len(inputs["image"]), -1) @ WEIGHT}


def verdict(runner, *, artifact=CONTRACT, precision="fp32", real=None):
    found = probes(CONTRACT, network, real=real, seed=0)
    return judge(runner, found, module=CONTRACT, artifact=artifact, precision=precision, inputs="random", evaluator="test")


def test_sqnr_by_its_formula():
    rng = np.random.default_rng(1)
    ref, out = rng.normal(size=100), rng.normal(size=100)
    expected = 10 * np.log10(np.sum(ref**2) / np.sum((out - ref) ** 2))
    assert sqnr_db(ref, out) == pytest.approx(expected, abs=1e-9)
    assert sqnr_db(ref, ref) == EXACT_DB
    assert sqnr_db(ref, np.full(100, np.nan)) == -EXACT_DB
    assert sqnr_db(np.zeros(3), np.ones(3)) == -EXACT_DB


def test_an_equal_function_is_proven_at_three_batch_sizes_on_at_least_eight_inputs():
    parity = verdict(network)
    assert parity.ok
    assert [c.dims for c in parity.cases] == [{"N": 1}, {"N": 2}, {"N": 5}]
    assert parity.cases[0].inputs >= 8
    assert parity.top1_agreement == 1.0


def test_free_sizes_are_probed_at_two_more_that_are_not_square():
    spec = TensorSpec(name="image", shape=("N", 3, "H", "W"), layout="NCHW")
    contract = Contract(inputs=(spec,), outputs=(spec.model_copy(update={"name": "out"}),))
    found = probes(contract, lambda i: {"out": i["image"]}, real=None, seed=0)
    sizes = list(dict.fromkeys(p.inputs["image"].shape for p in found))
    assert sizes == [(1, 3, 64, 64), (1, 3, 96, 112), (1, 3, 48, 64), (2, 3, 64, 64), (5, 3, 64, 64)]


@pytest.mark.parametrize(
    ("fault", "precision", "ok"),
    [
        (lambda y: y * (1 + 1e-3), "fp32", False),  # 60 dB
        (lambda y: y * (1 + 1e-3), "fp16", True),
        (lambda y: y * (1 + 1e-2), "fp16", False),  # 40 dB
        (lambda y: y[:, ::-1], "fp16", False),
        (lambda y: y + 1, "fp16", False),
        (lambda y: y * np.float32("nan"), "fp16", False),
    ],
)
def test_the_gates_let_through_what_they_should(fault, precision, ok):
    parity = verdict(lambda i: {"logits": fault(network(i)["logits"])}, precision=precision)
    assert parity.ok is ok
    assert bool(parity.reason) is not ok


def test_one_wrong_size_fails_the_whole():
    def batch_blind(inputs):
        out = network(inputs)["logits"].copy()
        out[1:] = out[:1]
        return {"logits": out}

    parity = verdict(batch_blind)
    assert not parity.ok
    assert parity.cases[0].sqnr_db == EXACT_DB
    assert "N=" in parity.reason


@pytest.mark.parametrize("fault", [lambda i: {"logits": network(i)["logits"][:, :2]}, lambda i: {}, lambda i: 1 / 0])
def test_a_runner_that_fails_is_a_verdict_with_a_reason(fault):
    parity = verdict(fault)
    assert not parity.ok
    assert parity.max_abs_error is None
    assert parity.reason.startswith("at N=")


def test_layouts_are_translated_both_ways():
    nhwc = Contract(inputs=(CONTRACT.inputs[0].as_layout("NHWC"),), outputs=CONTRACT.outputs, classes=CONTRACT.classes)

    def runner(inputs):
        assert inputs["image"].shape[1:] == (6, 4, 3)
        return network({"image": inputs["image"].transpose(0, 3, 1, 2)})

    assert verdict(runner, artifact=nhwc).ok
    value = np.arange(2 * 3 * 6 * 4, dtype=np.float32).reshape(2, 3, 6, 4)
    there = relayout(value, CONTRACT.inputs[0], nhwc.inputs[0])
    np.testing.assert_array_equal(relayout(there, nhwc.inputs[0], CONTRACT.inputs[0]), value)
    assert run_in_layout(runner, {"image": value}, module=CONTRACT, artifact=nhwc)["logits"].shape == (2, 3)


def test_real_samples_are_used_when_there_are_some():
    real = np.random.default_rng(3).normal(size=(9, 3, 6, 4)).astype(np.float32)
    found = probes(CONTRACT, network, real=real, seed=0)
    assert all(any(np.array_equal(row, r) for r in real) for p in found for row in p.inputs["image"])
