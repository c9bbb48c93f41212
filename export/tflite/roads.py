"""Which road a `.tflite` file takes: our own writer, litert-torch, or TensorFlow's converter, the last two in their own environments."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ...models import files
from ...models.errors import UserError
from ..exporter import Exported, ExportRequest

if TYPE_CHECKING:
    from .exporter import TFLiteOptions

OWN = "own"
SPARSE = "native sparse encoding is written by TensorFlow's converter alone"


def other_road(request: ExportRequest, options: TFLiteOptions) -> str:
    """The road that was asked for, or that the precision wants; "" for our own writer, tried first under "auto".

    Raises UserError for what the road can't do.
    """
    road: str = options.route
    if road == "auto":
        road = "tensorflow" if request.precision == "sparse" or options.saved_model else OWN
    if road == OWN:
        if request.precision == "sparse":
            raise UserError(f"TFLite sparse by our own writer can't be made: {SPARSE}", hint="--route tensorflow")
        if options.saved_model:
            raise UserError("a SavedModel is written on the route tensorflow alone", hint="--route tensorflow")
        return ""
    if options.layout != "NHWC":
        raise UserError(f"the route {road} writes NHWC files, and {options.layout} was asked", hint="leave the route out")
    if request.keep_float:
        raise UserError(f"the route {road} can't leave single layers in float", hint="leave the route or --max-drop out")
    if options.saved_model and road != "tensorflow":
        raise UserError(f"a SavedModel is written on the route tensorflow alone, not {road}", hint="--route tensorflow")
    return road


def ready(road: str) -> bool:
    """Whether the road's environment has been set up on this machine."""
    from ..routes.environment import find

    try:
        find(road)
    except UserError:
        return False
    return True


def by(road: str, request: ExportRequest, options: TFLiteOptions, *, why: str) -> Exported:
    """Facts about the file that another converter wrote at `request.out`, and `why` it took this road. Raises UserError."""
    from ..routes.litert_torch import export_litert_torch
    from ..routes.tensorflow import export_tensorflow, saved_model

    if road == "litert-torch":
        made = export_litert_torch(request)
    else:
        made = export_tensorflow(request, io=options.io)
        if options.saved_model:
            saved_model(replace(request, out=request.out.with_name("saved_model"), precision="fp32"))
    return replace(made, route=f"{road}: {why}")


def fallback(refused: UserError, request: ExportRequest, options: TFLiteOptions) -> Exported:
    """The file by litert-torch, when our own writer lacks operators and that road is there. Raises the refusal, with the way out."""
    from .exporter import INTEGER

    able = request.precision == "fp32" and options.layout == "NHWC" and not request.keep_float
    if not able or request.precision in INTEGER or request.module is None or not ready("litert-torch"):
        more = (
            "" if not able or request.module is None else "; `trimtab export --setup litert-torch` gives a second road for fp32"
        )
        raise UserError(refused.what, hint=refused.hint + more) from None
    first = refused.what.splitlines()[0].rstrip(":")
    return by("litert-torch", request, options, why=f"auto, since our own writer can't: {first}")


def with_metadata_in(request: ExportRequest, exported: Exported, options: TFLiteOptions) -> None:
    """None; the file at `request.out` has its metadata, when it is wanted and has an image input.

    Raises UserError where tflite-support is to write it and the network is no image classifier, or its environment is not there.
    """
    if not (options.metadata and any(spec.layout in ("NHWC", "NCHW") for spec in exported.contract.inputs)):
        if options.metadata_writer == "tflite-support":
            raise UserError(
                "tflite-support writes metadata of image inputs, and there is none", hint="leave metadata_writer out"
            )
        return
    if options.metadata_writer == "tflite-support":
        _genuine(request, exported)
        return
    from .metadata import About, with_metadata

    told = f"TFLite {request.precision} network, written by trimtab"
    about = About(options.name or request.label, told, options.version, author=options.author, licence=options.licence)
    files.write_bytes(request.out, with_metadata(request.out.read_bytes(), exported.contract, about))


def _genuine(request: ExportRequest, exported: Exported) -> None:
    """None; the file at `request.out` has an image classifier's metadata by tflite-support."""
    from ..routes.support import write_metadata_genuine
    from .metadata import normalisation

    scale = normalisation(exported.contract.inputs[0])
    if len(exported.contract.inputs) != 1 or not exported.contract.classes or scale is None:
        raise UserError(
            "tflite-support's metadata here is that of image classifiers: one image whose normalisation is known, and class names",
            hint="use metadata_writer = own",
        )
    mean, std = scale
    write_metadata_genuine(request.out, request.out, labels=exported.contract.classes, mean=mean, std=std)
