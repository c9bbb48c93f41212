import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trimtab.models.checkpoint import convert_untrusted, load_into, load_state
from trimtab.models.errors import UserError


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {f"module.{k}": v for k, v in s.items()},
    ],
)
def test_a_torch_checkpoint_is_read_in_its_usual_wrappings(tmp_path, wrap):
    state = net().state_dict()
    torch.save(wrap(state), tmp_path / "x.pt")
    loaded = load_state(tmp_path / "x.pt")
    assert set(loaded) == set(state)
    assert all(torch.equal(loaded[k], state[k]) for k in state)


def test_safetensors_are_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    assert load_state(tmp_path / "x.safetensors")["a"].tolist() == [1, 1]


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_that_needs_code_is_refused_with_the_way_out(tmp_path, capsys):
    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="is a pickle that runs code when loaded") as caught:
        load_state(tmp_path / "evil.pt")
    assert "print" in str(caught.value)
    assert "convert-checkpoint --trust" in str(caught.value)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError):
        load_state(tmp_path / "raw.pt")
    assert "code ran" not in capsys.readouterr().out


def test_converting_a_whole_pickled_model_wants_trust_and_says_what_it_does(tmp_path):
    model = net()
    torch.save(model, tmp_path / "whole.pt")
    said = []
    with pytest.raises(UserError, match="runs the Python code"):
        convert_untrusted(tmp_path / "whole.pt", tmp_path / "x.safetensors", trust=False, say=said.append)
    assert convert_untrusted(tmp_path / "whole.pt", tmp_path / "x.safetensors", trust=True, say=said.append) == len(
        model.state_dict()
    )
    assert "may execute any code" in said[0]
    load_into(net(), load_state(tmp_path / "x.safetensors"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.mkdir(), "is a folder"),
        (lambda p: p.write_bytes(b"not a checkpoint"), "is not a readable torch checkpoint|is a pickle"),
        (lambda p: torch.save({"epoch": 3}, p), "holds no tensors .*'epoch'"),
    ],
)
def test_unreadable_checkpoints_are_named(tmp_path, make, message):
    path = tmp_path / "x.pt"
    make(path)
    with pytest.raises(UserError, match=message):
        load_state(path)


def test_a_damaged_safetensors_is_named(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\x01" * 64)
    with pytest.raises(UserError, match="not a readable safetensors"):
        load_state(tmp_path / "x.safetensors")


def test_a_misfit_lists_missing_unexpected_and_both_shapes():
    state = net().state_dict()
    state["0.weight"] = torch.zeros(4, 5)
    state["surplus"] = state.pop("0.bias")
    with pytest.raises(UserError) as caught:
        load_into(net(), state, origin="x.pt")
    text = str(caught.value)
    assert "1 missing:\n    0.bias" in text
    assert "1 unexpected:\n    surplus" in text
    assert "0.weight: the network has (4, 3), x.pt (4, 5)" in text


def test_only_the_first_ten_names_are_listed():
    wide = nn.Sequential(*(nn.Linear(1, 1) for _ in range(8)))
    with pytest.raises(UserError, match="16 missing") as caught:
        load_into(wide, {})
    assert "… and 6 more" in str(caught.value)
    assert str(caught.value).count("weight") == 5
