"""The recipe step "isp": what it learns, what it tells, resuming, collapse, refusals."""

from __future__ import annotations

import json
import re
import signal

import pytest
import torch
from isp_training_kit import ToyIsp, config, tiny_isp
from torch import nn
from training_kit import make_context, make_task, same, weights

from trimtab.compress.loop import build_optimizer
from trimtab.compress.method import methods
from trimtab.compress.procedures import isp_run
from trimtab.compress.procedures.isp_game import Game
from trimtab.compress.procedures.isp_objective import IspObjective
from trimtab.compress.procedures.isp_run import Rendered, rendering_metrics
from trimtab.compress.procedures.unpaired_isp import TERMS, IspConfig, isp
from trimtab.compress.recipe import parse_recipe
from trimtab.compress.trainconfig import TrainConfig
from trimtab.models.errors import UserError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One unpaired run from end to end: (network, task, result)."""
    folder = tmp_path_factory.mktemp("whole")
    net, task = tiny_isp(), ToyIsp()
    return net, task, isp(net, task, config(folder), make_context(folder / "work"))


# ---------------------------------------------------------------- what it does and tells


def test_the_network_learns_and_the_figures_tell_all(whole):
    net, _, result = whole
    figures = result.figures
    assert result.module is net
    assert not net.training
    assert json.loads(json.dumps(figures)) == figures
    assert not same(weights(net), weights(tiny_isp()))
    assert set(figures["terms"]) == {
        *TERMS,
        *(f"norm_{t}" for t in TERMS),
        *(f"{kind}_{t}" for kind in ("critic", "penalty") for t in TERMS[2:]),
    }
    first, last = (figures["history"]["epochs"][i]["parts"]["content"] for i in (0, -1))
    assert last < 0.5 * first
    assert set(figures["critics"]) == set(TERMS[2:])
    assert figures["collapsed"] == {}
    assert figures["still"] == 0
    card = figures["features"]["texture"]
    assert len(card["sha256"]) == 64
    assert card["sha256"][:16] in card["source"]
    assert len(card["stages"]) == 2


def test_the_notes_say_what_stands_in_and_what_was_kept(whole):
    notes = whole[2].notes
    assert "VGG-19 relu5_4" in notes[0]
    assert "resnet8 (tiny0.pt, sha256" in notes[0]
    assert "not comparable with the paper's" in notes[0]
    assert re.search(r"kept: step \d+ of 16, one of 4 iterates \(smallest sum of ranks .* no pairs\)", notes[1])


def test_the_chosen_iterate_is_the_one_that_comes_back(whole):
    net, task, result = whole
    figures = result.figures
    rows = figures["selection"]["iterates"]
    assert [row["step"] for row in rows] == [4, 8, 12, 16]
    kept = next(row for row in rows if row["chosen"])
    assert figures["selection"]["step"] == kept["step"]
    assert figures["val_after"] == kept["paired"] == task.evaluate(lambda x: net(x).detach(), "val")
    assert figures["val_last"] == rows[-1]["paired"]
    best = max(rows, key=lambda row: row["paired"]["psnr"])
    assert figures["oracle"] == {"step": best["step"], "by": "psnr", "val": best["paired"]}


def test_the_fixed_rendering_is_measured_beside_it(whole):
    _, task, result = whole
    expected = task.evaluate(lambda x: task.samples("val").rendering, "val")
    assert result.figures["val_rendering"] == pytest.approx(expected)
    assert rendering_metrics(task, "val", limit=3) != rendering_metrics(task, "val")


def test_without_pairs_nothing_is_measured_on_pairs(tmp_path):
    result = isp(tiny_isp(), ToyIsp(paired=False), config(tmp_path, epochs=1), make_context(tmp_path / "w"))
    assert not {"oracle", "val_last", "val_rendering"} & set(result.figures)
    assert all("paired" not in row for row in result.figures["selection"]["iterates"])
    assert "the validation figures compare with the fixed rendering" in result.notes[-1]


def test_an_unpaired_run_does_not_look_at_the_true_pictures(tmp_path):
    """With other true pictures on the same mosaics the weights end the same; the fixed rendering does matter."""
    ends = []
    for name, change in (("a", None), ("b", "targets"), ("c", "rendering")):
        task, net = ToyIsp(), tiny_isp()
        for split in ("train", "val") if change else ():
            samples = task.samples(split)
            setattr(samples, change, 1 - getattr(samples, change))
        isp(net, task, config(tmp_path, epochs=2), make_context(tmp_path / name))
        ends.append(weights(net))
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


def test_paired_runs_look_at_them_and_need_no_other_pictures(tmp_path):
    ends = []
    for name, change in (("a", False), ("b", True)):
        task, net = ToyIsp(), tiny_isp()
        if change:
            task.samples("train").targets = 1 - task.samples("train").targets
        result = isp(net, task, config(tmp_path, epochs=2, mode="paired"), make_context(tmp_path / name))
        ends.append(weights(net))
        assert task.asked == []
        assert "true pictures" in result.figures["selection"]["rule"]
        assert "no pairs" not in result.notes[1]
    assert not same(ends[0], ends[1])


def test_paired_without_critics(tmp_path):
    off = dict.fromkeys(TERMS[2:], 0.0)
    net = tiny_isp()
    result = isp(net, ToyIsp(), config(tmp_path, mode="paired", epochs=1, **off), make_context(tmp_path / "w"))
    assert result.figures["critics"] == {}
    assert set(result.figures["terms"]) == {"content", "tv", "norm_content", "norm_tv"}
    assert any("no term of this run saw colours" in note for note in result.notes)
    seeing = config(tmp_path, mode="paired", epochs=1, content_channels="rgb", **off)
    seen = isp(tiny_isp(), ToyIsp(), seeing, make_context(tmp_path / "v"))
    assert not any("saw colours" in note for note in seen.notes)


def test_the_seed_decides(tmp_path):
    ends = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        net = tiny_isp()
        isp(net, ToyIsp(), config(tmp_path, epochs=1), make_context(tmp_path / name, seed=seed))
        ends.append(weights(net))
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


def test_augmentation_moves_the_rendering_like_the_mosaic():
    task = ToyIsp()
    pair = task.training_pair

    def flipping(batch, *, augment, generator):
        inputs, targets = pair(batch, augment=augment, generator=generator)
        return inputs.flip(3), targets.flip(3)

    task.training_pair = flipping
    raw = task.samples("train").__getitems__([0, 1])
    inputs, targets = Rendered(task).training_pair(raw, augment=True, generator=torch.Generator())
    assert torch.equal(inputs, task.inputs(raw).flip(3))
    assert torch.equal(targets, task.references(raw).flip(3))


# ---------------------------------------------------------------- stopping and resuming


@pytest.mark.parametrize("stop", [6, 10])
def test_a_stopped_run_resumes_bit_exact(tmp_path, monkeypatch, stop):
    """Stopped within an epoch, after a candidate was written, between two turns of the critics (every 3rd step) and on one."""
    straight = tiny_isp()
    told = isp(straight, ToyIsp(), config(tmp_path), make_context(tmp_path / "whole"))
    plain, calls = IspObjective.__call__, []

    def counting(self, network, batch):
        calls.append(1)
        if len(calls) == stop:
            signal.raise_signal(signal.SIGINT)
        return plain(self, network, batch)

    monkeypatch.setattr(IspObjective, "__call__", counting)
    with pytest.raises(KeyboardInterrupt):
        isp(tiny_isp(), ToyIsp(), config(tmp_path), make_context(tmp_path / "cut"))
    resumed = tiny_isp()
    result = isp(resumed, ToyIsp(), config(tmp_path), make_context(tmp_path / "cut"))
    assert result.figures["history"]["resumed_at"] == stop
    assert len(calls) == 16
    assert same(weights(straight), weights(resumed))
    for name in ("selection", "terms", "val_after", "oracle", "val_last", "collapsed"):
        assert result.figures[name] == told.figures[name]
    losses = [[(e["train_loss"], e["parts"]) for e in r.figures["history"]["epochs"]] for r in (told, result)]
    assert losses[0] == losses[1]


def test_a_finished_run_is_not_repeated(tmp_path, monkeypatch):
    first, again = tiny_isp(), tiny_isp()
    told = isp(first, ToyIsp(), config(tmp_path, epochs=1), make_context(tmp_path / "w"))
    monkeypatch.setattr(IspObjective, "__call__", lambda *_: pytest.fail("no step is left to do"))
    result = isp(again, ToyIsp(), config(tmp_path, epochs=1), make_context(tmp_path / "w"))
    assert same(weights(first), weights(again))
    assert result.figures["selection"] == told.figures["selection"]


def test_other_weights_of_a_backbone_are_another_run(tmp_path):
    from isp_training_kit import tiny_backbone

    isp(tiny_isp(), ToyIsp(), config(tmp_path, epochs=1), make_context(tmp_path / "w"))
    path = tmp_path / "tiny0.pt"
    tiny_backbone(tmp_path / "other", seed=5)
    (tmp_path / "other" / "tiny5.pt").replace(path)
    made = config(tmp_path / "elsewhere", epochs=1).model_copy(
        update={f"{use}_features": f"resnet8:{path}" for use in ("content", "texture", "colour")}
    )
    result = isp(tiny_isp(), ToyIsp(), made, make_context(tmp_path / "w"))
    assert any("it belongs to another run" in note for note in result.notes)


# ---------------------------------------------------------------- trouble


def test_a_term_that_is_not_finite_is_named_and_the_last_state_kept(tmp_path, monkeypatch):
    plain, calls = IspObjective.__call__, []

    def poisoned(self, network, batch):
        calls.append(1)
        if len(calls) == 7:
            with torch.no_grad():
                self.game.critics["colour"].judge[0].bias.fill_(float("nan"))
        return plain(self, network, batch)

    monkeypatch.setattr(IspObjective, "__call__", poisoned)
    with pytest.raises(UserError, match=r"isp: the term 'colour' became nan at step 7 of 16.*\n.*last finite state is kept in"):
        isp(tiny_isp(), ToyIsp(), config(tmp_path, checkpoint_s=0), make_context(tmp_path / "w"))
    assert (tmp_path / "w" / "isp.safetensors").exists()
    monkeypatch.setattr(IspObjective, "__call__", plain)
    result = isp(tiny_isp(), ToyIsp(), config(tmp_path), make_context(tmp_path / "w"))
    assert result.figures["history"]["resumed_at"] == 6
    straight = tiny_isp()
    told = isp(straight, ToyIsp(), config(tmp_path), make_context(tmp_path / "straight"))
    assert told.figures["terms"] == result.figures["terms"]


def test_a_collapsed_critic_is_named_in_the_notes(tmp_path, monkeypatch):
    made = isp_run.make_critics

    def muted(*args, **more):
        critics = made(*args, **more)
        for part in (critics["texture_deep"].head[2].weight, critics["texture_deep"].head[2].bias):
            nn.init.zeros_(part)
            part.requires_grad_(False)
        return critics

    monkeypatch.setattr(isp_run, "make_critics", muted)
    result = isp(tiny_isp(), ToyIsp(), config(tmp_path), make_context(tmp_path / "w"))
    assert result.figures["collapsed"] == {"texture_deep": 16}
    (note,) = [note for note in result.notes if "collapsed" in note]
    assert note.startswith(
        "the critic 'texture_deep' collapsed: for the last 16 of 16 steps it gave one constant or no gradient"
    )


def test_a_dead_network_is_named_in_the_notes(tmp_path):
    dead = nn.Sequential(*tiny_isp(), nn.ReLU())
    nn.init.constant_(dead[2].bias, -100.0)
    result = isp(dead, ToyIsp(), config(tmp_path, epochs=1), make_context(tmp_path / "w"))
    (note,) = [note for note in result.notes if "stands still" in note]
    assert "in the last 4 of 4 steps no term had a gradient" in note


class TestRefusals:
    def test_no_data(self, tmp_path):
        with pytest.raises(UserError, match=r"isp needs RAW pictures, and this run has none\n.*photos:DIR"):
            isp(tiny_isp(), None, IspConfig(), make_context(tmp_path))

    def test_another_task(self, tmp_path):
        with pytest.raises(UserError, match="isp trains a network that develops RAW, and the task is 'classification'\n"):
            isp(tiny_isp(), make_task(), IspConfig(), make_context(tmp_path))

    def test_pairs_that_are_not_there(self, tmp_path):
        with pytest.raises(UserError, match="mode = 'paired' needs the true picture of every mosaic, and 'toy' has none\n"):
            isp(tiny_isp(), ToyIsp(paired=False), config(tmp_path, mode="paired"), make_context(tmp_path))

    def test_small_patches(self, tmp_path):
        with pytest.raises(UserError, match="pictures of 8×8 are too small"):
            isp(tiny_isp(), ToyIsp(side=8), config(tmp_path), make_context(tmp_path))

    def test_no_samples(self, tmp_path):
        with pytest.raises(UserError, match="the training split of 'toy' is empty"):
            isp(tiny_isp(), ToyIsp(train=0), config(tmp_path), make_context(tmp_path))

    def test_a_backbone_without_weights(self, tmp_path):
        with pytest.raises(UserError, match="no weights are known for the backbone 'vgg91'"):
            isp(tiny_isp(), ToyIsp(), config(tmp_path, content_features="vgg91"), make_context(tmp_path))

    def test_a_stage_that_is_not_there(self, tmp_path):
        with pytest.raises(UserError, match=r"stages \[99\] of resnet8: it has stages 0 … 3"):
            isp(tiny_isp(), ToyIsp(), config(tmp_path, colour_stage=99), make_context(tmp_path))

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            (dict.fromkeys(TERMS, 0), "the strengths of content, tv, .* are all 0"),
            ({"texture_stages": [5, 3]}, r"texture_stages \[5, 3\] must be two, rising"),
            ({"texture_stages": [3]}, r"texture_stages \[3\] must be two, rising"),
            ({"mode": "semi"}, "mode.*'unpaired' or 'paired'"),
            ({"betas": [0.5, 1.0]}, r"betas .* must be at least 0 and below 1"),
            ({"color": 0}, "color.*did you mean 'colour'"),
            ({"penalty": -1}, "penalty.*greater than or equal to 0"),
        ],
    )
    def test_a_wrong_recipe(self, table, message):
        with pytest.raises(UserError, match=f"(?s){message}"):
            parse_recipe({"format": 1, "step": [{"kind": "isp", **table}]}, origin="r.toml")


# ---------------------------------------------------------------- what it is made of


def test_defaults_are_the_published_ones_where_they_can_be():
    made = IspConfig()
    assert (made.lr, made.betas, made.discriminator_lr, made.critic_every, made.penalty) == (5e-4, (0.5, 0.9), 1e-5, 10, 10.0)
    assert (made.schedule, made.amp, made.weight_decay, made.balance) == ("constant", "off", 0.0, "gradient-norm")
    assert set(made.strengths().values()) == {1.0}
    assert methods.entry("isp").card.needs_data
    assert not methods.entry("isp").card.needs_labels


def test_the_optimiser_has_the_betas():
    game = Game(tiny_isp(), {})
    for betas in ((0.5, 0.9), (0.9, 0.999)):
        optimizer = build_optimizer(game, TrainConfig(optimizer="adamw", betas=betas))
        assert {group["betas"] for group in optimizer.param_groups} == {betas}


def test_the_usual_betas_leave_identities_as_they_were():
    assert "betas" not in TrainConfig().identity()
    assert TrainConfig(betas=(0.5, 0.9)).identity()["betas"] == [0.5, 0.9]


def test_backbones_of_ones_own_make_the_step_depend_on_their_files(tmp_path):
    (tmp_path / "net").mkdir()
    made = IspConfig(content_features="vgg19:weights/vgg.pt", colour_features=str(tmp_path / "net"))
    assert made.files() == ("weights/vgg.pt",)
    assert made.bundles() == (str(tmp_path / "net"),)
    assert IspConfig().files() == IspConfig().bundles() == ()
