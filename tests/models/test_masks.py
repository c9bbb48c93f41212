"""Masks: on the module, through surgery, in the Bundle."""

import copy

import pytest
import torch
from torch import nn

from trimtab.models.bundle import MASKS, Manifest, load_bundle, save_bundle
from trimtab.models.contract import image_classifier
from trimtab.models.edits import Edit, cut
from trimtab.models.errors import UserError
from trimtab.models.masks import admit, attach_masks, density, drop_masks, leaked, masks_of, pack_masks, unpack_masks
from trimtab.models.source import Architecture
from trimtab.models.surgery import SurgeryPlan


def resnet() -> nn.Module:
    return Architecture(name="resnet20", kwargs={"num_classes": 4, "in_channels": 1, "width": 0.5}).build()


def random_masks(module: nn.Module, share: float = 0.3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(p.shape, generator=generator) < share for name, p in module.named_parameters() if p.ndim >= 2}


def manifest() -> Manifest:
    contract = image_classifier(channels=1, height=16, width=16, classes=("a", "b", "c", "d"), mean=(0.5,), std=(0.5,))
    architecture = Architecture(name="resnet20", kwargs={"num_classes": 4, "in_channels": 1, "width": 0.5})
    return Manifest(architecture=architecture, contract=contract)


def test_attached_masks_zero_their_weights_and_stay_out_of_the_state_dict():
    net = resnet()
    names = list(net.state_dict())
    masks = random_masks(net)
    attach_masks(net, masks)
    assert list(net.state_dict()) == names
    assert all(torch.equal(found, masks[name]) for name, found in masks_of(net).items())
    assert masks_of(net).keys() == masks.keys()
    for name, mask in masks.items():
        assert not net.get_parameter(name)[~mask].any()
        assert net.get_parameter(name)[mask].any()
    kept, total = sum(int(m.sum()) for m in masks.values()), sum(m.numel() for m in masks.values())
    assert density(masks) == kept / total
    assert masks_of(copy.deepcopy(net)).keys() == masks.keys()
    drop_masks(net)
    assert masks_of(net) == {}


def test_masks_of_another_architecture_are_refused_by_name_and_by_shape():
    net = resnet()
    with pytest.raises(UserError, match=r"'no\.such', which the network lacks"):
        attach_masks(net, {"no.such": torch.ones(3, dtype=torch.bool)})
    name = next(iter(random_masks(net)))
    with pytest.raises(UserError, match=r"has shape \(2, 2\), the weights"):
        attach_masks(net, {name: torch.ones(2, 2, dtype=torch.bool)})


def test_a_bundle_brings_its_masks_back_and_its_hash_knows_them(tmp_path):
    net = resnet()
    plain = save_bundle(tmp_path / "plain", net, manifest())
    masks = random_masks(net)
    attach_masks(net, masks)
    saved = save_bundle(tmp_path / "masked", net, manifest())
    found = masks_of(load_bundle(saved.folder).module())
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())
    drop_masks(net)
    unmasked = save_bundle(tmp_path / "zeros", net, manifest())
    assert len({plain.hash, saved.hash, unmasked.hash}) == 3
    assert not (plain.folder / MASKS).exists()
    (saved.folder / MASKS).write_bytes(b"other")
    with pytest.raises(UserError, match=r"is not the file that bundle\.json describes"):
        saved.module()


def test_a_pruned_weight_that_came_back_is_not_saved(tmp_path):
    net = resnet()
    masks = random_masks(net)
    attach_masks(net, masks)
    name = next(iter(masks))
    with torch.no_grad():
        net.get_parameter(name)[~masks[name]] = 1.0
    assert leaked(net) == [name]
    with pytest.raises(UserError, match=f"pruned weights of {name} are not 0"):
        save_bundle(tmp_path / "net", net, manifest())


def test_a_value_that_was_meant_is_admitted(tmp_path):
    net = resnet()
    masks = random_masks(net)
    attach_masks(net, masks)
    name = list(masks)[1]
    place = tuple((~masks[name]).nonzero()[0].tolist())
    with torch.no_grad():
        net.get_parameter(name)[place] = 1.0
    assert admit(net) == (name,)
    assert leaked(net) == []
    assert int(masks_of(net)[name].sum()) == int(masks[name].sum()) + 1
    save_bundle(tmp_path / "net", net, manifest())


def test_packed_masks_are_smaller_than_a_bit_a_weight_when_sparse():
    generator = torch.Generator().manual_seed(0)
    dense = {"w": torch.rand(256, 256, generator=generator) < 0.5}
    sparse = {"w": torch.rand(256, 256, generator=generator) < 0.01}
    assert len(pack_masks(dense)) < 256 * 256 / 8 * 1.05
    assert len(pack_masks(sparse)) < 256 * 256 / 8 * 0.2
    shapes = {"w": torch.Size((256, 256))}
    assert torch.equal(unpack_masks(pack_masks(sparse), shapes, origin="f")["w"], sparse["w"])
    for wrong in ((256, 255), (257, 256)):
        with pytest.raises(UserError, match="another size"):
            unpack_masks(pack_masks(sparse), {"w": torch.Size(wrong)}, origin="f")
    with pytest.raises(UserError, match="'w', which the network lacks"):
        unpack_masks(pack_masks(sparse), {}, origin="f")


@pytest.mark.parametrize(
    ("layer", "edit"),
    [
        (nn.Conv2d(6, 8, 3), Edit(path="0", side="out", size=8, kept=(0, 3, 7))),
        (nn.Conv2d(6, 8, 3), Edit(path="0", side="in", size=6, kept=(1, 2))),
        (nn.Conv2d(8, 8, 3, groups=8), Edit(path="0", side="out", size=8, kept=(2, 5))),
        (nn.Conv2d(8, 6, 3, groups=2), Edit(path="0", side="in", size=8, kept=(0, 3, 5, 6))),
        (nn.ConvTranspose2d(6, 8, 3), Edit(path="0", side="out", size=8, kept=(0, 1))),
        (nn.Linear(6, 8), Edit(path="0", side="in", size=6, kept=(0, 5))),
        (nn.Linear(6, 8), Edit(path="0", side="prefix", size=6, kept=(0, 1, 2))),
    ],
)
def test_surgery_cuts_a_mask_as_it_cuts_the_weights(layer, edit):
    """The mask of what is left is what is left of the mask: a weight is kept exactly where the uncut network kept it."""
    net = nn.Sequential(layer)
    mask = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    with torch.no_grad():
        layer.weight.fill_(1.0)
    attach_masks(net, {"0.weight": mask})
    cut(net, edit)
    found = masks_of(net)["0.weight"]
    assert found.shape == net[0].weight.shape
    assert torch.equal(found, net[0].weight.detach() != 0)


def test_a_bare_parameters_mask_is_cut_along_its_dimension():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.ones(4, 6))

    net = Tokens()
    attach_masks(net, {"table": torch.arange(24).reshape(4, 6) % 3 == 0})
    SurgeryPlan(edits=(Edit(path="table", side="param", size=6, kept=(0, 1, 3), dim=1),)).replay(net)
    assert torch.equal(masks_of(net)["table"], net.table.detach() != 0)
