"""Hybrid distillation: token relations, token features and the masking of redundant tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch import nn
from training_kit import FakeBundle, make_context, make_net, make_task, same, weights

from trimtab.compress.distill.masking import (
    TokenMaskingConfig,
    distinct_tokens,
    kept_tokens,
    stage_shares,
    take_tokens,
)
from trimtab.compress.distill.method import DistillConfig, build_terms, distill
from trimtab.compress.distill.objectives import objectives, parse_term
from trimtab.compress.distill.relations import log_relations, relation_losses
from trimtab.compress.distill.setup import RunSetup
from trimtab.compress.distill.taps import Taps
from trimtab.compress.distill.term import Signals
from trimtab.compress.distill.tokens import token_loss
from trimtab.compress.runtime import Runtime
from trimtab.models.architectures import architectures
from trimtab.models.errors import UserError

torch.set_num_threads(1)
CONFIG = DistillConfig(epochs=2, batch_size=16, optimizer="adamw", lr=2e-3, amp="off", checkpoint_s=1000, augment=False)


def vit(seed=0, **more):
    torch.manual_seed(seed)
    made = {"in_channels": 1, "image_size": 8, "patch": 2, "dim": 16, "depth": 4, "heads": 2, "num_classes": 4} | more
    module = architectures.get("vit_nano")(**made)
    with torch.no_grad():
        for parameter in module.parameters():  # attention of small initial values is nearly uniform
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return module


def setup_of(folder, student, teacher):
    task = make_task()
    context = make_context(folder, parent=FakeBundle(task.contract, teacher))
    return RunSetup(student, task, CONFIG, context, Runtime("cpu"))


def term_of(setup, **table):
    return build_terms([parse_term(table)], setup)[0]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def as32(*arrays):
    return [torch.tensor(a, dtype=torch.float32) for a in arrays]


# ---------------------------------------------------------------- relations


def relations_by_loops(qkv, heads):
    """(QK, VV) as lists [n][h] of (T, T), in float64: columns of one head lie together in each third."""
    qk, vv = [], []
    for sample in qkv:
        q, k, v = np.split(sample, 3, axis=1)
        d = q.shape[1] // heads
        parts = [slice(h * d, (h + 1) * d) for h in range(heads)]
        qk.append([softmax(q[:, s] @ k[:, s].T / np.sqrt(d), axis=1) for s in parts])
        vv.append([softmax(v[:, s] @ v[:, s].T / np.sqrt(d), axis=1) for s in parts])
    return np.array(qk), np.array(vv)


@pytest.mark.parametrize(("width", "teacher_width"), [(8, 8), (8, 12)])
def test_relation_losses_by_loops(width, teacher_width):
    """Σ_k p·log(p/q), mean over images, heads and queries, of scipy in float64; float32 logits of order 1: 1e-5 relative."""
    ours, theirs = normal(3, 5, 3 * width), normal(3, 5, 3 * teacher_width, seed=1)
    expected = [
        rel_entr(p, q).sum(-1).mean() for q, p in zip(relations_by_loops(ours, 2), relations_by_loops(theirs, 2), strict=True)
    ]
    got = relation_losses(*as32(ours, theirs), heads=2)
    assert [v.item() for v in got] == pytest.approx(expected, rel=1e-5)


def test_relations_are_distributions_and_vv_knows_no_queries():
    qkv = torch.from_numpy(normal(2, 5, 24))
    qk, vv = log_relations(qkv, 4)
    torch.testing.assert_close(qk.exp().sum(-1), torch.ones(2, 4, 5))
    other = qkv.clone()
    other[..., :16] = 0
    assert torch.equal(log_relations(other, 4)[1], vv)
    assert not torch.allclose(log_relations(other, 4)[0], qk)


def test_relation_losses_of_equals_are_zero_with_zero_gradient_and_rotations_do_not_matter():
    """Q·Kᵀ and V·Vᵀ of one head stay when its vectors are rotated together: the loss asks for relations, not for features."""
    qkv = torch.tensor(normal(2, 5, 12), dtype=torch.float32, requires_grad=True)
    rotation = torch.tensor(np.linalg.qr(normal(4, 4))[0], dtype=torch.float32)
    turned = (qkv.detach().unflatten(-1, (3, 4)) @ rotation).flatten(2)
    for teacher in (qkv.detach(), turned):
        loss = sum(relation_losses(qkv, teacher, heads=1))
        (gradient,) = torch.autograd.grad(loss, qkv)
        # float32 rounding of logits of order 1
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert gradient.abs().max() < 1e-6


def test_relation_gradients_are_right_and_the_students_alone():
    """torch's finite differences in float64 would be undone by .float(): central differences of step 1e-2 along one direction."""
    ours, theirs = as32(normal(2, 4, 12), normal(2, 4, 12, seed=1))
    direction = torch.tensor(normal(2, 4, 12, seed=2), dtype=torch.float32)
    ours.requires_grad_(True)
    (gradient,) = torch.autograd.grad(sum(relation_losses(ours, theirs, heads=2)), ours)
    with torch.no_grad():
        up, down = (sum(relation_losses(ours + s * direction, theirs, heads=2)) for s in (1e-2, -1e-2))
    # third derivative times step²/6, and float32 rounding of the losses over the step: together below 0.5 %
    assert (gradient * direction).sum().item() == pytest.approx((up - down).item() / 2e-2, rel=5e-3)


