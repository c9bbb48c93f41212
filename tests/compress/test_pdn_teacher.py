"""The step pdn-teacher: what a patch description network learns to say, and how."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from trimtab.compress.apply import run_recipe
from trimtab.compress.procedures.patch_features import PatchFeatures, open_features
from trimtab.compress.procedures.pictures import open_pictures
from trimtab.compress.procedures.teacher_targets import grey_of
from trimtab.compress.recipe import parse_recipe
from trimtab.models.architectures import architectures
from trimtab.models.backbones import FeatureNet
from trimtab.models.bundle import Manifest, load_bundle, save_bundle
from trimtab.models.errors import UserError
from trimtab.models.source import Architecture
from trimtab.models.tasks.anomaly import anomaly

SIDE = 48
NETS = {
    "efficientad_s": {"image_size": SIDE, "width": 0.125, "out_channels": 16},
    "pdn_small": {"width": 0.125, "out_channels": 16},
    "pdn_medium": {"width": 0.0625, "out_channels": 16},
}
BRIEF = {"stages": [2, 3], "pooled": 24, "iterations": 25, "batch_size": 4, "lr": 3e-3, "checkpoint_s": 1000}


def numbers(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def task():
    return anomaly(data="scenes", counts=(12, 4, 6), size=(SIDE, SIDE), val_fraction=0.25)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A random residual network as a checkpoint of the user's: three stages of strides 1, 1 and 2."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "resnet8.pt"
    torch.save(architectures.get("resnet8")().state_dict(), path)
    return f"resnet8:{path}"


def bundle(folder, task, name="efficientad_s"):
    architecture = Architecture(name=name, kwargs=NETS[name])
    torch.manual_seed(0)
    return save_bundle(folder, architecture.build(), Manifest(architecture=architecture, contract=task.contract))


def run(entering, task, folder, backbone, **config):
    step = {"kind": "pdn-teacher", "backbone": backbone, **BRIEF, **config}
    return run_recipe(
        entering, parse_recipe({"format": 1, "seed": 0, "step": [step]}, origin="test"), task, folder, device="cpu"
    )[0]


def test_patch_features_by_their_definition():
    """3×3 neighbours channel by channel averaged to `pooled`, the coarse map enlarged, all averaged to `out_channels` (PatchCore, 3.1)."""
    torch.manual_seed(0)
    net = FeatureNet("resnet8", stages=(1, 2), kwargs={}).eval()
    pictures = numbers(2, 3, 16, 16)
    found = PatchFeatures(net, pooled=10, out_channels=7)(pictures)
    parts = []
    fine = net(pictures)[0].shape[2:]
    for stage in net(pictures):
        height, width = stage.shape[2:]
        patches = F.unfold(stage, 3, padding=1).transpose(1, 2)  # (N, places, C·9), a channel's nine together
        pooled = F.adaptive_avg_pool1d(patches, 10).transpose(1, 2).reshape(2, 10, height, width)
        parts.append(pooled if (height, width) == fine else F.interpolate(pooled, fine, mode="bilinear"))
    together = torch.cat(parts, 1).flatten(2).transpose(1, 2)
    expected = F.adaptive_avg_pool1d(together, 7).transpose(1, 2).reshape(2, 7, *fine)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # the same sums, in another order


def test_grey_pictures():
    picture = numbers(2, 3, 4, 5)
    expected = np.tensordot(picture.numpy(), [0.299, 0.587, 0.114], axes=(1, 0))
    for channel in grey_of(picture).unbind(1):
        np.testing.assert_allclose(channel, expected, rtol=1e-6)


@pytest.mark.parametrize("name", list(NETS))
def test_it_learns_and_says_from_what(name, task, backbone, tmp_path):
    done = run(bundle(tmp_path / "in", task, name), task, tmp_path / "w", backbone)
    figures = done.figures
    assert figures["val_after"]["mse"] < 0.9 * figures["val_before"]["mse"]
    assert figures["backbone"].startswith("resnet8")
    assert len(figures["backbone_sha256"]) == 64
    assert figures["images"] == "the task's training pictures (9)"
    assert any("60 000 of 16 are published" in note for note in done.notes)
    assert any("the published one from a Wide ResNet-101-2" in note for note in done.notes)
    before, after = (b.module() for b in (bundle(tmp_path / "again", task, name), load_bundle(done.bundle.folder)))
    if name == "efficientad_s":
        assert all(torch.equal(a, b) for a, b in zip(before.student.parameters(), after.student.parameters(), strict=True))
        assert not any(p.requires_grad for p in done.bundle.module().teacher.parameters())
    else:
        assert done.bundle.contract.outputs[0].name == "features"
        assert done.bundle.contract.outputs[0].shape == ("N", 16, 4, 4)
        assert after(numbers(1, 3, SIDE, SIDE)).shape == (1, 16, 4, 4)


def test_kept_targets_are_the_computed_ones(task, backbone, tmp_path):
    """With and without the cache the same pictures are seen in the same order: what differs is float16's rounding of the targets."""
    start = bundle(tmp_path / "in", task)
    kept, computed = (run(start, task, tmp_path / str(mb), backbone, cache_mb=mb, grey=0.5) for mb in (1024, 0))
    assert kept.bundle.hash != computed.bundle.hash
    assert kept.figures["val_after"]["mse"] == pytest.approx(computed.figures["val_after"]["mse"], rel=2e-3)
    other = run(start, task, tmp_path / "colour", backbone, cache_mb=0, grey=0.0)
    assert other.figures["val_after"]["mse"] != pytest.approx(computed.figures["val_after"]["mse"], rel=2e-3)


