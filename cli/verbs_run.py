"""`trimtab demo`, `trimtab run` and `trimtab report`: the whole road, and its last page."""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import output
from .options import Device, Force, Precision, Seed, Selection, To, listed, selects

if TYPE_CHECKING:
    from .record import RunRecord


def demo(
    data: Annotated[
        str,
        typer.Option("--data", help="fashion-mnist (the shipped ResNet-20), or digits (trains its own first; no download)."),
    ] = "fashion-mnist",
    out: Annotated[Path, typer.Option("-o", "--out", help="The run's folder; a second run reuses what is done.")] = Path(
        "runs/demo"
    ),
    seed: Seed = 0,
    budget_s: Annotated[float, typer.Option("--budget", help="Seconds for all latency measurements.")] = 30.0,
    dynamic: Annotated[
        bool,
        typer.Option("--dynamic", help="Gates, then branches of different size: a network that does less for easy images."),
    ] = False,
) -> int:
    """The whole job on a shipped network: prune half its MACs, distil, export, prove, measure, report."""
    from .demo import faster_in, run_demo

    record, page = run_demo(data, out, seed=seed, budget_s=budget_s, command=_command(), dynamic=dynamic)
    faster = faster_in(record) if dynamic else []
    code = _done(record, page)
    if dynamic and len(faster) < 2:
        output.say(f"measurably faster in {len(faster)} runtimes ({', '.join(faster) or 'none'}); two were wanted")
        return 1
    return code


@selects
def run(
    checkpoint: Annotated[Path, typer.Argument(help="A Bundle's folder, or a .safetensors/.pt checkpoint with --model.")],
    selection: Selection,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="A recipe file, or the name of a shipped one. Default: half.")
    ] = None,
    as_it_is: Annotated[
        bool, typer.Option("--as-it-is", help="No recipe: export, prove and measure the network as it was trained.")
    ] = False,
    out: Annotated[Path, typer.Option("-o", "--out", help="The run's folder; a second run reuses what is done.")] = Path(
        "runs/run"
    ),
    to: To = "onnx,tflite,coreml",
    precision: Precision = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop", help="Points of the metric that integer artifacts may lose; the fewest layers stay in float."
        ),
    ] = None,
    dims: Annotated[
        list[str],
        typer.Option("--dim", help="Size of a free dimension to count and time at: h=540. Default: the test samples' own."),
    ] = [],
    threads: Annotated[int, typer.Option("--threads", help="Threads per inference when measuring.")] = 1,
    budget_s: Annotated[float | None, typer.Option("--budget", help="Seconds for all latency measurements.")] = None,
    device: Device = "auto",
) -> int:
    """One command from your checkpoint to verified, measured artifacts and a report."""
    from .export.convert import check_packages, plan_formats
    from .job import JobConfig, run_job
    from .loading import keywords, open_network
    from .max_drop import check_drop
    from .models.errors import UserError
    from .recipes import find_recipe
    from .workflow import require_task

    if as_it_is and recipe:
        raise UserError(
            f"--as-it-is says to leave the network alone, and --recipe {recipe} to change it", hint="give one of them"
        )
    plan = None if as_it_is else find_recipe(recipe or Path("half"))
    pairs = plan_formats(listed(to), listed(precision) if precision else None)
    check_packages(listed(to))
    if max_drop is not None:
        check_drop(max_drop / 100, pairs)
    with ExitStack() as stack:
        bundle, task = open_network(checkpoint, stack, selection)
        config = JobConfig(
            title=" · ".join([bundle.manifest.architecture.name, *([plan.name] if plan else [])]),
            pairs=pairs,
            seed=selection.seed,
            max_drop=None if max_drop is None else max_drop / 100,
            threads=threads,
            budget_s=budget_s,
            device=device,
            command=_command(),
            dims=keywords(dims, "--dim"),
        )
        return _done(*run_job(bundle, plan, require_task(task, "run"), out, config))


def report(
    sources: Annotated[
        list[Path],
        typer.Argument(help="A run's folder, or JSON files of `trimtab profile -o` (of several devices, of several days)."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="Where to write the page. Default: report.html in the run's folder, or profile.html here."
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Render a run's report again from its run.json, or a page from profiles."""
    from .models import files
    from .models.errors import UserError

    if any(source.is_dir() for source in sources):
        from .job import REPORT
        from .report import load_record, write_report

        if len(sources) > 1:
            raise UserError(
                "a run's folder makes a page by itself", hint="name one folder, or JSON files of `trimtab profile -o`"
            )
        path = write_report(load_record(sources[0]), out or sources[0] / REPORT)
    else:
        from .profile_page import read_profiles, write_profile_page

        path = out or Path("profile.html")
        files.refuse_overwrite(path, force=force)
        read = read_profiles(sources)
        path = write_profile_page([source.profile for source in read], path, names=[source.name for source in read])
    output.say(f"report: {path.resolve()}")
    output.result({"report": str(path.resolve())})


def _command() -> str:
    """What the user typed, as it can be typed again."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _done(record: RunRecord, page: Path) -> int:
    """The exit code of a finished run: 1 when an artifact was rejected."""
    from .job import rejected

    bad = rejected(record)
    for artifact in bad:
        output.say(f"rejected: {artifact.artifact.name}: {artifact.artifact.parity.reason}")
    output.say(f"\nreport: {page.resolve()}")
    output.result(
        {"report": str(page.resolve()), "run": str(page.parent.resolve()), "rejected": [a.artifact.name for a in bad]}
    )
    return 1 if bad or record.failed else 0
