"""The game's step: balanced gradients against plain autograd, the critics' turn, collapse."""

from __future__ import annotations

import math
import types

import pytest
import torch
from isp_training_kit import ToyIsp, feature_net, smooth, tiny_isp
from torch import nn

from trimtab.compress.loop import TrainBatch
from trimtab.compress.procedures.isp_balance import balance, length, linear
from trimtab.compress.procedures.isp_features import Eyes, check_size
from trimtab.compress.procedures.isp_game import Game, critic_step, make_critics
from trimtab.compress.procedures.isp_losses import blurred, grey, lightness
from trimtab.compress.procedures.isp_objective import IspObjective
from trimtab.compress.procedures.unpaired_isp import TERMS, IspConfig
from trimtab.models.errors import UserError

torch.set_num_threads(1)
CRITICS = TERMS[2:]


def eyes(**more):
    made = {"content": feature_net(0, (2,)), "texture": feature_net(1, (0, 2)), "colour": feature_net(2, (1,))}
    return Eyes(**{**made, **more})


def game(config, seeing, seed=0):
    return Game(tiny_isp(), make_critics(config.strengths(), seeing.sizes(32, 32), width=0.05, seed=seed))


def one_batch(count=3):
    task = ToyIsp()
    raw = task.samples("train").__getitems__(range(count))
    return task, TrainBatch(task.inputs(raw), task.references(raw), raw.index, 0.0)


def objective(config, *, seed=0, **more):
    seeing = more.pop("eyes", None) or eyes()
    playing = more.pop("game", None) or game(config, seeing)
    task, batch = one_batch()
    return IspObjective(playing, seeing, config, pictures=task.unpaired, seed=seed, **more), playing, batch, task


def plainly(playing, seeing, batch, real):
    """Every term as a plain function of the weights: 2·Σ(Δ²)/(C·H·W), TV, and the three pairings."""
    made = playing.network(batch.inputs)
    three = lambda x: lightness(x).expand(-1, 3, -1, -1)  # noqa: E731
    content = seeing.content(three(made))[0], seeing.content(three(batch.targets))[0]
    found = {"content": 2 * ((content[0] - content[1]) ** 2).sum() / content[0][0].numel()}
    n, c, h, w = made.shape
    dx, dy = made.diff(dim=3), made.diff(dim=2)
    found["tv"] = 2 * (0.5 * (dx**2).sum() / ((w - 1) * h * c) + 0.5 * (dy**2).sum() / ((h - 1) * w * c)) / n
    texture = seeing.texture(grey(made)), seeing.texture(grey(real))
    colour = seeing.colour(blurred(made, 3.0)), seeing.colour(blurred(real, 3.0))
    for name, (fake, true) in zip(
        CRITICS,
        ((texture[0][0], texture[1][0]), (texture[0][1], texture[1][1]), (colour[0][0], colour[1][0])),
        strict=True,
    ):
        critic = playing.critics[name]
        found[name] = torch.log1p(torch.exp(-(critic(fake) - critic(true)))).mean()
    return found


@pytest.mark.parametrize("by", ["gradient-norm", "none"])
def test_the_gradient_is_that_of_the_balanced_sum(by):
    config = IspConfig(balance=by, content=0.5, colour=2.0, critic_every=10)
    step, playing, batch, task = objective(config)
    playing.steps += 1  # a step in which the critics rest
    loss, parts = step(playing, batch)
    loss.backward()
    real = task._pool[task.asked[0]]
    terms = plainly(playing, step.eyes, batch, real)
    weights = list(playing.network.parameters())
    wanted = [torch.zeros_like(p) for p in weights]
    total = 0.0
    for name, value in terms.items():
        gradients = torch.autograd.grad(value, weights, retain_graph=True)
        norm = math.sqrt(sum((g**2).sum().item() for g in gradients))
        factor = config.strengths()[name] / (norm + 1e-8) if by == "gradient-norm" else config.strengths()[name]
        wanted = [a + factor * g for a, g in zip(wanted, gradients, strict=True)]
        total += factor * value.item()
        # two orders of float32 sums; the smallest norms come from differences of nearly equal numbers
        assert parts[name].item() == pytest.approx(value.item(), rel=1e-5)
        assert parts[f"norm_{name}"].item() == pytest.approx(norm, rel=1e-3)
    assert loss.item() == pytest.approx(total, rel=1e-3)
    size = max(g.abs().max().item() for g in wanted)
    for parameter, expected in zip(weights, wanted, strict=True):
        # relative to the largest entry: the colour and texture parts are normalised from norms near 1e-4, with their rounding
        assert torch.allclose(parameter.grad, expected, atol=1e-4 * size if by == "gradient-norm" else 1e-6 * size)
    assert all(p.grad is None for critic in playing.critics.values() for p in critic.parameters())


