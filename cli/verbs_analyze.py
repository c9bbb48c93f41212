"""`trimtab analyze`: several networks side by side on clean and corrupted data, as a record and a page of six linked views."""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import ConsoleProgress, output
from .options import Device, Force, Limit, Selection, listed, selects

if TYPE_CHECKING:
    from .compress.analyse.analysis_record import AnalysisRecord
    from .models.bundle import Bundle
    from .models.tasks.task import Task

ALL = "all"


@selects
def analyze(
    targets: Annotated[
        list[str],
        typer.Argument(
            help="Bundles' folders, the reference first; NAME=FOLDER gives a name. Or an analysis's folder alone: its page is made anew."
        ),
    ],
    selection: Selection,
    corruptions: Annotated[
        str, typer.Option("--corruptions", help="Kinds, comma-separated: gaussian_noise,rotate. Default: all.")
    ] = ALL,
    severities: Annotated[str, typer.Option("--severities", help="Of 1 to 5, comma-separated.")] = "1,2,3,4,5",
    limit: Limit = None,
    device: Device = "auto",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The analysis's folder; never overwritten without --force.")
    ] = None,
    force: Force = False,
) -> None:
    """Margins, angles and norms of several networks, clean and corrupted: what pruning did to which classes and samples, as a page."""
    from .analysis_page import PAGE, write_analysis_page
    from .models import files
    from .models.errors import UserError

    if (earlier := earlier_analysis(targets)) is not None:
        _render_again(earlier, out, force=force)
        return
    kinds, levels = () if corruptions == ALL else listed(corruptions), severities_of(severities)
    if out is None:
        raise UserError("an analysis needs a folder for its record and page", hint="-o analysis")
    files.refuse_overwrite(out, force=force)
    with ExitStack() as stack:
        bundles, task = open_models(targets, selection, stack)
        from .compress.analyse.analysis import analyse_models

        record = analyse_models(
            bundles,
            task,
            corruptions=kinds,
            severities=levels,
            limit=limit or 0,
            seed=selection.seed,
            device=device,
            progress=ConsoleProgress(),
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        )
    with files.new_folder(out, force=force) as folder:
        record.save(folder)
        write_analysis_page(record, folder / PAGE)
    _tell(record, out / PAGE)


def earlier_analysis(targets: list[str]) -> Path | None:
    """The folder of a finished analysis, when it is all that was named. Raises UserError when there is one among several targets."""
    from .compress.analyse.analysis_record import JSON
    from .models.errors import UserError

    found = [path for path in map(Path, targets) if (path / JSON).exists() or path.name == JSON]
    if found and len(targets) > 1:
        raise UserError(f"{found[0]} is a finished analysis, not a network", hint="name it alone, to make its page anew")
    return found[0] if found else None


def severities_of(text: str) -> tuple[int, ...]:
    """The severities in `1,3,5`. Raises UserError for what is no whole number from 1 to 5."""
    from .models.errors import UserError
    from .models.tasks.corruptions import check_severities

    words = listed(text)
    if wrong := [word for word in words if not word.isdecimal()]:
        raise UserError(f"--severities {wrong[0]!r} is not a whole number from 1 to 5", hint="--severities 1,3,5")
    return check_severities([int(word) for word in words])


def open_models(targets: list[str], selection: Selection, stack: ExitStack) -> tuple[list[tuple[str, Bundle]], Task]:
    """(names and Bundles in the order given, the first one's task: the data of --data, or its own). Raises UserError."""
    from .loading import open_network
    from .models.bundle import load_bundle
    from .workflow import require_task

    named = [name_and_path(target) for target in targets]
    names = told_apart([name for name, _ in named], [path for _, path in named])
    first, own = open_network(named[0][1], stack, selection)
    bundles = [(names[0], first)]
    for name, (_, path) in zip(names[1:], named[1:], strict=True):
        plain = path.is_dir() and not selection.model
        bundles.append((name, load_bundle(path) if plain else open_network(path, stack, selection)[0]))
    return bundles, require_task(own, "analyze")


def name_and_path(target: str) -> tuple[str, Path]:
    """("small", Path) of `small=FOLDER`; ("", Path) of a plain path, even of one that holds a =."""
    name, equals, rest = target.partition("=")
    if equals and name and not Path(target).exists():
        return name, Path(rest)
    return "", Path(target)


def told_apart(names: list[str], paths: list[Path]) -> list[str]:
    """A name for each: the one given, else the path's end, as much of it as tells it from the others; then a number."""
    parts = [path.resolve().parts for path in paths]
    found: list[str] = []
    for at, name in enumerate(names):
        rivals = [parts[i] for i in range(len(parts)) if i != at and not names[i]]
        length = 1
        while length < len(parts[at]) - 1 and any(rival[-length:] == parts[at][-length:] for rival in rivals):
            length += 1
        found.append(name or "/".join(parts[at][-length:]))
    for at, name in enumerate(found):
        number = 2
        while found[at] in found[:at]:
            found[at] = f"{name} ({number})"
            number += 1
    return found


def _render_again(folder: Path, out: Path | None, *, force: bool) -> None:
    """The page of a finished analysis, made anew in its folder, or at -o."""
    from .analysis_page import PAGE, write_analysis_page
    from .compress.analyse.analysis_record import JSON, AnalysisRecord
    from .models import files

    record = AnalysisRecord.load(folder)
    folder = folder.parent if folder.name == JSON else folder
    if out is not None:
        files.refuse_overwrite(out / PAGE if out.is_dir() else out, force=force)
    path = folder / PAGE if out is None else out / PAGE if out.is_dir() or not out.suffix else out
    _tell(record, write_analysis_page(record, path))


def _tell(record: AnalysisRecord, page: Path) -> None:
    """What was found, and where the page is."""
    from .analysis_text import mean_corrupted, say_analysis, say_page

    info = record.info
    say_analysis(info)
    size = page.stat().st_size
    say_page(size, str(page.resolve()))
    keys = ("samples", "classes", "corruptions", "severities", "accuracy", "survival", "worst_classes")
    models = [{**row, "corrupted": mean_corrupted(info, m)} for m, row in enumerate(info["models"])]
    output.result(
        {"page": str(page.resolve()), "page_bytes": size, "models": models, **{key: info[key] for key in keys}}  # type: ignore[literal-required]
    )