def test_unlike_relations_are_refused():
    a, b = torch.zeros(2, 5, 12), torch.zeros(2, 6, 12)
    with pytest.raises(ValueError, match=r"student \(2, 5, 12\) in 2 heads, teacher \(2, 6, 12\) in 2: not alike"):
        relation_losses(a, b, heads=2)
    with pytest.raises(ValueError, match=r"in 2 heads, teacher .* in 4: not alike"):
        relation_losses(a, a, heads=2, teacher_heads=4)


def test_the_term_takes_the_last_two_blocks_by_itself(tmp_path):
    setup = setup_of(tmp_path, vit(), vit(1))
    term = term_of(setup, kind="relations", qk_weight=2.0, vv_weight=0.5)
    paths = ("blocks.2.attn.qkv", "blocks.3.attn.qkv")
    assert term.student == term.teachers[0].taps == paths
    ours, theirs = (
        {path: torch.from_numpy(normal(2, 17, 48, seed=10 * i + s)) for i, path in enumerate(paths)} for s in (0, 1)
    )
    losses = [relation_losses(ours[path], theirs[path], heads=2) for path in paths]
    expected = sum(2 * qk + 0.5 * vv for qk, vv in losses) / 2
    assert term.loss(Signals(None, ours, {"teacher": theirs})).item() == pytest.approx(expected.item(), rel=1e-6)


def test_networks_of_other_depths_are_paired_from_the_end_or_by_name(tmp_path):
    setup = setup_of(tmp_path, vit(depth=2), vit(1, depth=5))
    by_name = term_of(setup, kind="relations", student_layers=("blocks.1.attn.qkv",), teacher_layers=("blocks.2.attn.qkv",))
    assert (by_name.student, by_name.teachers[0].taps) == (("blocks.1.attn.qkv",), ("blocks.2.attn.qkv",))
    by_itself = term_of(setup, kind="relations")
    assert by_itself.student == ("blocks.0.attn.qkv", "blocks.1.attn.qkv")
    assert by_itself.teachers[0].taps == ("blocks.3.attn.qkv", "blocks.4.attn.qkv")


def test_other_numbers_of_heads_want_a_common_split(tmp_path):
    setup = setup_of(tmp_path, vit(), vit(1, dim=24, heads=3))
    with pytest.raises(UserError, match=r"of the student has 2 heads, .* of the teacher 3[\s\S]*relation_heads = 2"):
        term_of(setup, kind="relations")
    term = term_of(setup, kind="relations", relation_heads=4)
    path = term.student[-1]
    ours, theirs = ({p: torch.from_numpy(normal(2, 17, w)) for p in term.student} for w in (48, 72))
    expected = sum(relation_losses(ours[path], theirs[path], heads=4)).item()
    assert term.loss(Signals(None, ours, {"teacher": theirs})).item() == pytest.approx(expected, rel=1e-6)


