"""Options of `trimtab profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OPS = 50
"""Inferences that operations are profiled over unless said otherwise."""

On = Annotated[
    str,
    typer.Option(
        "--on",
        help="Devices, comma-separated: local, browser, adb, ssh:user@host, qemu:cortex-a76, or names given by `trimtab devices add`.",
    ),
]
Runtimes = Annotated[
    str | None, typer.Option("--runtime", help="Runtimes, comma-separated. Default: all that fit and are installed.")
]
RuntimeSettings = Annotated[
    list[str],
    typer.Option("--set", help="Option of a runtime as RUNTIME.NAME=VALUE (repeatable): openvino.precision=bf16."),
]
Threads = Annotated[int, typer.Option("--threads", help="Threads per inference.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Batch size of artifacts with a dynamic batch.")]
Dims = Annotated[list[str], typer.Option("--dim", help="Size of another symbolic dimension: H=224 (repeatable).")]
BudgetS = Annotated[float | None, typer.Option("--budget", help="Seconds for all measurements. Default: the preset's.")]
Preset = Annotated[
    str,
    typer.Option(
        "--preset",
        help="How long and how exactly to measure: quick, standard, thorough, or mlperf (at least 1024 queries and 60 s each).",
    ),
]
Cpus = Annotated[str | None, typer.Option("--cpu", help="Pin to these CPUs: 0 or 0,1. Default: the device's own.")]
Ops = Annotated[int, typer.Option("--ops", min=0, help="Inferences to profile operation by operation afterwards; 0: none.")]
SustainedMin = Annotated[
    float,
    typer.Option("--sustained", min=0, help="Minutes to run every artifact without a pause: does the device throttle?"),
]
CoolDown = Annotated[
    float | None,
    typer.Option(
        "--cool-down", min=0, help="Seconds to wait at most until the device is as cool as at the begin. Default: 60."
    ),
]
Evaluate = Annotated[
    int | None,
    typer.Option("--evaluate", min=1, help="Run this many test samples of --data on the device, for the metric there."),
]
BudgetInstructions = Annotated[
    int | None,
    typer.Option(
        "--budget-instructions", min=1, help="Instructions that an artifact may take on an emulated core; else exit code 1."
    ),
]
Lan = Annotated[bool, typer.Option("--lan", help="Browser: let devices on this network in, by the token in the QR code.")]
Https = Annotated[bool, typer.Option("--https", help="Browser: serve https with a certificate of your own making.")]
SamplesOut = Annotated[Path | None, typer.Option("-o", "--out", help="Write the raw samples and conditions to this JSON file.")]
Page = Annotated[Path | None, typer.Option("--report", help="Write a report to this HTML file.")]
Csv = Annotated[Path | None, typer.Option("--csv", help="Write the figures to this CSV file, operations beside it.")]
