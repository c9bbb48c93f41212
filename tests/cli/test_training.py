"""`trimtab train`: a network's own method from its card, settings that go to the right step, and refusals."""

from __future__ import annotations

import pytest

from trimtab.models.architectures import ArchitectureCard, architectures, stock_arguments
from trimtab.models.contract import image_classifier
from trimtab.models.errors import UserError
from trimtab.training import card_of, stepped_keywords, stock_name, training_recipe

TWO = ArchitectureCard(
    "two", "a test", (3, 8, 8), recipe=({"kind": "structured", "mac_ratio": 0.5}, {"kind": "finetune", "epochs": 7})
)


def test_without_a_card_training_is_one_finetune():
    recipe = training_recipe(None, {"epochs": 3}, seed=4)
    assert [step.kind for step in recipe.steps] == ["finetune"]
    assert recipe.steps[0].epochs == 3
    assert recipe.seed == 4


def test_a_cards_steps_keep_their_own_values_unless_set():
    recipe = training_recipe(TWO, {"lr": 0.3, "structured.mac_ratio": 0.25})
    assert [step.kind for step in recipe.steps] == ["structured", "finetune"]
    assert recipe.steps[0].mac_ratio == 0.25
    assert recipe.steps[1].epochs == 7
    assert recipe.steps[1].lr == 0.3


def test_a_setting_goes_to_the_last_step_that_has_it():
    twice = ArchitectureCard(
        "twice",
        "a test",
        (3, 8, 8),
        recipe=({"kind": "finetune"}, {"kind": "finetune"}, {"kind": "structured", "mac_ratio": 0.5}),
    )
    recipe = training_recipe(twice, {"epochs": 2})
    assert [getattr(step, "epochs", None) for step in recipe.steps] == [10, 2, None]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epocs": 3}, r"unknown key 'epocs'[\s\S]*did you mean 'epochs'"),
        ({"finetone.epochs": 3}, r"there is no step 'finetone'[\s\S]*did you mean 'finetune'"),
        ({"finetune.mac_ratio": 3}, r"unknown key 'mac_ratio'"),
    ],
)
def test_a_setting_that_no_step_has_is_named(settings, said):
    with pytest.raises(UserError, match=said):
        training_recipe(TWO, settings)


def test_unpaired_is_for_isp_networks():
    with pytest.raises(UserError, match="--unpaired says nothing for this network"):
        training_recipe(TWO, {}, unpaired=True)


@pytest.mark.parametrize("unpaired", [True, False])
def test_an_isp_network_learns_with_pairs_or_without(unpaired):
    recipe = training_recipe(card_of("efficient_isp"), {}, unpaired=unpaired)
    assert [step.mode for step in recipe.steps] == ["unpaired" if unpaired else "paired"]


def test_hyphens_of_a_typed_name_become_underscores_only_where_that_is_a_network():
    assert stock_name("mobilenet-v3-small") == "mobilenet_v3_small"
    assert stock_name("no-such-net") == "no-such-net"
    assert stock_name("my-net.py:make") == "my-net.py:make"


def test_settings_may_name_a_step():
    assert stepped_keywords(["pdn-teacher.epochs=3", "lr=1e-3"], "--set") == {"pdn-teacher.epochs": 3, "lr": 1e-3}
    for wrong in ("epochs", "a b=1", ".x=1"):
        with pytest.raises(UserError, match="is not key=value"):
            stepped_keywords([wrong], "--set")


@pytest.mark.parametrize("name", architectures.names())
def test_every_card_names_a_task_and_steps_that_exist(name):
    from trimtab.models.tasks.task import tasks

    card = card_of(name)
    assert card.task in tasks
    assert training_recipe(card, {}).steps


def test_networks_get_the_arguments_that_they_take():
    contract = image_classifier(channels=1, height=32, width=32, classes=("a", "b"), mean=(0.5,), std=(0.5,))
    assert stock_arguments(contract, "resnet20") == {"num_classes": 2, "in_channels": 1}
    # a vision transformer resizes its positions: the size it was published for stays its own
    assert stock_arguments(contract, "vit_nano") == {"num_classes": 2, "in_channels": 1}