class TestRelationRefusals:
    def test_no_transformer(self, tmp_path):
        with pytest.raises(UserError, match=r"the student has no layers called blocks.….attn.qkv[\s\S]*student_layers = "):
            term_of(setup_of(tmp_path, make_net(), vit()), kind="relations")
        with pytest.raises(UserError, match=r"the teacher has no module 'blocks.2.attn.qkv'"):
            term_of(setup_of(tmp_path, vit(), make_net()), kind="relations", student_layers=("blocks.2.attn.qkv",))
        with pytest.raises(UserError, match=r"the teacher has no layers called blocks"):
            term_of(setup_of(tmp_path, vit(), make_net()), kind="relations")

    def test_a_layer_that_makes_no_tokens(self, tmp_path):
        with pytest.raises(UserError, match=r"'head' of the student returns \(4,\) for one image, not \(tokens, 3·d\)"):
            term_of(setup_of(tmp_path, vit(), vit()), kind="relations", student_layers=("head",))

    def test_other_tokens(self, tmp_path):
        with pytest.raises(UserError, match=r"'blocks.2.attn.qkv' of the student has 17 tokens, .* of the teacher 5"):
            term_of(setup_of(tmp_path, vit(), vit(patch=4)), kind="relations")

    def test_heads_that_do_not_divide(self, tmp_path):
        with pytest.raises(UserError, match=r"is 16 wide: it can't be split into 3 heads"):
            term_of(setup_of(tmp_path, vit(), vit()), kind="relations", relation_heads=3)

    def test_heads_that_nobody_tells(self, tmp_path):
        student, teacher = vit(), vit()
        setup = setup_of(tmp_path, student, teacher)
        setup.student_shape("blocks.3.attn.qkv")
        shapes = {path: setup.student_shape(path) for path in ("blocks.2.attn.qkv", "blocks.3.attn.qkv")}
        setup.student_shape = shapes.__getitem__
        for block in student.blocks:
            del block.attn.num_heads
        with pytest.raises(UserError, match=r"'blocks.2.attn' does not say how many heads it has[\s\S]*set heads = "):
            term_of(setup, kind="relations")
        assert term_of(setup, kind="relations", heads=2).student == tuple(shapes)

    def test_lists_that_do_not_pair(self):
        with pytest.raises(ValueError, match=r"relations: .*1 student_layers and 2 teacher_layers: they go in pairs"):
            parse_term({"kind": "relations", "student_layers": ("a",), "teacher_layers": ("a", "b")})


# ---------------------------------------------------------------- tokens


