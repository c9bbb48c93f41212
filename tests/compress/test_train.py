"""What the engine computes, and what it leaves behind."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import safetensors
import torch
from torch import nn
from torch.nn import functional as F
from training_kit import CONFIG, make_context, make_net, make_task, same, task_loss, train, weights

from trimtab.compress.runtime import Runtime
from trimtab.compress.sampling import StepSampler, chosen_positions
from trimtab.compress.schedule import learning_rate, plan_run
from trimtab.compress.train import TrainConfig, evaluate, fit

torch.set_num_threads(1)


# ---------------------------------------------------------------- what is computed


def test_engine_computes_what_a_hand_written_loop_computes(tmp_path):
    """Bit for bit: same batches, plain torch operations in the same order; only the fused optimiser is shared."""
    config = CONFIG.model_copy(update={"augment": False, "channels_last": False, "warmup_epochs": 0.5})
    task, net, ours = make_task(), make_net(dropout=0.0), make_net(dropout=0.0)
    plan = plan_run(config, 96)
    pixels = torch.from_numpy(task.samples("train").images.pixels)
    targets = torch.from_numpy(task.samples("train").targets)
    plain = [p for p in net.parameters() if p.ndim < 2]
    heavy = [p for p in net.parameters() if p.ndim >= 2]
    groups = [{"params": heavy, "weight_decay": 5e-4}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True, fused=True)
    spec, losses = task.contract.inputs[0], []
    for step, rows in enumerate(StepSampler(torch.arange(96), plan, seed=3)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, plan, step)
        x = (pixels[rows].float() / 255 - spec.mean[0]) / spec.std[0]
        loss = F.cross_entropy(net(x), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    _, history = train(tmp_path, config, net=ours, task=task, seed=3)
    for mine, its in zip(weights(net).values(), weights(ours).values(), strict=True):
        torch.testing.assert_close(its, mine, rtol=0, atol=1e-6)  # the input is normalised in another order of operations
    assert [e.train_loss for e in history.epochs] == pytest.approx([np.mean(losses[:6]), np.mean(losses[6:])], abs=1e-6)
    assert history.steps == 12
    assert history.images == 192


def test_it_learns(tmp_path):
    """Four separable patterns: well above chance (0.25) after five epochs of a tiny network."""
    _, history = train(tmp_path, CONFIG.model_copy(update={"epochs": 5, "augment": False}))
    assert history.val["accuracy"] > 0.9
    assert history.epochs[-1].train_loss < history.epochs[0].train_loss


@pytest.mark.parametrize(("decay_norm_bias", "kept"), [(False, 1.0), (True, 1 - 0.1 * 0.5)])
def test_weight_decay_spares_norms_and_biases_unless_asked(tmp_path, decay_norm_bias, kept):
    """With a loss of gradient zero and no momentum, one step of SGD is w ← w(1 − lr·wd). float32: 1e-6 relative."""
    config = TrainConfig(
        epochs=0.1,
        batch_size=64,
        lr=0.1,
        momentum=0,
        nesterov=False,
        weight_decay=0.5,
        schedule="constant",
        amp="off",
        decay_norm_bias=decay_norm_bias,
    )
    net = make_net()
    nn.init.constant_(net[6].bias, 0.7)
    before = weights(net)
    train(tmp_path, config, net=net, objective=lambda network, batch: (0 * network(batch.inputs).sum(), {}))
    after = weights(net)
    torch.testing.assert_close(after["0.weight"], before["0.weight"] * 0.95, rtol=1e-6, atol=0)
    torch.testing.assert_close(after["6.bias"], before["6.bias"] * kept, rtol=1e-6, atol=0)
    torch.testing.assert_close(after["1.weight"], before["1.weight"] * kept, rtol=1e-6, atol=0)


def test_clip_norm_bounds_the_whole_gradient(tmp_path):
    """One plain SGD step with lr 1 moves the weights by exactly the clipped gradient: its norm is clip_norm (float32, 1e-4)."""
    config = TrainConfig(
        epochs=0.1,
        batch_size=64,
        lr=1,
        momentum=0,
        nesterov=False,
        weight_decay=0,
        schedule="constant",
        amp="off",
        clip_norm=0.25,
    )
    task, net = make_task(), make_net()
    before = weights(net)
    train(tmp_path, config, net=net, objective=lambda n, b: (1000 * task.loss(n(b.inputs), b.targets), {}))
    moved = [weights(net)[name] - before[name] for name, _ in net.named_parameters()]
    assert torch.cat([m.flatten() for m in moved]).norm().item() == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("kind", ["cosine", "multistep", "constant"])
def test_schedule_agrees_with_torch(kind):
    """Against torch.optim.lr_scheduler, step by step."""
    config = TrainConfig(epochs=10, batch_size=10, lr=0.4, schedule=kind, milestones=(0.3, 0.8), gamma=0.5)
    plan = plan_run(config, 70)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    theirs = {
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.total),
        "multistep": lambda: torch.optim.lr_scheduler.MultiStepLR(optimizer, [21, 56], gamma=0.5),
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
    }[kind]()
    for step in range(plan.total):
        assert learning_rate(config, plan, step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        optimizer.step()
        theirs.step()


def test_warmup_rises_linearly_and_meets_the_peak():
    config = TrainConfig(epochs=4, batch_size=10, lr=0.4, warmup_epochs=1)
    plan = plan_run(config, 40)
    assert [learning_rate(config, plan, s) for s in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])


@pytest.mark.parametrize(
    ("epochs", "samples", "per_epoch", "total"), [(0.5, 96, 6, 3), (2, 100, 6, 12), (1, 5, 1, 1), (0.01, 96, 6, 1)]
)
def test_plan(epochs, samples, per_epoch, total):
    plan = plan_run(TrainConfig(epochs=epochs, batch_size=16), samples)
    assert (plan.per_epoch, plan.total) == (per_epoch, total)


def test_every_epoch_is_another_permutation_and_processes_share_each_batch():
    plan = plan_run(TrainConfig(epochs=2, batch_size=16), 96)
    steps = list(StepSampler(torch.arange(96), plan, seed=1))
    first, second = ([row for step in part for row in step] for part in (steps[:6], steps[6:]))
    assert sorted(first) == sorted(second) == list(range(96))
    assert first != second
    halves = [list(StepSampler(torch.arange(96), plan, seed=1, rank=r, world=2)) for r in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [sorted(s) for s in steps]
    assert list(StepSampler(torch.arange(96), plan, seed=1, first=8)) == steps[8:]
    assert list(StepSampler(torch.arange(96), plan, seed=2)) != steps


def test_max_train_takes_the_first_of_a_seeded_permutation(tmp_path):
    seen: set[int] = set()
    task = make_task()

    def objective(network, batch):
        seen.update(batch.index.tolist())
        return task.loss(network(batch.inputs), batch.targets), {}

    train(tmp_path, CONFIG.model_copy(update={"max_train": 32, "epochs": 3}), task=task, objective=objective, seed=5)
    assert seen == set(chosen_positions(96, 32, 5).tolist())
    assert seen != set(chosen_positions(96, 32, 6).tolist())
    assert set(chosen_positions(96, 16, 5).tolist()) < seen


def test_objective_parts_and_evaluation_rhythm_are_recorded(tmp_path):
    task = make_task()

    def objective(network, batch):
        loss = task.loss(network(batch.inputs), batch.targets)
        return loss, {"double": 2 * loss, "epoch": torch.tensor(batch.epoch)}

    config = CONFIG.model_copy(update={"epochs": 4.5, "evaluate_every": 2})
    _, history = train(tmp_path, config, task=task, objective=objective)
    assert [e.epoch for e in history.epochs] == [1, 2, 3, 4, 4.5]
    assert [e.val is not None for e in history.epochs] == [False, True, False, True, True]
    for index, epoch in enumerate(history.epochs):
        assert epoch.parts["double"] == pytest.approx(2 * epoch.train_loss, rel=1e-5)
        mean = index + (5 / 12 if index < 4 else 1 / 6)  # steps at 0, 1/6 … 5/6 of an epoch; the last has three
        assert epoch.parts["epoch"] == pytest.approx(mean, rel=1e-5)
    assert history.as_dict()["val"] == history.epochs[-1].val


def test_workers_deliver_the_same_run(tmp_path):
    alone, _ = train(tmp_path / "a")
    helped, _ = train(tmp_path / "b", CONFIG.model_copy(update={"workers": 1}))
    assert same(weights(alone), weights(helped))


# ---------------------------------------------------------------- what is left behind


def test_module_comes_back_whole_and_the_callers_random_stream_goes_on(tmp_path):
    net = make_net()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(tmp_path, CONFIG.model_copy(update={"amp": "bf16"}), net=net)
    assert torch.equal(torch.rand(3), expected)
    assert not net.training
    assert "forward" not in vars(net)
    assert net[0].weight.is_contiguous()
    assert net(torch.zeros(2, 1, 8, 8)).dtype == torch.float32


def test_evaluate_is_float32_in_eval_mode_and_restores_modes():
    seen = []

    class Probe(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make_net()

        def forward(self, x):
            seen.append((self.training, self.inner[4].training, (x @ x.transpose(2, 3)).dtype))
            return self.inner(x)

    net, task = Probe(), make_task()
    net.inner[1].eval()
    runtime = Runtime("cpu", amp="bf16")
    with runtime.autocast():
        metrics = evaluate(net, task, "val", runtime=runtime, limit=20, batch_size=8)
    assert len(seen) == 3  # 8 + 8 + 4 samples
    assert set(seen) == {(False, False, torch.float32)}
    assert (net.training, net.inner[1].training, net.inner[4].training) == (True, False, True)
    net.eval()
    with torch.no_grad():
        raw = task.samples("val").__getitems__(range(20))
        right = (net(task.inputs(raw)).argmax(1) == raw.targets).float().mean().item()
    assert metrics["accuracy"] == pytest.approx(right)


def test_progress_is_told_every_image(tmp_path):
    told = []

    class Meter:
        def advance(self, units=1, **figures):
            told.append((units, set(figures)))

    class Progress:
        @contextmanager
        def meter(self, label, total, unit, *, done=0):
            told.append((label, total, unit, done))
            yield Meter()

    task = make_task()
    context = make_context(tmp_path, progress=Progress())
    fit(make_net(), task, CONFIG, objective=task_loss(task), context=context, label="trial")
    assert told[0] == ("trial", 192, "images", 0)
    assert sum(units for units, _ in told[1:]) == 192
    assert all(figures == {"loss", "lr"} for _, figures in told[1:])


@pytest.mark.parametrize("settings", [{"optimizer": "sgd", "lr": 0.05}, {"optimizer": "adamw", "lr": 0.01}, {"clip_norm": 0.1}])
def test_a_pruned_weight_stays_zero_and_so_does_its_optimiser_state(tmp_path, settings):
    """Whole trajectories: after every step, not only at the end."""
    from trimtab.models.masks import attach_masks

    task, net = make_task(), make_net()
    generator = torch.Generator().manual_seed(5)
    masks = {n: torch.rand(p.shape, generator=generator) < 0.4 for n, p in net.named_parameters() if p.ndim >= 2}
    attach_masks(net, masks)
    start = weights(net)
    seen = []

    def objective(network, batch):
        seen.append(all(not net.get_parameter(name)[~mask].any() for name, mask in masks.items()))
        return task_loss(task)(network, batch)

    config = CONFIG.model_copy(update={"weight_decay": 0.1, "checkpoint_s": 0, **settings})
    train(tmp_path, config, net=net, task=task, objective=objective)
    assert len(seen) == 12
    assert all(seen)
    for name, mask in masks.items():
        assert not net.get_parameter(name)[~mask].any()
        assert not torch.equal(net.get_parameter(name)[mask], start[name][mask])
    with safetensors.safe_open(tmp_path / "train.safetensors", framework="pt") as file:
        states = {n: file.get_tensor(n) for n in file.keys() if n.startswith("optimizer.") and not n.endswith(".step")}  # noqa: SIM118
    for mask in masks.values():
        same_shape = [t for t in states.values() if t.shape == mask.shape]
        assert same_shape
        assert all(not t[~mask].any() and t[mask].any() for t in same_shape)