def test_the_gradient_in_double_precision_to_a_millionth():
    """The same, without float32's rounding in the small norms."""
    config = IspConfig()
    seeing = eyes()
    for net in (seeing.content, seeing.texture, seeing.colour):
        net.double()
    step, playing, batch, task = objective(config, eyes=seeing, game=game(config, eyes()).double())
    playing.steps += 1
    batch = TrainBatch(batch.inputs.double(), batch.targets.double(), batch.index, 0.0)
    step.pictures = lambda count, generator: task.unpaired(count, generator).double()
    loss, _ = step(playing, batch)
    loss.backward()
    terms = plainly(playing, seeing, batch, task._pool[task.asked[0]].double())
    weights = list(playing.network.parameters())
    wanted = [torch.zeros_like(p) for p in weights]
    for value in terms.values():
        gradients = torch.autograd.grad(value, weights, retain_graph=True)
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        wanted = [a + g / (norm + 1e-8) for a, g in zip(wanted, gradients, strict=True)]
    for parameter, expected in zip(weights, wanted, strict=True):
        assert torch.allclose(parameter.grad, expected, rtol=1e-6, atol=1e-6)


def test_every_term_pushes_with_its_strength():
    """With one term alone the whole gradient has the length of its strength, whatever the term's own scale."""
    for name in TERMS:
        config = IspConfig(**{t: 3.0 if t == name else 0.0 for t in TERMS}, critic_every=100)
        step, playing, batch, _ = objective(config)
        playing.steps += 1
        loss, parts = step(playing, batch)
        loss.backward()
        got = math.sqrt(sum((p.grad**2).sum().item() for p in playing.network.parameters()))
        # 1e-8 beside a norm of 1e-4 or more
        assert got == pytest.approx(3.0, rel=1e-3)
        assert set(parts) == {name, f"norm_{name}"} | ({f"critic_{name}", f"penalty_{name}"} if name in CRITICS else set())


def test_the_critics_learn_in_their_own_steps_alone():
    config = IspConfig(critic_every=3, penalty=10.0)
    step, playing, batch, _ = objective(config)
    turns = []
    for number in range(7):
        for p in playing.parameters():
            p.grad = None
        loss, parts = step(playing, batch)
        loss.backward()
        moved = {name: [p.grad is not None for p in critic.parameters()] for name, critic in playing.critics.items()}
        turns.append(all(all(flags) for flags in moved.values()))
        assert turns[-1] or not any(any(flags) for flags in moved.values())
        assert int(playing.steps) == number + 1
    assert turns == [True, False, False, True, False, False, True]
    assert all(parts[f"penalty_{name}"] > 0 for name in CRITICS)


