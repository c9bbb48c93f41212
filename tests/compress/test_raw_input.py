"""The step "raw-input": the same network behind a layer that takes sensor counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from isp_training_kit import drawn_photographs

from trimtab.compress.apply import run_recipe
from trimtab.compress.recipe import parse_recipe
from trimtab.loading import fitted, open_task
from trimtab.models.bundle import Manifest, load_bundle, save_bundle
from trimtab.models.errors import UserError
from trimtab.models.raw.frame import RawFrame
from trimtab.models.raw.packing import planes3
from trimtab.models.source import parse
from trimtab.models.tasks.isp import isp_contract
from trimtab.models.tasks.isp_data import Sensor

BLACK = (60.0, 61.0, 62.0, 63.0)


def network(folder, name, form, **kwargs):
    torch.manual_seed(0)
    architecture = parse(name, kwargs)
    contract = isp_contract(form, Sensor("RGGB", (63.0,) * 4, 1023.0))
    return save_bundle(folder, architecture.build(), Manifest(architecture=architecture, contract=contract))


def applied(bundle, folder, task=None, **settings):
    recipe = parse_recipe({"format": 1, "step": [{"kind": "raw-input", **settings}]}, origin="test", name="test")
    return run_recipe(bundle, recipe, task, folder)[0]


@pytest.mark.parametrize("pattern", ["RGGB", "GRBG", "GBRG", "BGGR"])
@pytest.mark.parametrize(("name", "form"), [("efficient_isp", "packed"), ("robust_isp", "packed"), ("rmfa_tiny", "planes")])
def test_counts_give_the_picture_that_packing_outside_gives(tmp_path, name, form, pattern):
    before = network(tmp_path / "net", name, form)
    done = applied(before, tmp_path / "work", pattern=pattern, black=list(BLACK), white=1023, dtype="uint16")
    mosaic = np.random.default_rng(0).integers(50, 1024, (24, 32), dtype=np.uint16)
    frame = RawFrame(mosaic, pattern, BLACK, 1023.0)
    outside = frame.packed() if form == "packed" else planes3(frame.normalised(), pattern)
    after = load_bundle(done.bundle.folder)
    with torch.no_grad():
        expected = before.module().eval()(torch.from_numpy(outside)[None])
        found = after.module().eval()(torch.from_numpy(mosaic)[None, None])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # (count − black)·k against count·k − black·k in float32
    spec = after.contract.inputs[0]
    assert (spec.shape, spec.dtype, spec.value_range) == (("N", 1, "H", "W"), "uint16", (0.0, 1023.0))
    assert done.figures["sensor"]["pattern"] == pattern


def test_what_the_step_leaves_out_is_the_datas(tmp_path):
    (tmp_path / "photos").mkdir()
    task = open_task(
        "isp",
        {
            "data": f"photos:{drawn_photographs(tmp_path / 'photos')}",
            "size": (32, 32),
            "pattern": "BGGR",
            "black": 16,
            "white": 255,
        },
    )
    before = network(tmp_path / "net", "efficient_isp", "packed")
    done = applied(before, tmp_path / "work", task, dtype="uint8")
    assert done.bundle.manifest.architecture.kwargs == {
        "packing": "inside",
        "pattern": "BGGR",
        "black": 16.0,
        "white": 255.0,
        "dtype": "uint8",
    }
    outside, inside = (fitted(bundle.contract, task).evaluate(bundle.module().eval()) for bundle in (before, done.bundle))
    assert inside["psnr"] == pytest.approx(outside["psnr"], abs=1e-3)  # as above


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "doesn't know the sensor's pattern, black, white"),
        ({"pattern": "RGGB", "white": 1023}, "doesn't know the sensor's black"),
        ({"pattern": "RGBG", "black": [64], "white": 1023}, "no Bayer phase"),
        ({"pattern": "RGGB", "black": [64], "white": 32}, "is not below the white level"),
        ({"pattern": "RGGB", "black": [1, 2], "white": 32}, "black has 2 levels"),
        ({"pattern": "RGGB", "black": [64], "white": 1023, "dtype": "uint8"}, "does not fit dtype='uint8'"),
    ],
)
def test_a_sensor_that_makes_no_sense_is_refused(tmp_path, settings, said):
    with pytest.raises(UserError, match=said):
        applied(network(tmp_path / "net", "efficient_isp", "packed"), tmp_path / "work", **settings)


def test_other_networks_are_refused_and_so_is_a_second_time(tmp_path, user_net):
    levels = {"pattern": "RGGB", "black": [64], "white": 1023}
    done = applied(network(tmp_path / "net", "efficient_isp", "packed"), tmp_path / "work", **levels)
    with pytest.raises(UserError, match="takes sensor counts already"):
        applied(done.bundle, tmp_path / "again", **levels)
    with pytest.raises(UserError, match="networks that develop RAW, and this is resnet8"):
        applied(network(tmp_path / "other", "resnet8", "planes"), tmp_path / "third", **levels)
