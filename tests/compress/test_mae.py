"""Masked-autoencoder pre-training: its pieces against plain loops, and the recipe step."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
import torch
from torch import nn
from training_kit import make_context, make_net, make_task, same, weights

from trimtab.compress.method import methods
from trimtab.compress.procedures.mae import MaeConfig, mae, masked_figures
from trimtab.compress.procedures.masked_autoencoder import (
    MaskedAutoencoder,
    masked_loss,
    normalised_patches,
    patchify,
    sine_positions,
)
from trimtab.compress.recipe import parse_recipe
from trimtab.compress.runtime import Runtime
from trimtab.models.architectures import architectures
from trimtab.models.errors import UserError
from trimtab.models.outputs import SelectOutput

torch.set_num_threads(1)
CONFIG = MaeConfig(epochs=4, batch_size=16, decoder_dim=16, decoder_depth=1, amp="off", augment=False)


def vit(**more):
    torch.manual_seed(0)
    made = {"in_channels": 1, "image_size": 8, "patch": 2, "dim": 16, "depth": 2, "heads": 2, "num_classes": 4} | more
    return architectures.get("vit_nano")(**made)


def autoencoder(module=None, **more):
    torch.manual_seed(1)
    made = {"image": (1, 8, 8), "mask_ratio": 0.75, "decoder_dim": 16, "decoder_depth": 1, "norm_pixels": True} | more
    return MaskedAutoencoder(module or vit(), **made).eval()


def images(count=3, channels=1, side=8):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(2))


# ---------------------------------------------------------------- the pieces


def test_patches_by_loops():
    x = torch.arange(2 * 3 * 7 * 8).reshape(2, 3, 7, 8)
    got = patchify(x, 3)  # a row and two columns of pixels are left out
    assert got.shape == (2, 4, 27)
    for n in range(2):
        for i in range(2):
            for j in range(2):
                expected = [x[n, c, 3 * i + a, 3 * j + b] for a in range(3) for b in range(3) for c in range(3)]
                assert got[n, 2 * i + j].tolist() == expected


def test_patches_are_in_the_order_of_the_tokens():
    """A convolution whose weights pick one pixel of a patch gives the same order as patchify."""
    module = vit(dim=8)
    with torch.no_grad():
        module.patch_embed.proj.weight.zero_()[0, 0, 1, 0] = 1
        module.patch_embed.proj.bias.zero_()
        assert torch.equal(module.patch_embed(images())[..., 0], patchify(images(), 2)[..., 2])


def test_targets_by_numpy():
    """(x − mean)/√(unbiased variance + 1e-6) in float64; float32 of values of order 1: 1e-5."""
    x = np.random.default_rng(0).normal(3, 2, (2, 5, 12))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(normalised_patches(torch.tensor(x, dtype=torch.float32)).numpy(), expected, atol=1e-5)
    assert not normalised_patches(torch.full((1, 1, 12), 7.0)).any()  # one colour has no pattern


def test_the_loss_by_loops():
    rng = np.random.default_rng(0)
    prediction, target = rng.normal(size=(2, 3, 4, 5))
    hidden = np.array([[1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1]])
    errors = [((prediction[n, p] - target[n, p]) ** 2).mean() for n in range(3) for p in range(4) if hidden[n, p]]
    got = masked_loss(*(torch.tensor(v, dtype=torch.float32) for v in (prediction, target, hidden)))
    assert got.item() == pytest.approx(np.mean(errors), rel=1e-5)  # float32 sums of 40 squares


def test_places_by_loops():
    got = sine_positions((2, 3), 8)[0].numpy()
    for p in range(6):
        expected = []
        for place in divmod(p, 3):
            rates = [1, 10000**-0.5]
            expected += [np.sin(place * r) for r in rates] + [np.cos(place * r) for r in rates]
        np.testing.assert_allclose(got[p], expected, atol=1e-6)


@pytest.mark.parametrize(("ratio", "shown"), [(0.75, 4), (0.5, 8), (0.01, 15), (0.99, 1)])
def test_the_share_that_is_hidden(ratio, shown):
    """Of 16 patches; at least one is shown and one hidden."""
    hidden = autoencoder(mask_ratio=ratio)(images())["hidden"]
    assert hidden.sum(1).tolist() == [16 - shown] * 3


def test_hidden_patches_are_the_noisiest_and_never_reach_the_prediction():
    net, x = autoencoder(), images()
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen = net(x, noise)
        rank = noise.argsort(1).argsort(1)
        assert torch.equal(seen["hidden"], (rank >= 4).float())
        other, changed = x.clone(), x.clone()
        shown = (1 - seen["hidden"]).reshape(3, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3).bool()
        other[~shown] += 5
        changed[shown] += 5
        assert torch.equal(net(other, noise)["prediction"], seen["prediction"])
        assert not torch.allclose(net(changed, noise)["prediction"], seen["prediction"])


def test_with_every_patch_shown_the_encoder_is_the_network():
    """Shown in another order: attention and everything after it do not mind. float32 rounding over two blocks: 1e-5."""
    module, x = vit().eval(), images()
    net = autoencoder(module)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).expand(3, 16)
    tokens = []
    module.norm.register_forward_hook(lambda _m, _a, out: tokens.append(out))
    with torch.no_grad():
        module(x)
        encoded = net._encoded(x, order)
    torch.testing.assert_close(encoded[:, 0], tokens[0][:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(encoded[:, 1:], tokens[0][:, 1:][:, order[0]], rtol=0, atol=1e-5)


def test_transformers_with_positions_for_patches_alone_or_without_a_class_token():
    for change in ("no position for the class token", "no class token", "tokens as a grid"):
        module = vit()
        if change == "tokens as a grid":
            plain = module.patch_embed.forward
            module.patch_embed.forward = lambda x, plain=plain: plain(x).unflatten(1, (4, 4))
        else:
            module.pos_embed = nn.Parameter(module.pos_embed.data[:, 1:])
            module.cls_token = None if change == "no class token" else module.cls_token
        seen = autoencoder(module)(images())
        assert seen["prediction"].shape == (3, 16, 4)
        assert seen["hidden"].sum() == 36


# ---------------------------------------------------------------- the step


def test_it_is_registered_and_needs_no_labels():
    entry = methods.entry("mae")
    assert entry.value.config is MaeConfig
    assert entry.card.trains
    assert entry.card.needs_data
    assert not entry.card.needs_labels
    assert not entry.card.changes_structure


def test_it_learns_to_fill_in_and_leaves_only_the_encoder(tmp_path):
    """The toy's images are four patterns with noise: guessable. The classifier stays as it was."""
    module, task = vit(), make_task()
    before, names = weights(module), list(module.state_dict())
    config = CONFIG.model_copy(update={"epochs": 60.0, "lr": 5e-3, "mask_ratio": 0.5})
    result = mae(module, task, config, make_context(tmp_path))
    assert result.module is module
    assert result.plan is None
    assert not module.training
    assert list(module.state_dict()) == names
    assert all(p.requires_grad for p in module.parameters())
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(names) - {"head.weight", "head.bias"}
    val = result.figures["val_after"]
    # patterns are 0.7 of a pixel's variance (37² of 37² + 25²), the rest is noise; a guess of every patch's mean explains 0
    assert val["masked_explained"] > 0.2 > result.figures["val_before"]["masked_explained"]
    assert val["masked_loss"] < 0.75 * result.figures["val_before"]["masked_loss"]
    assert json.loads(json.dumps(result.figures)) == result.figures
    assert "not its classifier" in result.notes[0]


