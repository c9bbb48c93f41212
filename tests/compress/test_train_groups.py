"""Parameters with a learning rate of their own beside the scheduled ones."""

from __future__ import annotations

import itertools
import signal

import pytest
import torch
from training_kit import CONFIG, make_net, make_task, same, task_loss, train, weights

from trimtab.compress.loop import build_optimizer, rate_of
from trimtab.compress.train import ParamGroup


def head_group(net, **more):
    return [ParamGroup(tuple(net[6].parameters()), **{"lr": 0.2, **more})]


def test_every_parameter_is_in_one_group_and_the_own_ones_come_last():
    net = make_net()
    optimizer = build_optimizer(net, CONFIG, head_group(net, weight_decay=0.1, momentum=0.5, until=0.25))
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(map(id, net.parameters()))
    own = optimizer.param_groups[-1]
    assert [id(p) for p in own["params"]] == [id(p) for p in net[6].parameters()]
    assert (own["weight_decay"], own["momentum"], own["nesterov"]) == (0.1, 0.5, False)
    assert optimizer.param_groups[0]["momentum"] == CONFIG.momentum
    assert len(build_optimizer(net, CONFIG).param_groups) == 2


def test_the_rate_is_the_schedules_or_its_own_until_it_ends():
    own = {"own_lr": 0.1, "until": 0.5}
    assert rate_of({}, 0.03, 0.9) == 0.03
    assert [rate_of(own, 0.03, done) for done in (0.0, 0.49, 0.5, 0.99)] == [0.1, 0.1, 0.0, 0.0]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_from_until_on_they_do_not_move_at_all(tmp_path, optimizer):
    """Momentum is left over from the first half, and must not push on."""
    task, net, seen = make_task(), make_net(), []
    config = CONFIG.model_copy(update={"optimizer": optimizer, "lr": 0.01})

    def objective(network, batch):
        seen.append((net[6].weight.detach().clone(), net[0].weight.detach().clone()))
        return task.loss(network(batch.inputs), batch.targets), {}

    train(tmp_path, config, net=net, task=task, objective=objective, groups=head_group(net, lr=0.02, until=0.5))
    heads, convs = zip(*seen, strict=True)
    assert len(seen) == 12
    assert [torch.equal(a, b) for a, b in itertools.pairwise(heads)] == [False] * 6 + [True] * 5
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(convs))


def test_a_step_of_the_own_group_is_plain_sgd_with_its_rate(tmp_path):
    """One step by hand: w − lr·∇, without weight decay, though the run's rate is another."""
    task, net = make_task(train=16), make_net(dropout=0.0)
    start, grads = net[6].weight.detach().clone(), []

    def objective(network, batch):
        loss = task.loss(network(batch.inputs), batch.targets)
        grads.append(torch.autograd.grad(loss, net[6].weight, retain_graph=True)[0])
        return loss, {}

    config = CONFIG.model_copy(update={"epochs": 1.0, "augment": False, "channels_last": False})
    train(tmp_path, config, net=net, task=task, objective=objective, groups=head_group(net))
    assert torch.allclose(net[6].weight, start - 0.2 * grads[0], atol=1e-7)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("stop", [4, 8])
def test_a_run_with_groups_resumes_bit_exact(tmp_path, optimizer, stop):
    """Stopped before and after the own group's end (step 6 of 12)."""
    task = make_task()
    config = CONFIG.model_copy(update={"optimizer": optimizer, "lr": 0.01})
    whole_net = make_net()
    whole, _ = train(tmp_path / "whole", config, net=whole_net, task=task, groups=head_group(whole_net, until=0.5))
    calls = []

    def interrupting(network, batch):
        calls.append(1)
        if len(calls) == stop:
            signal.raise_signal(signal.SIGINT)
        return task_loss(task)(network, batch)

    net = make_net()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", config, net=net, task=task, objective=interrupting, groups=head_group(net, until=0.5))
    net = make_net()
    resumed, history = train(tmp_path / "cut", config, net=net, task=task, groups=head_group(net, until=0.5))
    assert history.resumed_at == stop
    assert same(weights(whole), weights(resumed))