def test_a_critics_gradient_is_its_losses_clipped():
    config = IspConfig(critic_every=1, penalty=10.0)
    step, playing, batch, task = objective(config)
    loss, parts = step(playing, batch)
    loss.backward()
    real = task._pool[task.asked[0]]
    with torch.no_grad():
        maps = step.eyes.texture(grey(playing.network(batch.inputs)))[1], step.eyes.texture(grey(real))[1]
    critic = playing.critics["texture_deep"]
    fake, true = (m.detach().requires_grad_() for m in maps)
    scores = critic(true), critic(fake)
    slopes = [torch.autograd.grad(s.sum(), m, create_graph=True)[0] for s, m in zip(scores, (true, fake), strict=True)]
    squares = [slope.flatten(1).square().sum(1) for slope in slopes]
    penalties = squares[0].mean() + squares[1].mean()
    whole = torch.log1p(torch.exp(-(scores[0] - scores[1]))).mean() + 5.0 * penalties
    for p, g in zip(critic.parameters(), torch.autograd.grad(whole, list(critic.parameters()), allow_unused=True), strict=True):
        expected = torch.zeros_like(p) if g is None else g
        assert torch.allclose(p.grad, expected, atol=1e-6)
    assert parts["penalty_texture_deep"].item() == pytest.approx(penalties.item(), rel=1e-4)
    assert parts["critic_texture_deep"].item() == pytest.approx((whole - 5 * penalties).item(), rel=1e-5)


def test_long_gradients_are_cut_to_length_one_and_short_ones_left():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    near = torch.rand(4, 3, 2, 2)
    for scale, cut in ((100.0, True), (0.01, False)):
        gradients, _, _ = critic_step(critic, near * scale, near.flip(0) * scale - scale, penalty=0.0, clip=1.0)
        free, _, _ = critic_step(critic, near * scale, near.flip(0) * scale - scale, penalty=0.0, clip=0.0)
        assert (length(free) > 1) == cut
        assert length(gradients).item() == pytest.approx(1.0 if cut else length(free).item(), rel=1e-4)


def test_every_layer_of_a_critic_moves():
    """The released code leaves the first linear layer of its texture critics as it was initialised."""
    config = IspConfig(critic_every=1)
    step, playing, batch, _ = objective(config)
    loss, _ = step(playing, batch)
    loss.backward()
    for name in ("texture_shallow", "texture_deep"):
        assert playing.critics[name].head[0].weight.grad.abs().sum() > 0


def test_pictures_depend_on_seed_and_step_alone():
    seen = []
    for seed, first in ((0, 0), (0, 0), (1, 0), (0, 5)):
        step, playing, batch, task = objective(IspConfig(), seed=seed)
        playing.steps += first
        step(playing, batch)
        seen.append(task.asked[-1])
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]
    assert seen[0] != seen[3]


def test_paired_critics_see_the_batchs_own_targets():
    config = IspConfig(mode="paired")
    step, playing, batch, task = objective(config)
    step.pictures = None
    step(playing, batch)
    assert task.asked == []


# ---------------------------------------------------------------- collapse


def test_a_constant_critic_is_counted_until_it_speaks_again():
    config = IspConfig(critic_every=1000)
    step, playing, batch, _ = objective(config)
    playing.steps += 1
    mute = playing.critics["texture_deep"].head[2]
    kept = mute.weight.detach().clone()
    nn.init.zeros_(mute.weight)
    for _ in range(4):
        step(playing, batch)
    assert playing.collapsed(3) == {"texture_deep": 4}
    assert playing.collapsed(5) == {}
    assert int(playing.still) == 0
    with torch.no_grad():
        mute.weight.copy_(kept)
    step(playing, batch)
    assert playing.collapsed(1) == {}


def test_a_critic_that_always_wins_is_counted():
    """Its scores differ by so much that softplus has no gradient left in float32 (loss exactly 0 for the critic)."""
    playing = Game(tiny_isp(), {"colour": nn.Identity()})
    for _ in range(2):
        playing.watch(0, torch.tensor([[200.0], [-200.0]]), torch.zeros(2, 3, 4, 4))
    assert playing.collapsed(2) == {"colour": 2}


