"""The whole analysis on a toy task: equal rows for equal models, the same record twice, the folder, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from analysis_kit import synthetic_record
from torch import nn
from training_kit import FakeBundle, make_net, make_task, train

from trimtab.compress.analyse import analysis
from trimtab.compress.analyse.analysis import AnalysisRecord, analyse_models
from trimtab.compress.analyse.analysis_record import JSON, NPZ, SHAPES
from trimtab.models.contract import image_classifier
from trimtab.models.errors import UserError
from trimtab.models.progress import LogProgress
from trimtab.models.routed import RoutedNet, RouteSpec
from trimtab.models.tasks.corruptions import corrupt

KINDS = ("gaussian_noise", "gaussian_blur", "rotate")


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """A trained network, and the same with half of its classifier's weights removed."""
    net, _ = train(tmp_path_factory.mktemp("nets"), task=make_task())
    pruned = make_net()
    pruned.load_state_dict(net.state_dict())
    with torch.no_grad():
        weight = pruned[-1].weight
        weight.mul_(weight.abs() > weight.abs().median())
    return net.eval(), pruned.eval()


def analysed(*nets, task=None, names=(), kinds=KINDS, **more):
    task = task or make_task()
    names = names or [f"net {i}" for i in range(len(nets))]
    bundles = [(name, FakeBundle(task.contract, net, hash=name)) for name, net in zip(names, nets, strict=True)]
    settings = {"corruptions": kinds, "severities": (1, 3, 5), "device": "cpu", "progress": LogProgress(), **more}
    return analyse_models(bundles, task, **settings)


def same_arrays(a, b, names=tuple(SHAPES)):
    return all(np.array_equal(a.arrays[name], b.arrays[name]) for name in names)


def test_figures_are_those_of_the_network(nets):
    task = make_task()
    record = analysed(*nets, task=task, command="trimtab analyze a b")
    info, arrays = record.info, record.arrays
    raw = task.samples("test").__getitems__(range(64))
    for m, net in enumerate(nets):
        with torch.no_grad():
            logits = net(task.inputs(raw))
        predicted = logits.argmax(1).numpy()
        right = predicted == raw.targets.numpy()
        assert np.array_equal(arrays["clean_predicted"][m], predicted)
        assert np.array_equal(arrays["clean_margin"][m] > 0, right)
        assert info["models"][m]["accuracy"] == info["clean_accuracy"][m] == right.mean()
        # float32 networks in another memory order
        assert arrays["clean_confidence"][m] == pytest.approx(logits.softmax(1).amax(1).numpy(), rel=1e-5)
        assert info["models"][m]["params"] == sum(p.numel() for p in net.parameters())
    assert info["models"][0]["nonzero"] - info["models"][1]["nonzero"] == nets[1][-1].weight.numel() // 2
    assert info["models"][0]["macs"] == 8 * 9 * 64 + 128 * 4
    assert info["severity_kept"] == 3
    assert info["command"] == "trimtab analyze a b"
    middle = (arrays["predicted"] == arrays["targets"]).mean(2)
    assert np.array(info["accuracy"])[:, :, 1] == pytest.approx(middle)
    assert np.array_equal(arrays["margin"] > 0, arrays["predicted"] == arrays["targets"])


def test_survival_rows_and_counts_belong_to_the_arrays(nets):
    record = analysed(*nets)
    arrays, rows = record.arrays, record.info["survival"]
    assert len(rows) == 2 * (len(KINDS) + 1)
    right = arrays["clean_predicted"] == arrays["targets"]
    assert arrays["survived"].max() <= 3
    assert not arrays["survived"][~np.repeat(right[:, None], 3, axis=1)].any()
    for m in range(2):
        mine = [row for row in rows if row["model"] == f"net {m}"]
        assert [row["corruption"] for row in mine] == [*KINDS, "all"]
        assert [row["survived"] for row in mine] == [*arrays["survived"][m].sum(1), arrays["survived"][m].sum()]
        assert [row["n"] for row in mine] == [3 * right[m].sum()] * 3 + [9 * right[m].sum()]
    shares = np.array(record.info["class_accuracy"]["corrupted"])
    counts = np.bincount(arrays["targets"], minlength=4)
    assert (shares * counts).sum(2) / counts.sum() == pytest.approx(np.array(record.info["accuracy"]).mean(2))