def test_labels_do_not_matter_and_the_seed_does(tmp_path):
    ends = []
    for name, seed, blind in (("a", 0, False), ("b", 0, True), ("c", 1, False)):
        task, module = make_task(), vit()
        if blind:
            pair = task.training_pair
            task.training_pair = lambda *a, pair=pair, **k: (pair(*a, **k)[0], None)
        mae(module, task, CONFIG.model_copy(update={"epochs": 1.0}), make_context(tmp_path / name, seed=seed))
        ends.append(weights(module))
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


def test_a_stopped_run_resumes_bit_exact(tmp_path, monkeypatch):
    """Stopped in mid-epoch, at step 8 of 12: masks are drawn by (seed, step), and the decoder is in the checkpoint."""
    config = CONFIG.model_copy(update={"epochs": 2.0})
    whole = vit()
    told = mae(whole, make_task(), config, make_context(tmp_path / "whole"))
    loss, calls = MaskedAutoencoder.loss, []

    def counting(self, images, seen):
        if self.training:
            calls.append(1)
            if len(calls) == 8:
                signal.raise_signal(signal.SIGINT)
        return loss(self, images, seen)

    monkeypatch.setattr(MaskedAutoencoder, "loss", counting)
    with pytest.raises(KeyboardInterrupt):
        mae(vit(), make_task(), config, make_context(tmp_path / "cut"))
    resumed = vit()
    result = mae(resumed, make_task(), config, make_context(tmp_path / "cut"))
    assert result.figures["history"]["resumed_at"] == 8
    assert len(calls) == 12
    assert same(weights(whole), weights(resumed))
    assert result.figures["val_after"] == told.figures["val_after"]