def normalised(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


@pytest.mark.parametrize("beta", [0.3, 1.0, 2.0])
def test_smooth_l1_of_tokens_by_numpy(beta):
    """float32 features of order 1: 1e-5 relative."""
    ours, theirs = 3 * normal(2, 5, 8) + 1, normal(2, 5, 8, seed=1)
    x = np.abs(normalised(ours) - normalised(theirs))
    expected = np.where(x < beta, x**2 / (2 * beta), x - beta / 2).mean()
    assert token_loss(*as32(ours, theirs), beta=beta).item() == pytest.approx(expected, rel=1e-5)


def test_cosine_of_tokens_by_numpy():
    ours, theirs = normal(2, 5, 8), normal(2, 5, 8, seed=1)
    a, b = normalised(ours), normalised(theirs)
    expected = 1 - ((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).mean()
    assert token_loss(*as32(ours, theirs), distance="cosine").item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("distance", ["smooth-l1", "cosine"])
def test_tokens_of_equals_are_zero_whatever_their_scale_and_offset(distance):
    theirs = torch.tensor(normal(2, 5, 8), dtype=torch.float32)
    ours = (3 * theirs - 7).requires_grad_(True)
    loss = token_loss(ours, theirs, distance=distance)
    loss.backward()
    # the layer norm's 1e-5 beside variances of 1 and 9
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert ours.grad.abs().max() < 1e-5
    with pytest.raises(ValueError, match=r"student tokens \(2, 5, 8\), teacher tokens \(2, 5, 9\): not alike"):
        token_loss(ours, torch.zeros(2, 5, 9))


def test_a_projector_where_the_widths_differ_and_none_where_they_do_not(tmp_path):
    assert term_of(setup_of(tmp_path, vit(), vit(1)), kind="tokens").head is None
    term = term_of(setup_of(tmp_path, vit(), vit(1, dim=24)), kind="tokens", distance="cosine")
    taps, theirs = {"norm": torch.randn(3, 17, 16)}, {"norm": torch.randn(3, 17, 24)}
    projected = term.head(taps)
    assert projected.shape == (3, 17, 24)
    loss = term.loss(Signals(None, taps, {"teacher": theirs}, projected))
    assert loss.item() == pytest.approx(token_loss(projected, theirs["norm"], distance="cosine").item())


def test_token_refusals(tmp_path):
    with pytest.raises(UserError, match=r"'norm' of the student has 17 tokens, 'norm' of the teacher 5"):
        term_of(setup_of(tmp_path, vit(), vit(patch=4)), kind="tokens")
    with pytest.raises(UserError, match=r"'head' of the student returns \(4,\) for one image, not \(tokens, features\)"):
        term_of(setup_of(tmp_path, vit(), vit()), kind="tokens", student_layer="head")
    with pytest.raises(UserError, match=r"the teacher has no module 'norms'\n.*did you mean 'norm'"):
        term_of(setup_of(tmp_path, vit(), vit()), kind="tokens", teacher_layer="norms")
    with pytest.raises(ValueError, match="tokens: distance = 'l2'"):
        parse_term({"kind": "tokens", "distance": "l2"})


# ---------------------------------------------------------------- masking


def test_the_least_redundant_tokens_by_loops():
    tokens = normal(4, 9, 6)
    got = distinct_tokens(torch.from_numpy(tokens), 5, 2)
    for n in range(4):
        unit = [t / np.linalg.norm(t) for t in tokens[n]]
        score = {i: np.mean([unit[i] @ unit[j] for j in range(2, 9) if j != i]) for i in range(2, 9)}
        expected = [0, 1, *sorted(sorted(score, key=score.__getitem__)[:5])]
        assert got[n].tolist() == expected


def test_copies_go_first_and_taking_follows_positions():
    tokens = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    tokens[:, 5] = tokens[:, 3] = tokens[:, 7]
    kept = distinct_tokens(tokens, 4, 1)
    assert kept.tolist() == [[0, 1, 2, 4, 6]] * 2
    assert torch.equal(take_tokens(tokens, kept), tokens[:, [0, 1, 2, 4, 6]])
    assert torch.equal(take_tokens(tokens[..., 0], kept), tokens[:, [0, 1, 2, 4, 6], 0])


@pytest.mark.parametrize(
    ("depth", "stages", "expected"),
    [
        (12, (0.33, 0.66), {4: 0.85, 8: 0.7}),
        (4, (0.33, 0.66), {1: 0.85, 3: 0.7}),
        (12, (0.25, 0.5, 0.75), {3: 0.9, 6: 0.8, 9: 0.7}),
        (2, (0.33, 0.66), {1: 0.7}),  # both stages fall on the only place between two blocks
        (3, (0.01, 0.99), {1: 0.85, 2: 0.7}),
    ],
)
def test_stages_by_hand(depth, stages, expected):
    assert stage_shares(depth, TokenMaskingConfig(ratio=0.3, stages=stages)) == pytest.approx(expected)


class Passing(nn.Module):
    """A transformer of blocks that change nothing."""

    def __init__(self, depth=4):
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Identity() for _ in range(depth)))

    def forward(self, x):
        return self.blocks(x)