def test_other_pictures_than_the_tasks(task, backbone, tmp_path):
    from PIL import Image

    for i in range(5):
        path = tmp_path / f"photos/{i % 2}/{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * numbers(90, 120, 3, seed=i)).byte().numpy()).save(path)
    done = run(
        bundle(tmp_path / "in", task), task, tmp_path / "w", backbone, images=f"photos:{tmp_path / 'photos'}", iterations=3
    )
    assert done.figures["images"] == "5 photographs"


def test_a_photograph_is_cut_at_the_middle_of_twice_the_size(tmp_path):
    from PIL import Image

    pixels = np.zeros((80, 120, 3), np.uint8)
    pixels[:, 60:] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = open_pictures(f"photos:{tmp_path}", (40, 60), what="images").read([0])[0]
    assert found.shape == (3, 40, 60)
    assert np.array_equal(found[0], pixels[20:60, 30:90, 0])  # 120×80 is twice the size already: nothing is resampled
    (tmp_path / "broken.png").write_bytes(b"no picture")
    both = open_pictures(f"photos:{tmp_path}", (40, 60), what="images")
    with pytest.raises(UserError, match=r"images: .*broken.png can't be read"):
        both.read([1])


class TestRefusals:
    def test_stages_that_are_not_named_and_not_found(self, backbone):
        with pytest.raises(UserError, match=r"no stages of stride 8 and 16 \(its strides: \[1, 1, 2\]\)"):
            open_features(backbone, stages=(), pooled=8, out_channels=4)

    def test_a_backbone_without_weights(self, task, tmp_path):
        with pytest.raises(UserError, match="no weights are known for the backbone 'resnet8'"):
            run(bundle(tmp_path / "in", task), task, tmp_path / "w", "resnet8")

    def test_pictures_that_a_bare_pdn_cannot_describe(self, backbone, tmp_path):
        small = anomaly(data="scenes", counts=(12, 4, 6), size=(32, 32), val_fraction=0.25)
        with pytest.raises(UserError, match="must be 33 or more"):
            run(bundle(tmp_path / "in", small, "pdn_small"), small, tmp_path / "w", backbone)
