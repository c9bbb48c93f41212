"""`trimtab inspect`, `models`, `recipes` and `convert-checkpoint`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import output
from .options import Force, Selection, selects

if TYPE_CHECKING:
    from .inspection import Inspection

models = typer.Typer(help="The architecture zoo.", no_args_is_help=True, rich_markup_mode=None)
recipes = typer.Typer(help="Shipped recipes, and new ones.", no_args_is_help=True, rich_markup_mode=None)


@selects
def inspect(
    network: Annotated[Path, typer.Argument(help="A Bundle's folder, or a checkpoint with --model.")],
    selection: Selection,
    filters: Annotated[
        bool, typer.Option("--filters", help="Instead: the filters of every layer, sparse, redundant, untrained or healthy.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option("--against", help="With --filters: another Bundle or checkpoint; how far its 3×3 kernels have shifted."),
    ] = None,
) -> None:
    """Layers, params, MACs, which channels can be pruned and which layers gated, or why not; the branches of a routed network."""
    from .inspection import inspect_bundle
    from .loading import open_network
    from .models.errors import UserError

    if against is not None and not filters:
        raise UserError("--against compares filters, and there is no --filters", hint="add --filters")
    with ExitStack() as stack:
        bundle, _task = open_network(network, stack, selection)
        if filters:
            from .filters_text import show_filters

            show_filters(bundle, against, selection)
            return
        seen = inspect_bundle(bundle)
    cost, analysis = seen.cost, seen.analysis
    tied = {m.path: group for group in analysis.groups for m in group.members if m.side == "out"}
    fixed = {f.path: f.reason for f in analysis.fixed}
    rows = [
        (
            layer.path or "(root)",
            layer.kind,
            "×".join(map(str, layer.output)),
            f"{layer.macs:,}",
            f"{layer.params:,}",
            _prunable(layer.path, tied, fixed),
        )
        for layer in cost.layers
    ]
    name = bundle.manifest.architecture.name
    title = f"{name}, the largest of {len(seen.branches)} branches" if seen.branches else name
    output.table(title, ("layer", "kind", "output", ">MACs", ">params", "channels"), rows)
    output.say(
        f"{cost.macs:,} MACs, {cost.params:,} params, weights {cost.weight_bytes / 1e6:.2f} MB, "
        f"activation peak {cost.activation_peak_bytes / 1e6:.2f} MB (batch 1, fp32)"
    )
    output.say(f"{len(analysis.groups)} channel groups can be pruned; {len(fixed)} layers can't")
    _say_gates(seen)
    _say_branches(seen)
    output.result(
        {
            "macs": cost.macs,
            "params": cost.params,
            "weight_bytes": cost.weight_bytes,
            "activation_peak_bytes": cost.activation_peak_bytes,
            "layers": [
                {**vars(layer), "prunable": layer.path in tied, "reason": fixed.get(layer.path, "")} for layer in cost.layers
            ],
            "gates": [vars(row) for row in seen.gates],
            "rule": seen.rule,
            "branches": [vars(row) for row in seen.branches],
        }
    )


def _say_gates(seen: Inspection) -> None:
    """Which convolutions a gate can compute in part for each input, and why not the others."""
    output.say()
    if seen.gates_refused:
        output.say(f"no layer can be gated: {seen.gates_refused}")
        return
    rows = [
        (
            row.path,
            row.state,
            f"{row.channels}" if row.channels else "",
            f"{row.saves:.1%}" if row.channels else "",
            row.note.replace("only its own outputs are saved:", "its own outputs alone:"),
        )
        for row in seen.gates
    ]
    if rows:
        output.table("gates (the step ftwt)", ("convolution", "gate", ">filters", ">MACs, at most", "saves, or why not"), rows)
    able = sum(row.state != "no" for row in seen.gates)
    output.say(f"{able} of {len(rows)} convolutions can be gated" + (", linear layers never are" if rows else ""))


def _say_branches(seen: Inspection) -> None:
    """What a routed network chooses among."""
    if not seen.branches:
        return
    output.say()
    rows = [
        (
            row.number,
            f"{row.macs:,}",
            f"{row.path_macs:,}",
            f"{row.params:,}",
            f"{row.threshold:.4f}" if row.threshold is not None else "",
        )
        for row in seen.branches
    ]
    output.table(f"branches ({seen.rule})", ("branch", ">MACs", ">… with the way there", ">params", ">threshold"), rows)


def _prunable(path: str, tied: dict[str, Any], fixed: dict[str, str]) -> str:
    if path in fixed:
        return f"fixed: {fixed[path]}"
    if path in tied:
        group = tied[path]
        return f"{group.channels} prunable" if group.root == path else f"tied to {group.root}"
    return ""


@models.command("ls")
def models_ls() -> None:
    """The zoo: names, papers and input sizes."""
    from .models.architectures import architectures

    rows = [(e.name, e.card.title, e.card.task, "×".join(map(str, e.card.input)), e.card.source) for e in architectures]
    output.table("", ("name", "network", "task", "input", "source"), rows)
    output.result([{"name": e.name, **vars(e.card)} for e in architectures])


@recipes.command("ls")
def recipes_ls() -> None:
    """The shipped recipes, the methods a recipe may use, and the objectives of its distillations."""
    from .compress.distill.objectives import objectives
    from .compress.distill.presets import presets
    from .compress.method import methods
    from .compress.recipe import load_recipe
    from .recipes import shipped

    loaded = {name: load_recipe(path) for name, path in shipped().items()}
    output.table("recipes", ("name", "steps"), [(name, " → ".join(s.kind for s in r.steps)) for name, r in loaded.items()])
    output.say()
    output.table("methods", ("kind", "what", "source"), [(e.name, e.card.title, e.card.source) for e in methods])
    output.say()
    rows = [(f"preset {name}", p.title, p.source) for name, p in presets.items()]
    rows += [(f"term {e.name}", e.card.title, e.card.source) for e in objectives]
    output.table("objectives", ("name", "what", "source"), rows)
    output.result(
        {
            "recipes": {n: [s.kind for s in r.steps] for n, r in loaded.items()},
            "methods": [{"kind": e.name, **vars(e.card)} for e in methods],
            "presets": [{"name": name, **vars(preset)} for name, preset in presets.items()],
            "objectives": [{"kind": e.name, **vars(e.card)} for e in objectives],
        }
    )


@recipes.command("show")
def recipes_show(name: Annotated[str, typer.Argument(help="A shipped recipe's name, or a file.")]) -> None:
    """A recipe's text."""
    from .recipes import recipe_path

    output.say(recipe_path(name).read_text().rstrip())