def test_an_untouched_copy_has_identical_rows(nets):
    record = analysed(nets[0], nets[0], nets[1])
    info = record.info
    for name, (_, dims) in SHAPES.items():
        if dims.startswith("m"):
            assert np.array_equal(record.arrays[name][0], record.arrays[name][1])
    strip = [{k: v for k, v in row.items() if k != "model"} for row in info["survival"]]
    assert strip[:4] == strip[4:8]
    assert info["redundancy"]["by_model"][0] == info["redundancy"]["by_model"][1]
    assert not [fall for fall in info["worst_classes"] if fall["model"] == "net 1"]
    assert all(fall["by_model"][:2] == [0, 0] for fall in info["worst_samples"])
    assert not analysed(nets[0], nets[0]).info["worst_samples"]


def test_the_same_twice_and_another_seed_differs(nets):
    first, again, other = analysed(*nets), analysed(*nets), analysed(*nets, seed=1)
    assert same_arrays(first, again)
    times = {"created": ""}
    assert {**first.info, **times} == {**again.info, **times}
    assert not same_arrays(first, other, ("margin",))
    assert same_arrays(first, other, ("clean_margin",))


def test_neither_limit_nor_company_changes_a_sample(nets, monkeypatch):
    """Blocks of 16: the last of 40 samples is cut. Other batches may round float32 sums otherwise, in the last digits."""
    monkeypatch.setattr(analysis, "BLOCK", 16)
    whole, part = analysed(*nets), analysed(nets[0], limit=40)
    for name in ("clean_norm", "clean_margin", "clean_angle", "norm", "margin", "angle", "confidence"):
        # a rounding of float32 may tip the last of float16's 11 bits
        assert part.arrays[name][0] == pytest.approx(whole.arrays[name][0][..., :40], rel=2e-3, abs=2e-3)
    assert np.array_equal(part.arrays["predicted"][0], whole.arrays["predicted"][0][..., :40])
    assert part.info["samples"] == 40
    assert analysed(nets[0], limit=10_000).info["samples"] == 64


def test_every_pixel_batch_is_made_once_and_shown_to_all(nets, monkeypatch):
    made = []

    def counting(pixels, kind, severity, generator):
        made.append((kind, severity, len(pixels)))
        return corrupt(pixels, kind, severity, generator)

    monkeypatch.setattr(analysis, "corrupt", counting)
    analysed(*nets)
    assert sorted(made) == sorted((kind, severity, 64) for kind in KINDS for severity in (1, 3, 5))


def test_a_model_with_another_normalisation_sees_the_same_pixels(nets):
    """The first layer has no bias: a network made for pixels · 2 − 1 is wrapped so that it computes what the first does."""
    task = make_task()
    spec = task.contract.inputs[0]

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nets[0]

        def forward(self, x):
            return self.net((x * 0.5 + 0.5 - spec.mean[0]) / spec.std[0])

    other = task.contract.model_copy(update={"inputs": (spec.model_copy(update={"mean": (0.5,), "std": (0.5,)}),)})
    bundles = [("own", FakeBundle(task.contract, nets[0])), ("other", FakeBundle(other, Wrapped().eval()))]
    record = analyse_models(bundles, task, corruptions=KINDS, severities=(2,), device="cpu", progress=LogProgress())
    margins = record.arrays["clean_margin"]
    assert margins[1] == pytest.approx(margins[0], rel=1e-3, abs=1e-4)  # float32, normalised twice


def test_progress_counts_every_image(nets):
    class Counting:
        total = done = 0.0

        def meter(self, _label, total, _unit, *, done=0):
            self.total += total
            return self

        def advance(self, units=1, **_figures):
            self.done += units

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    progress = Counting()
    analysed(nets[0], progress=progress, limit=50)
    assert progress.done == progress.total == 50 * (1 + 3 * 3)


def test_thumbnails_are_of_the_named_samples_and_small(nets):
    record = analysed(*nets)
    pixels = make_task().samples("test").__getitems__(record.arrays["image_index"].tolist()).pixels
    assert np.array_equal(record.arrays["images"], pixels.numpy())
    worst = [fall["index"] for fall in record.info["worst_samples"]]
    assert record.arrays["image_index"][: len(worst)].tolist() == worst
    assert len(set(record.arrays["image_index"].tolist())) == 64
    large = analysis._thumbnails(torch.full((2, 3, 300, 100), 9, dtype=torch.uint8))
    assert large.shape == (2, 3, 64, 21)
    assert (large == 9).all()


