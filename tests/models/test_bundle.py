import json
import subprocess
import sys

import pytest
import torch

from trimtab.models.bundle import Manifest, load_bundle, save_bundle
from trimtab.models.contract import image_classifier
from trimtab.models.errors import UserError
from trimtab.models.source import Architecture, parse
from trimtab.models.surgery import Edit, SurgeryPlan

CONTRACT = image_classifier(channels=3, height=16, width=16, classes=tuple("abcdefghij"), mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture
def saved(tmp_path, user_net):
    architecture = parse(f"{user_net}:make", {"width": 16})
    torch.manual_seed(0)
    module = architecture.build().eval()
    plan = SurgeryPlan(
        edits=(
            Edit(path="left.0", side="out", size=16, kept=tuple(range(8))),
            Edit(path="left.1", side="out", size=16, kept=tuple(range(8))),
            Edit(path="mix.0", side="in", size=32, kept=(*range(8), *range(16, 32))),
        )
    )
    plan.replay(module)
    manifest = Manifest(architecture=architecture, contract=CONTRACT, plan=plan.model_dump(mode="json"))
    return module, save_bundle(tmp_path / "b", module, manifest)


def test_a_cut_network_reloads_with_the_same_function(saved):
    module, bundle = saved
    x = torch.randn(2, 3, 16, 16)
    again = load_bundle(bundle.folder).module().eval()
    assert torch.equal(again(x), module(x))
    assert again.left[0].out_channels == 8


def test_another_process_reloads_and_trains_it(saved):
    code = (
        "import sys, torch; from pathlib import Path; from trimtab.models.bundle import load_bundle\n"
        "m = load_bundle(Path(sys.argv[1])).module().train(); o = torch.optim.SGD(m.parameters(), 0.1)\n"
        "l = m(torch.randn(4, 3, 16, 16)).square().mean(); l.backward(); o.step(); print(float(l) > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(saved[1].folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_the_code_travels_with_the_bundle(saved, tmp_path, user_net):
    bundle = load_bundle(saved[1].folder)
    moved = bundle.manifest.architecture.model_copy(update={"file": str(tmp_path / "gone.py")})
    moved.build(copy=bundle.folder / "architecture.py")


def test_code_that_this_user_never_named_is_not_run(saved, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "a stranger"))
    with pytest.raises(UserError, match="has not been told to trust") as caught:
        saved[1].module()
    assert "--model" in str(caught.value)


def test_changed_code_is_refused(saved):
    code = saved[1].folder / "architecture.py"
    code.write_text(code.read_text() + "\n# changed\n")
    with pytest.raises(UserError, match="has changed since the Bundle was made"):
        saved[1].module()


def test_changed_weights_are_refused(saved):
    path = saved[1].folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="its sha256 differs"):
        saved[1].module()


def test_a_manifest_with_unknown_or_missing_keys_is_named(saved):
    path = saved[1].folder / "bundle.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "surprise": 1}))
    with pytest.raises(UserError, match="surprise"):
        load_bundle(saved[1].folder)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    with pytest.raises(UserError, match=r"is not a Bundle: it has no bundle\.json"):
        load_bundle(tmp_path)


def test_nan_weights_are_not_saved(tmp_path):
    architecture = Architecture(name="resnet8", kwargs={"num_classes": 10})
    module = architecture.build()
    module.fc.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"NaN or infinity: fc\.weight"):
        save_bundle(tmp_path / "b", module, Manifest(architecture=architecture, contract=CONTRACT))
    assert not (tmp_path / "b").exists()


def test_a_network_changed_behind_the_plan_is_not_saved(tmp_path):
    architecture = Architecture(name="resnet8", kwargs={"num_classes": 10})
    module = architecture.build()
    module.fc = torch.nn.Linear(64, 7)
    with pytest.raises(UserError, match=r"fc\.weight"):
        save_bundle(tmp_path / "b", module, Manifest(architecture=architecture, contract=CONTRACT))


def test_the_hash_follows_the_function(saved, tmp_path):
    module, bundle = saved
    assert load_bundle(bundle.folder).hash == bundle.hash
    module.head.bias.data[0] += 1
    assert save_bundle(tmp_path / "c", module, bundle.manifest).hash != bundle.hash
