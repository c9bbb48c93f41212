"""`trimtab train`: which task a network is trained on, and by which steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .models.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from .compress.recipe import Recipe
    from .models.architectures import ArchitectureCard

PLAIN: tuple[Mapping[str, Any], ...] = ({"kind": "finetune"},)
"""How a network is trained that brings no method of its own."""
UNPAIRED = "isp"
"""The step that can do without pairs."""


def stock_name(model: str) -> str:
    """`model`, or, where only that is a stock network's name, the same with underscores for hyphens: skipblocknet-m."""
    from .models.architectures import architectures

    plain = model.replace("-", "_")
    return plain if ".py:" not in model and model not in architectures and plain in architectures else model


def card_of(model: str) -> ArchitectureCard | None:
    """A stock network's card; None for a user's own code."""
    from .models.architectures import architectures

    return None if ".py:" in model else architectures.entry(model).card


def training_recipe(
    card: ArchitectureCard | None, settings: Mapping[str, Any], *, unpaired: bool = False, seed: int = 0
) -> Recipe:
    """The steps that train a network: its card's own, or one of plain training, with `settings` written in.

    A setting goes to the last step that has such a parameter; "STEP.NAME" says which step. `unpaired` trains an ISP without pairs;
    otherwise the targets of its pairs are used. Raises UserError for a setting that no step has, and where nothing trains unpaired.
    """
    from .compress.method import methods
    from .compress.recipe import parse_recipe

    steps = [dict(step) for step in (card.recipe if card is not None and card.recipe else PLAIN)]
    kinds = [str(step["kind"]) for step in steps]
    if UNPAIRED in kinds:
        steps[kinds.index(UNPAIRED)]["mode"] = "unpaired" if unpaired else "paired"
    elif unpaired:
        raise UserError(
            "--unpaired says nothing for this network: its targets go with its inputs",
            hint="it is for ISP networks: efficient_isp, robust_isp, rmfa_tiny",
        )
    fields = [methods.get(kind).config.model_fields for kind in kinds]
    for key, value in settings.items():
        step, dot, name = key.rpartition(".")
        if dot and step not in kinds:
            raise UserError(f"--set {key}: there is no step {step!r}", hint=did_you_mean(step, kinds))
        holders = [i for i, known in enumerate(fields) if name in known and (not dot or kinds[i] == step)]
        place = holders[-1] if holders else kinds.index(step) if dot else len(steps) - 1  # the recipe's check names a wrong one
        steps[place][name] = value
    return parse_recipe({"format": 1, "seed": seed, "step": steps}, origin="train", name="train")


def stepped_keywords(pairs: Sequence[str], flag: str) -> dict[str, Any]:
    """`key=value` pairs whose key may name a step: "efficientad.epochs=3"."""
    from .loading import literal

    found = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not all(part.replace("-", "_").isidentifier() for part in key.split(".")):
            raise UserError(f"{flag} {pair!r} is not key=value", hint=f"{flag} epochs=15, or {flag} STEP.epochs=15")
        found[key] = literal(text)
    return found