def test_validation_hides_the_same_patches_every_time_and_counts_by_image():
    net, task, runtime = autoencoder(), make_task(val=10), Runtime("cpu")
    net.train()
    whole = masked_figures(net, task, runtime=runtime)
    assert whole == masked_figures(net, task, runtime=runtime)
    assert net.training
    # the same noise in batches of four: another order of float32 sums
    parts = masked_figures(net, task, runtime=runtime, batch_size=4)
    assert parts["masked_loss"] == pytest.approx(whole["masked_loss"], rel=1e-5)
    assert masked_figures(net, task, runtime=runtime, limit=4) != whole
    assert masked_figures(net, task, runtime=runtime, seed=1) != whole


def test_guessing_nothing_explains_nothing():
    net = autoencoder()
    nn.init.zeros_(net.decoder[-1].weight)
    nn.init.zeros_(net.decoder[-1].bias)
    assert masked_figures(net, make_task(val=8), runtime=Runtime("cpu"))["masked_explained"] == 0


def test_raw_pixels_as_targets():
    x = images()
    for norm, target in ((True, normalised_patches(patchify(x, 2))), (False, patchify(x, 2))):
        net = autoencoder(norm_pixels=norm)
        seen = net(x)
        assert net.loss(x, seen).item() == pytest.approx(masked_loss(seen["prediction"], target, seen["hidden"]).item())


def test_a_wrapped_network_is_trained_under_its_wrapper(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.__dict__.update(vit().__dict__)

        def forward(self, x):
            return {"logits": x}

    wrapped = SelectOutput(Two(), "logits")
    before = weights(wrapped)
    mae(wrapped, make_task(), CONFIG.model_copy(update={"epochs": 0.6}), make_context(tmp_path))
    assert not same(before, weights(wrapped))


class TestRefusals:
    def test_no_data(self):
        with pytest.raises(UserError, match="mae needs images, and this run has none"):
            mae(vit(), None, CONFIG, make_context(None))

    def test_no_transformer(self, tmp_path):
        with pytest.raises(UserError, match=r"Sequential lacks patch_embed, cls_token, pos_embed, blocks, norm\n.*vit_nano"):
            mae(make_net(), make_task(), CONFIG, make_context(tmp_path))

    def test_what_is_lacking_is_named(self, tmp_path):
        module = vit()
        del module.cls_token
        module.pos_embed = None
        with pytest.raises(UserError, match=r"VisionTransformer lacks cls_token, pos_embed\n"):
            mae(module, make_task(), CONFIG, make_context(tmp_path))

    def test_patches_that_no_convolution_makes(self, tmp_path):
        module = vit()
        module.patch_embed = nn.Identity()
        with pytest.raises(UserError, match=r"lacks patch_embed.proj \(a convolution\)"):
            mae(module, make_task(), CONFIG, make_context(tmp_path))

    def test_another_token(self, tmp_path):
        module = vit()
        module.dist_token = nn.Parameter(torch.zeros(1, 1, 16))
        with pytest.raises(
            UserError, match="mae knows no token besides the class token, and VisionTransformer has a dist_token"
        ):
            mae(module, make_task(), CONFIG, make_context(tmp_path))

    def test_images_of_another_size(self, tmp_path):
        with pytest.raises(
            UserError, match=r"positions for 37 tokens, and an image of 8×8 makes 4×4 patches of 2\n.*image_size=8"
        ):
            mae(vit(image_size=12), make_task(), CONFIG, make_context(tmp_path))

    def test_one_patch(self, tmp_path):
        with pytest.raises(UserError, match="an image of 8×8 is 1 patch of 8: nothing to hide"):
            mae(vit(patch=8), make_task(), CONFIG, make_context(tmp_path))

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"mask_ratio": 1.0}, "mask_ratio.*less than 1"),
            ({"decoder_dim": 40}, "decoder_dim.*multiple of 16"),
            ({"decoder_depth": 0}, "decoder_depth.*greater than or equal to 1"),
            ({"mask_rate": 0.5}, "mask_rate.*did you mean 'mask_ratio'"),
        ],
    )
    def test_a_wrong_recipe(self, table, message):
        with pytest.raises(UserError, match=f"(?s){message}"):
            parse_recipe({"format": 1, "step": [{"kind": "mae", **table}]}, origin="r.toml")