@pytest.mark.parametrize(
    "size", [{}, {"models": 1}, {"corruptions": 1}, {"samples": 3, "images": 9}, {"channels": 3, "side": 64}]
)
def test_a_record_comes_back_as_it_was(size, tmp_path):
    record = synthetic_record(**size)
    folder = record.save(tmp_path / "analysis")
    for path in (folder, folder / JSON):
        back = AnalysisRecord.load(path)
        assert back.info == record.info
        assert same_arrays(back, record)
    with pytest.raises(UserError, match="not empty"):
        record.save(folder)
    record.save(folder, force=True)


def test_a_real_record_comes_back(nets, tmp_path):
    record = analysed(*nets, kinds=())
    assert len(record.info["corruptions"]) >= 10
    back = AnalysisRecord.load(record.save(tmp_path / "analysis"))
    assert back.info == record.info
    assert same_arrays(back, record)


def test_no_half_record_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("trimtab.compress.analyse.analysis_record.files.write_bytes", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        synthetic_record().save(tmp_path / "analysis")
    assert list(tmp_path.iterdir()) == []


def rewrite(folder, **changes):
    info = json.loads((folder / JSON).read_text())
    (folder / JSON).write_text(json.dumps({**info, **changes}))


def test_damaged_records_are_refused(tmp_path):
    with pytest.raises(UserError, match="no analysis"):
        AnalysisRecord.load(tmp_path)
    folder = synthetic_record().save(tmp_path / "a")
    for changes, words in (
        ({"format": 9}, "has format 9"),
        ({"extra": 1}, "extra"),
        ({"samples": "many"}, "samples"),
        ({"samples": 7}, "array 'targets'"),
        ({"severity_kept": 2}, "severity_kept=2"),
        ({"clean_accuracy": [0.5]}, "clean_accuracy is not a table of 3"),
        ({"clean_accuracy": [0.5, float("nan"), 1.0]}, "finite"),
        ({"classes": ["only"]}, "table"),
    ):
        synthetic_record().save(folder, force=True)
        rewrite(folder, **changes)
        with pytest.raises(UserError, match=words):
            AnalysisRecord.load(folder)
    record = synthetic_record()
    with pytest.raises(UserError, match=r"array 'margin' is float64"):
        replace(record, arrays={**record.arrays, "margin": record.arrays["margin"].astype(float)})
    with pytest.raises(UserError, match="names a class"):
        replace(record, arrays={**record.arrays, "targets": record.arrays["targets"] + 100})
    synthetic_record().save(folder, force=True)
    np.savez(folder / NPZ, targets=np.array([object()]))
    with pytest.raises(UserError, match=r"lacks|pickled"):
        AnalysisRecord.load(folder)


def test_what_cannot_be_analysed_is_refused_by_name(nets):
    task = make_task()
    net = nets[0]

    def bundle(**changes):
        return FakeBundle(task.contract.model_copy(update=changes), net)

    def run(*bundles, **more):
        return analyse_models(bundles, more.pop("task", task), device="cpu", progress=LogProgress(), **more)

    good = ("dense", bundle())
    five, swapped = tuple(f"class {k}" for k in range(5)), task.contract.classes[::-1]
    larger = image_classifier(channels=1, height=16, width=16, classes=task.contract.classes, mean=(0.5,), std=(0.5,))
    for bad, words in (
        (bundle(classes=five), "pruned has 5 classes, toy has 4"),
        (bundle(classes=swapped), "pruned knows the classes of toy in another order"),
        (bundle(classes=("shoe", *task.contract.classes[1:])), "pruned calls a class 'shoe' where toy says 'class 0'"),
        (FakeBundle(larger, net), "pruned takes images of 1×16×16 .*, toy delivers 1×8×8"),
        (FakeBundle(task.contract.model_copy(update={"classes": ()}), make_net(classes=5)), "pruned answers with 5 numbers"),
    ):
        with pytest.raises(UserError, match=words):
            run(good, ("pruned", bad))
    with pytest.raises(UserError, match="no model"):
        run()
    with pytest.raises(UserError, match="two models are called 'dense'"):
        run(good, good)
    with pytest.raises(UserError, match="limit=-1"):
        run(good, limit=-1)
    with pytest.raises(UserError, match=r"unknown corruption 'fogg'(.|\n)*'fog'"):
        run(good, corruptions=("fogg",))
    with pytest.raises(UserError, match="1…5"):
        run(good, severities=(0, 1))


def test_a_routed_network_is_refused_in_words():
    task = make_task()
    routed = RoutedNet(make_net(), RouteSpec(branches=((), ())))
    with pytest.raises(UserError, match=r"both is a routed network(.|\n)*leave this network out"):
        analyse_models([("both", FakeBundle(task.contract, routed))], task, device="cpu", progress=LogProgress())