def test_a_network_whose_last_relu_is_shut_is_counted():
    config = IspConfig()
    step, playing, batch, _ = objective(config)
    dead = nn.Sequential(*playing.network, nn.ReLU())
    nn.init.constant_(dead[2].bias, -100.0)
    playing.network = dead
    loss, _ = step(playing, batch)
    step(playing, batch)
    assert int(playing.still) == 2
    assert torch.isfinite(loss)


def test_a_term_that_is_not_finite_makes_the_loss_so_and_can_be_named():
    step, playing, batch, _ = objective(IspConfig())
    with torch.no_grad():
        playing.critics["colour"].judge[0].bias.fill_(float("nan"))
    loss, parts = step(playing, batch)
    assert not torch.isfinite(loss)
    assert next(name for name, value in parts.items() if not torch.isfinite(value)) == "colour"
    assert torch.isfinite(parts["content"])


# ---------------------------------------------------------------- pieces


def test_linear_is_zero_and_has_the_gradient_it_is_given():
    a, b = torch.rand(3, requires_grad=True), torch.rand(2, 2, requires_grad=True)
    wanted = torch.rand(3), torch.rand(2, 2)
    value = linear([a, b], wanted)
    value.backward()
    assert value.item() == 0
    assert torch.equal(a.grad, wanted[0])
    assert torch.equal(b.grad, wanted[1])


def test_a_term_without_gradient_gets_a_finite_factor():
    factors = balance({"a": torch.zeros(()), "b": torch.tensor(2.0)}, {"a": 1.0, "b": 3.0}, by_norm=True)
    assert factors["a"].item() == pytest.approx(1e8)
    assert factors["b"].item() == pytest.approx(1.5)
    assert length([None, torch.tensor([3.0]), torch.tensor([[4.0]])]).item() == 5


def test_critics_are_drawn_from_the_seed_and_only_where_they_are_wanted():
    shapes = dict.fromkeys(CRITICS, (4, 5, 6))
    state = lambda c: torch.cat([p.flatten() for p in c.parameters()])  # noqa: E731
    outer = torch.random.get_rng_state()
    a, b, c = (make_critics(dict.fromkeys(TERMS, 1.0), shapes, width=0.05, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), outer)
    assert list(a) == list(CRITICS)
    assert torch.equal(state(a["colour"]), state(b["colour"]))
    assert not torch.equal(state(a["colour"]), state(c["colour"]))
    assert not torch.equal(a["texture_deep"].convolutions[0].weight, a["texture_shallow"].convolutions[0].weight)
    assert list(make_critics({**dict.fromkeys(TERMS, 1.0), "texture_deep": 0.0}, shapes, width=0.05, seed=0)) == [
        "texture_shallow",
        "colour",
    ]


def test_the_eyes_show_lightness_or_colours_and_resize_for_a_transformer():
    seeing, pictures = eyes(), smooth(2, 9)
    swapped = pictures[:, [2, 1, 0]]
    assert not torch.allclose(seeing.content_maps(pictures), seeing.content_maps(swapped))
    plain = eyes(luminance=False)
    assert torch.equal(plain.content_maps(pictures), plain.content(pictures)[-1])
    assert [tuple(m.shape[2:]) for m in seeing.texture_maps(pictures)] == [(32, 32), (16, 16)]
    assert seeing.sizes(32, 32)["colour"] == (16, 32, 32)
    assert eyes(colour_size=48).sizes(32, 32)["colour"] == (16, 48, 48)


def test_small_pictures_are_refused():
    check_size(11, 64)
    with pytest.raises(UserError, match=r"pictures of 10×64 are too small for a Gaussian of 21×21 pixels\n.*size=128,128"):
        check_size(10, 64)


def test_a_network_that_makes_no_pictures_is_refused():
    step, playing, batch, _ = objective(IspConfig())
    playing.network = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    with pytest.raises(UserError, match=r"shape \(3, 4\), and the targets are \(3, 3, 32, 32\)\n.*efficient_isp"):
        step(playing, types.SimpleNamespace(inputs=batch.inputs, targets=batch.targets))
