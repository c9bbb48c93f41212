"""Options that several verbs share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="What the task reads. For classification: fashion-mnist, digits, folder:PATH, npz:PATH, idx:DIR, cifar10:DIR, "
        "cifar100:DIR.",
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task", help="What --data is for: classification, landmarks, … Default: the Bundle's own, else classification."
    ),
]
DataArgs = Annotated[
    list[str], typer.Option("--data-arg", help="Option of the task as key=value: val_fraction=0.2, mean=(0.5,), …")
]
Model = Annotated[str | None, typer.Option("--model", help="The checkpoint's network: a zoo name, or path/to/net.py:factory.")]
ModelArgs = Annotated[
    list[str], typer.Option("--model-arg", help="Argument of the network's factory as key=value (repeatable).")
]
Output_ = Annotated[str, typer.Option("--output", help="The output to use, of a network that returns a dict or a tuple.")]
Size = Annotated[str | None, typer.Option("--size", help="Input size: 224, 192x256, or 3x224x224 without data.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Where the result goes; never overwritten without --force.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is at -o.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out images that can't be read (they are listed).")]
Device = Annotated[str, typer.Option("--device", help="Where training runs: auto, cpu, cuda, mps.")]
To = Annotated[str, typer.Option("--to", help="Formats, comma-separated: onnx,tflite,coreml,openvino,executorch,ncnn,mnn.")]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="Precisions, comma-separated: fp32, fp16, int8 and others; `trimtab formats` says which format has which. "
        "Default: each format's own.",
    ),
]
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="Formats that are converted at once.")]
Timeout = Annotated[float, typer.Option("--timeout", min=1.0, help="Seconds that one conversion may take.")]
Memory = Annotated[
    float,
    typer.Option("--memory", min=0.0, help="GiB that one conversion may take; 0: 80 % of the machine's, shared by --jobs."),
]
NoIsolation = Annotated[
    bool, typer.Option("--no-isolation", help="Convert in this process: easier to debug, and a crash takes all along.")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use only the first N test samples.")]


def listed(text: str) -> list[str]:
    """The comma-separated words of an option, in order, without empties and repeats."""
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


@dataclass(frozen=True)
class Selection:
    """Which network and which data: the options of every verb that opens a network."""

    model: Model = None
    model_args: ModelArgs = field(default_factory=list)
    output_name: Output_ = ""
    task: TaskName = None
    data: Data = None
    data_args: DataArgs = field(default_factory=list)
    size: Size = None
    seed: Seed = 0
    skip_bad: SkipBad = False


def selects(verb: Callable[..., Any]) -> Callable[..., Any]:
    """`verb` with Selection's options on its command line; it gets them as one argument, `selection`."""
    own = inspect.signature(verb, eval_str=True)
    hints = get_type_hints(Selection, include_extras=True)
    shared = [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=f.default if f.default_factory is MISSING else f.default_factory(),
            annotation=hints[f.name],
        )
        for f in fields(Selection)
    ]
    mine = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.parameters.values() if p.name != "selection"]

    @functools.wraps(verb)
    def command(**given: Any) -> Any:
        return verb(selection=Selection(**{f.name: given.pop(f.name) for f in fields(Selection)}), **given)

    command.__signature__ = own.replace(parameters=[*mine, *shared])  # type: ignore[attr-defined]  # what typer reads
    command.__annotations__ = {p.name: p.annotation for p in (*mine, *shared)} | {"return": own.return_annotation}
    return command
