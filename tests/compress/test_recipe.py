import re
import subprocess
import sys

import pytest

from trimtab.compress.recipe import load_recipe, parse_recipe
from trimtab.models.errors import UserError
from trimtab.recipes import commented, find_recipe, shipped


def parse(*steps, **top):
    return parse_recipe({"format": 1, "step": list(steps), **top}, origin="r.toml")


@pytest.mark.parametrize(
    ("step", "message", "hint"),
    [
        ({"kind": "structurd", "mac_ratio": 0.5}, "step 1: unknown kind 'structurd'", "did you mean 'structured'?"),
        ({"mac_ratio": 0.5}, "step 1 has no kind", "structured"),
        ({"kind": "structured", "mac_ratio": 1.5}, "mac_ratio = 1.5: .*less than 1", "MACs to keep"),
        ({"kind": "structured", "mac_ratio": 0}, "mac_ratio = 0: .*greater than 0", "MACs to keep"),
        ({"kind": "structured"}, "give one of mac_ratio and param_ratio", ""),
        ({"kind": "structured", "mac_ratio": 0.5, "param_ratio": 0.5}, "give one of mac_ratio and param_ratio", ""),
        ({"kind": "structured", "mac_ratio": 0.5, "rond_to": 4}, "unknown key 'rond_to'", "did you mean 'round_to'?"),
        ({"kind": "structured", "mac_ratio": 0.5, "importance": "magic"}, "importance = 'magic'", "judged by"),
        ({"kind": "finetune", "epochs": -1}, "epochs = -1: .*greater than 0", "passes over"),
        ({"kind": "finetune", "batch_size": 0}, "batch_size = 0", "images per step"),
    ],
)
def test_a_wrong_step_names_the_key_the_value_and_the_way_out(step, message, hint):
    with pytest.raises(UserError, match=message) as caught:
        parse(step)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"format": 2, "step": [{"kind": "finetune"}]}, "format is 2"),
        ({"step": [{"kind": "finetune"}]}, "format is None"),
        ({"format": 1}, "has no steps"),
        ({"format": 1, "steps": []}, "unknown key 'steps'"),
        ({"format": 1, "seed": -1, "step": [{"kind": "finetune"}]}, "seed is -1"),
    ],
)
def test_a_wrong_recipe_is_named(data, message):
    with pytest.raises(UserError, match=message):
        parse_recipe(data, origin="r.toml")


def test_files_that_are_no_recipes(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("step = [")
    with pytest.raises(UserError, match=r"bad\.toml is not valid TOML"):
        load_recipe(tmp_path / "bad.toml")
    with pytest.raises(UserError, match="recipe hlf does not exist") as caught:
        find_recipe("hlf")
    assert "half" in str(caught.value)


def test_the_digest_follows_the_steps_and_the_seed():
    step = {"kind": "structured", "mac_ratio": 0.5}
    assert parse(step).digest == parse(dict(step)).digest
    assert parse(step).digest != parse({**step, "mac_ratio": 0.6}).digest
    assert parse(step).digest != parse(step, seed=1).digest


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_recipes_are_valid(name):
    assert find_recipe(name).steps


def test_a_new_recipe_is_valid_and_says_every_default(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(commented(["structured", "finetune", "distill"]))
    recipe = load_recipe(path)
    assert [s.kind for s in recipe.steps] == ["structured", "finetune", "distill"]
    path.write_text(re.sub(r"^# (\w+ = \S)", r"\1", path.read_text(), flags=re.MULTILINE))
    assert load_recipe(path).steps == recipe.steps


def test_validation_imports_no_torch():
    code = "import sys; from trimtab.recipes import find_recipe; find_recipe('half'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