@recipes.command("new")
def recipes_new(
    kinds: Annotated[list[str], typer.Argument(help="Methods, in order: structured distill.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The file to write; standard output without it.")] = None,
    force: Force = False,
) -> None:
    """A commented recipe with every parameter, its default and its meaning; for distill also every objective."""
    from .models import files
    from .recipes import commented

    text = commented(kinds)
    if out is None:
        output.say(text.rstrip())
        return
    files.refuse_overwrite(out, force=force)
    files.write_text(out, text)
    output.say(f"recipe: {out}")


@recipes.command("validate")
def recipes_validate(path: Annotated[str, typer.Argument(help="A recipe file, or a shipped recipe's name.")]) -> None:
    """Checks a recipe without importing torch; exit 2 says what is wrong."""
    from .recipes import find_recipe

    recipe = find_recipe(path)
    output.say(f"{path}: valid, {' → '.join(step.kind for step in recipe.steps)}")
    output.result({"name": recipe.name, "steps": [step.model_dump(mode="json") for step in recipe.steps]})


def convert_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="A .pt/.pth file that needs code to load.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The file to write. Default: beside it, as .safetensors.")
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Yes, run the code in this file: I know who made it.")] = False,
    force: Force = False,
) -> None:
    """Unpickle a checkpoint that runs code, once, and keep only its tensors."""
    from .models import files
    from .models.checkpoint import convert_untrusted

    out = out or checkpoint.with_suffix(".safetensors")
    files.refuse_overwrite(out, force=force)
    count = convert_untrusted(checkpoint, out, trust=trust, say=output.say)
    output.say(f"{count} tensors: {out}")
