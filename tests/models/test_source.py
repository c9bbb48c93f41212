import pytest
import torch

from trimtab.models.errors import UserError
from trimtab.models.outputs import SelectOutput, require_tensor
from trimtab.models.source import Architecture, parse


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("resnet2", "unknown architecture 'resnet2'", "did you mean"),
        ("net.py", "names a file but no factory", "net.py:NAME"),
        ("nowhere.py:make", "does not exist", "check the path"),
    ],
)
def test_what_can_t_be_a_network_is_explained(text, message, hint):
    with pytest.raises(UserError, match=message) as caught:
        parse(text)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("factory", "kwargs", "message"),
    [
        ("broken", {}, r"broken\(\) raised ValueError: no such variant"),
        ("not_a_module", {}, "returned int, not a torch.nn.Module"),
        ("mke", {}, "has no function 'mke'"),
        ("make", {"depth": 3}, r"make\(depth=3\) raised TypeError"),
    ],
)
def test_a_factory_that_fails_is_explained(user_net, factory, kwargs, message):
    with pytest.raises(UserError, match=message):
        parse(f"{user_net}:{factory}", kwargs).build()


def test_a_file_that_fails_to_import_is_explained(tmp_path):
    (tmp_path / "bad.py").write_text("import no_such_thing\n")
    with pytest.raises(UserError, match=r"importing .*bad\.py failed: ModuleNotFoundError"):
        parse(f"{tmp_path}/bad.py:make").build()


def test_a_factory_may_import_its_siblings(tmp_path):
    (tmp_path / "sibling_of_net.py").write_text("from torch import nn\nWIDTH = 5\n")
    (tmp_path / "net.py").write_text("from sibling_of_net import WIDTH, nn\ndef make(): return nn.Linear(WIDTH, 2)\n")
    assert parse(f"{tmp_path}/net.py:make").build().in_features == 5


def test_imports_come_from_the_folder_the_user_named_not_from_one_a_manifest_names(tmp_path):
    for folder, width in (("mine", 5), ("theirs", 9)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "sibling_of_mine.py").write_text(f"WIDTH = {width}\n")
        (tmp_path / folder / "net.py").write_text(
            "from torch import nn\nfrom sibling_of_mine import WIDTH\ndef make(): return nn.Linear(WIDTH, 2)\n"
        )
    named = parse(f"{tmp_path}/mine/net.py:make")
    lured = named.model_copy(update={"file": str(tmp_path / "theirs" / "net.py")})
    assert lured.build().in_features == 5


def test_a_zoo_network_is_built_with_its_arguments():
    assert Architecture(name="resnet8", kwargs={"num_classes": 7, "in_channels": 1}).build().fc.out_features == 7


def test_a_dict_output_is_selected_by_name_and_several_are_explained(user_net):
    module = parse(f"{user_net}:make_dict").build().eval()
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(SelectOutput(module, "logits")(x), module(x)["logits"])
    with pytest.raises(UserError, match=r"returns a dict with 'logits' \(2, 10\), 'probabilities' \(2, 10\)") as caught:
        require_tensor(module(x))
    assert "--output logits" in str(caught.value)
    with pytest.raises(UserError, match="no output 'logit'"):
        SelectOutput(module, "logit")(x)
