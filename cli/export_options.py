"""Options of `trimtab export`."""

from __future__ import annotations

from typing import Annotated

import typer

Settings_ = Annotated[
    list[str],
    typer.Option("--set", help="Option of a format as FORMAT.NAME=VALUE (repeatable); `trimtab formats` lists them."),
]
Free = Annotated[str | None, typer.Option("--free", help="Dimensions that are free at run time: batch, size (or both).")]
Fix = Annotated[list[str], typer.Option("--fix", help="Size of a dimension that was free: N=1 (repeatable).")]
Calibrate = Annotated[int, typer.Option("--calibrate", min=16, help="Training samples that the ranges of int8 are taken from.")]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        help="Points of the task's metric that an integer artifact may lose on validation data: the fewest layers are kept in "
        "float to meet it (0.5: half a point).",
    ),
]
Explain = Annotated[
    bool, typer.Option("--explain", help="Walk both programs layer by layer: where the artifact departs, and by how much.")
]
KeepFeatures = Annotated[
    int | None,
    typer.Option(
        "--keep-features",
        min=0,
        help="Keep the first K features before the classifier, of a network trained with nested dropout; 0: as few as the "
        "validation data allows.",
    ),
]
Dynamic = Annotated[
    str | None,
    typer.Option(
        "--dynamic",
        help="The form of a network with gates or branches: masked, gathered, static, routed, or auto (measured here). "
        "Default: as it is.",
    ),
]
MaxLatency = Annotated[
    float | None,
    typer.Option(
        "--max-latency",
        help="Milliseconds that a routed network may take on average: its branches are timed here, and the thresholds "
        "that are most accurate within it become the artifact's.",
    ),
]
Route = Annotated[
    str | None,
    typer.Option("--route", help="The converter of TFLite: own, litert-torch, tensorflow, or auto (as --set tflite.route=)."),
]
Setup = Annotated[
    str | None,
    typer.Option(
        "--setup", help="Make the isolated environment of a converter instead: litert-torch, tensorflow, tflite-support."
    ),
]