class BareSetup:
    """A student and nothing else."""

    seed = 0

    def __init__(self, student):
        self.student = student

    def student_module(self, path):
        return self.student.get_submodule(path)


def test_tokens_are_dropped_in_stages_in_training_alone_and_positions_are_those_of_the_whole_image():
    student, x = Passing(), torch.randn(3, 21, 8, generator=torch.Generator().manual_seed(0))
    setup = BareSetup(student)
    term = term_of(setup, kind="token-masking", ratio=0.5)
    kept = {f"blocks.{i}.x": kept_tokens(setup, f"blocks.{i}.x") for i in range(4)} | {"norm": kept_tokens(setup, "norm")}
    seen = []
    watches = [block.register_forward_hook(lambda _m, _a, out: seen.append(out)) for block in student.blocks]
    handles = term.hooks(student)
    logits = {"logits": torch.zeros(3, 2)}

    student.train()(x)
    assert [out.shape[1] for out in seen] == [21, 16, 16, 11]  # 20 patches, 15, 10, and the class token
    positions = [kept[f"blocks.{i}.x"]() for i in range(4)]
    assert positions[0] is None
    for out, place in zip(seen[1:], positions[1:], strict=True):
        assert torch.equal(out, take_tokens(x, place))
        assert (place[:, 0] == 0).all()
        assert (place.diff(dim=1) > 0).all()
    assert torch.equal(kept["norm"](), positions[3])
    assert term.loss(Signals(None, logits, {})).item() == pytest.approx(0.5)

    assert torch.equal(student.eval()(x), x)
    assert all(tell() is None for tell in kept.values())
    assert term.loss(Signals(None, logits, {})).item() == 0

    for handle in (*handles, *watches):
        handle.remove()
    assert torch.equal(student.train()(x), x)
    assert all(tell() is None for tell in kept.values())


@pytest.mark.parametrize("kind", ["relations", "tokens"])
def test_a_term_compares_the_tokens_that_are_left_with_the_same_ones_of_the_whole_teacher(tmp_path, kind):
    """Taps of the student in training against the teacher's taps gathered by hand."""
    student, teacher = vit(), vit(1).eval()
    setup = setup_of(tmp_path, student, teacher)
    masking, term = build_terms([parse_term({"kind": "token-masking"}), parse_term({"kind": kind})], setup)
    handles = masking.hooks(student)
    x = torch.randn(3, 1, 8, 8)
    ours, theirs = (Taps(net, term.student, whose="x") for net in (student, teacher))
    with ours.recording(), theirs.recording(), torch.no_grad():
        mine, its = ours.take(student.train()(x)), theirs.take(teacher(x))
    got = term.loss(Signals(None, mine, {"teacher": its}))
    expected = []
    for path in term.student:
        place = kept_tokens(setup, path)()
        assert mine[path].shape[1] == place.shape[1] == {"blocks.2.attn.qkv": 15}.get(path, 12)  # 1 + 16·(0.85, 0.7), rounded
        whole = torch.stack([its[path][n, place[n]] for n in range(3)])
        expected.append(token_loss(mine[path], whole) if kind == "tokens" else sum(relation_losses(mine[path], whole, heads=2)))
    assert got.item() == pytest.approx(np.mean([e.item() for e in expected]), rel=1e-6)
    for handle in handles:
        handle.remove()


def test_masking_refusals():
    student = Passing()
    term = term_of(BareSetup(student), kind="token-masking")
    term.hooks(student)
    with pytest.raises(UserError, match="token-masking is there twice"):
        term.hooks(student)
    with pytest.raises(UserError, match="drops tokens between blocks, and the student has 1"):
        term_of(BareSetup(Passing(1)), kind="token-masking")
    for table, message in (
        ({"weight": 1.0}, "weight = 1.0"),
        ({"until": 0.5}, "during the whole run"),
        ({"ratio": 1.0}, "ratio = 1.0"),
        ({"stages": (0.6, 0.3)}, "must rise"),
        ({"stages": ()}, "stages = "),
    ):
        with pytest.raises(ValueError, match=f"token-masking: .*{message}"):
            parse_term({"kind": "token-masking", **table})


