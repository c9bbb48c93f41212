import re
import subprocess
import sys
import tomllib

import pytest

from trimtab.compress.distill.objectives import objectives, parse_term
from trimtab.compress.distill.presets import presets
from trimtab.compress.recipe import load_recipe, parse_recipe
from trimtab.models.errors import UserError
from trimtab.recipe_text import UNSET
from trimtab.recipes import commented, distil_recipe, find_recipe, shipped, teaches_itself


def parse(*steps, **top):
    return parse_recipe({"format": 1, "step": list(steps), **top}, origin="r.toml")


@pytest.mark.parametrize(
    ("step", "message", "hint"),
    [
        ({"kind": "structurd", "mac_ratio": 0.5}, "step 1: unknown kind 'structurd'", "did you mean 'structured'"),
        ({"mac_ratio": 0.5}, "step 1 has no kind", "structured"),
        ({"kind": "structured", "mac_ratio": 1.5}, "mac_ratio = 1.5: .*less than 1", "MACs to keep"),
        ({"kind": "structured", "mac_ratio": 0}, "mac_ratio = 0: .*greater than 0", "MACs to keep"),
        ({"kind": "structured"}, "give one of mac_ratio and param_ratio", ""),
        ({"kind": "structured", "mac_ratio": 0.5, "param_ratio": 0.5}, "give one of mac_ratio and param_ratio", ""),
        ({"kind": "structured", "mac_ratio": 0.5, "rond_to": 4}, "unknown key 'rond_to'", "did you mean 'round_to'?"),
        ({"kind": "structured", "mac_ratio": 0.5, "importance": "magic"}, "importance = 'magic'", "judged by"),
        ({"kind": "finetune", "epochs": -1}, "epochs = -1: .*greater than 0", "passes over"),
        ({"kind": "finetune", "batch_size": 0}, "batch_size = 0", "images per step"),
        ({"kind": "distill", "objective": "kdd"}, "objective = 'kdd': .*unknown objective 'kdd': did you mean", "named sum"),
        ({"kind": "distill", "objectives": [{"kind": "kd", "tau": 2}]}, "kd: unknown key 'tau'", "terms of your own"),
        ({"kind": "distill", "objectives": [{"kind": "kd", "temperature": 0}]}, "kd: temperature = 0", "terms of your own"),
        ({"kind": "student"}, "model", "a zoo name"),
        (
            {"kind": "student", "model": "net.py:make"},
            "names no Python code: use `trimtab compress … --student net.py:make",
            "",
        ),
        ({"kind": "student", "model": "parent", "args": {"width": 2}}, "args .* go with a zoo name", ""),
        ({"kind": "student", "model": "./b", "args": {"width": 2}}, "args .* go with a zoo name", ""),
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
    path.write_text(re.sub(r"^# (\w+ = (?!\[$)\S)", r"\1", path.read_text(), flags=re.MULTILINE))
    assert load_recipe(path).steps == recipe.steps


def block(text):
    """The lines of a commented recipe from `# objectives = [` to `# ]`, without their first "# "."""
    lines = text.splitlines()
    start = lines.index("# objectives = [")
    return [line.removeprefix("# ") for line in lines[start : lines.index("# ]", start) + 1]]


def outcome(table):
    """The term's config, or what it says is missing."""
    try:
        return parse_term(table)
    except ValueError as error:
        return str(error)


def test_a_new_distillation_lists_every_objective_ready_to_be_uncommented():
    """All lines of the list at once are valid TOML that says every parameter, at its default."""
    text = commented(["student", "distill"])
    terms = tomllib.loads("\n".join(block(text)))["objectives"]
    assert [term["kind"] for term in terms] == objectives.names()
    for term in terms:
        config, card = objectives.get(term["kind"]).config, objectives.entry(term["kind"]).card
        assert f"#     # {card.title}: {card.formula}" in text
        unset = {n for n, f in config.model_fields.items() if f.is_required() or f.default is None} - {"kind"}
        assert set(term) >= set(config.model_fields) - unset
        for name in unset:
            assert f"#     #   {name}: " in text
        assert outcome(term) == outcome({"kind": term["kind"]}) or UNSET in term.values()
    for name, preset in presets.items():
        assert re.search(rf"^#   {re.escape(name)} +{re.escape(preset.title)}", text, re.MULTILINE)


def test_single_objectives_can_be_uncommented_in_a_new_recipe(tmp_path):
    text, path = commented(["student", "distill"]), tmp_path / "mine.toml"
    wanted = ("# objectives = [", "# ]", '#     {kind = "kd",', '#     {kind = "logit-mse",')
    path.write_text("\n".join(line.removeprefix("# ") if line.startswith(wanted) else line for line in text.splitlines()))
    student, distill = load_recipe(path).steps
    assert student.model == "resnet20"
    assert [term.kind for term in distill.objectives] == ["kd", "logit-mse"]


def test_shipped_distillations_say_what_their_names_promise():
    fresh, taught = find_recipe("kd++").steps
    assert (fresh.kind, fresh.model, taught.objective) == ("student", "resnet20", "kd++")
    chain = find_recipe("born-again").steps
    assert [(s.kind, getattr(s, "teacher", s.kind == "student" and s.model)) for s in chain] == [
        ("student", "parent"),
        ("distill", "parent"),
        ("student", "parent"),
        ("distill", "step:2"),
    ]


def test_a_distillation_in_words_is_the_recipe_it_would_be():
    made = distil_recipe("kd++", student="resnet8", student_args={"width": 0.5}, settings={"epochs": 3}, seed=4)
    written = parse(
        {"kind": "student", "model": "resnet8", "args": {"width": 0.5}},
        {"kind": "distill", "objective": "kd++", "epochs": 3},
        seed=4,
    )
    assert (made.digest, made.name) == (written.digest, "kd++")
    assert not teaches_itself(made)
    assert teaches_itself(distil_recipe("kd"))
    assert not teaches_itself(distil_recipe("kd", teacher="ema"))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"objective": "kdd"}, "--objective, --set .distill.: objective = 'kdd'"),
        ({"objective": "kd", "settings": {"epocs": 3}}, "unknown key 'epocs'\n.*did you mean 'epochs'"),
        ({"objective": "kd", "settings": {"objective": "dkd"}}, "--set objective= is said with --objective"),
        ({"objective": "kd", "settings": {"teacher": "x"}}, "--set teacher= is said with --teacher\n.*--teacher x"),
        ({"objective": "kd", "student_args": {"width": 2}}, "--student-arg width says nothing without --student"),
        ({"objective": "kd", "teacher": "nowhere"}, "--teacher nowhere is not a Bundle's folder"),
        ({"objective": "kd", "student": "parent", "student_args": {"width": 2}}, "args .* go with a zoo name"),
    ],
)
def test_a_distillation_in_wrong_words_is_named(asked, message):
    with pytest.raises(UserError, match=message):
        distil_recipe(asked.pop("objective"), **asked)


def test_validation_imports_no_torch():
    code = (
        "import sys; from trimtab.recipes import commented, find_recipe; find_recipe('born-again'); find_recipe('half')\n"
        "commented(['student', 'distill']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_validators_own_words_are_said_whole():
    with pytest.raises(UserError) as caught:
        parse_recipe({"format": 1, "step": [{"kind": "distill", "objective": "kd+++"}]}, origin="r.toml")
    assert "objective = 'kd+++': unknown objective 'kd+++': did you mean 'kd++'" in caught.value.what