def test_no_blocks_no_masking(tmp_path):
    setup = setup_of(tmp_path, make_net(), vit())
    assert kept_tokens(setup, "0")() is None
    with pytest.raises(UserError, match="the student has no module 'blocks'"):
        term_of(setup, kind="token-masking")


# ---------------------------------------------------------------- the run


@pytest.fixture(scope="module")
def teachers():
    """One of the student's width, one wider: parent, and the first step's."""
    return vit(1), vit(2, dim=24)


def hybrid(folder, teachers, *, student=None, masking=True, seed=0, **more):
    task = make_task()
    parent, other = (FakeBundle(task.contract, net, hash=name) for net, name in zip(teachers, ("mim", "sup"), strict=True))
    context = dataclasses.replace(make_context(folder, parent=parent, seed=seed), steps=(other,))
    terms = [{"kind": "relations"}, {"kind": "tokens", "teacher": "step:1", "distance": "cosine"}]
    terms = [{"kind": "token-masking"}, *terms] if masking else terms
    config = DistillConfig(**{**CONFIG.model_dump(exclude={"objectives"}), "objectives": terms, **more})
    student = student or vit()
    return student, distill(student, task, config, context)


def test_two_teachers_and_masking_in_one_run(tmp_path, teachers):
    """Both terms fall; the projector and the hooks stay behind; the share of dropped tokens is recorded."""
    before = [weights(net) for net in teachers]
    student, result = hybrid(tmp_path, teachers, epochs=8)
    parts = [epoch["parts"] for epoch in result.figures["history"]["epochs"]]
    assert parts[-1]["relations"] < 0.9 * parts[0]["relations"]
    assert parts[-1]["tokens"] < 0.9 * parts[0]["tokens"]
    assert parts[0]["token-masking"] == parts[-1]["token-masking"] == pytest.approx(1 - 11 / 16)  # 16 · 0.7 = 11.2
    assert list(student.state_dict()) == list(vit().state_dict())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in student.modules())
    assert all(same(weights(net), old) for net, old in zip(teachers, before, strict=True))


def test_masking_changes_what_is_learnt_and_runs_repeat(tmp_path, teachers):
    ends = [
        weights(hybrid(tmp_path / name, teachers, masking=masking)[0])
        for name, masking in (("a", True), ("b", True), ("c", False))
    ]
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


def test_without_labels_the_classifier_is_left_alone(tmp_path, teachers):
    student = vit()
    before = weights(student.head)
    hybrid(tmp_path, teachers, student=student, label_weight=0.0, weight_decay=0.0)
    assert same(before, weights(student.head))


def test_signals_from_the_cache(tmp_path, teachers):
    """Clean images on both sides, so cached and live signals are the same up to the rounding of another batch: 1e-4."""
    live, cached = (
        hybrid(tmp_path / str(kept), teachers, cache_teacher=kept)[1].figures["history"]["epochs"][-1]["parts"]
        for kept in (False, True)
    )
    assert cached == pytest.approx(live, rel=1e-4)


def test_the_moving_average_as_teacher(tmp_path, teachers):
    student, result = hybrid(
        tmp_path, (vit(), vit()), teacher="ema", objectives=[{"kind": "token-masking"}, {"kind": "relations"}]
    )
    assert result.figures["history"]["epochs"][-1]["parts"]["relations"] > 0
    assert not any(part._forward_pre_hooks for part in student.modules())


def test_the_cards_say_what_is_from_memory():
    for kind in ("relations", "tokens", "token-masking"):
        card = objectives.entry(kind).card
        assert "memory" in card.source
        assert not card.needs_labels
