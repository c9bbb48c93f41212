"""TFLite: an ONNX graph written straight into an NHWC flatbuffer that LiteRT's XNNPACK delegate takes."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ...models import files
from ...models.contract import Contract
from ...models.errors import UserError
from ..exporter import Exported, ExporterCard, ExportRequest, Options, Runner, exporters
from . import roads
from .refusal import RefusalError
from .session import Session

if TYPE_CHECKING:
    from .ir import Program

INTEGER = ("int8", "int16x8")
"""Precisions whose activations are integers."""


class TFLiteOptions(Options):
    """What a `.tflite` file can be told."""

    route: Literal["auto", "own", "litert-torch", "tensorflow"] = Field(
        default="auto",
        description="the converter: own, litert-torch or tensorflow (isolated environments: --setup), or auto: own, and litert-torch "
        "for what it lacks",
    )
    saved_model: bool = Field(default=False, description="also a TensorFlow SavedModel beside the file (route tensorflow)")
    layout: Literal["NHWC", "NCHW"] = Field(
        default="NHWC", description="layout of images that go in and out: NHWC, or NCHW (one transposition at each door)"
    )
    io: Literal["float32", "int8", "uint8"] = Field(
        default="float32", description="dtype of the inputs and outputs of an int8 artifact: float32, int8 or uint8"
    )
    metadata: bool = Field(
        default=True, description="whether TFLite Metadata (normalisation, labels) is written into files with an image input"
    )
    metadata_writer: Literal["own", "tflite-support"] = Field(
        default="own",
        description="own, or tflite-support's image-classifier metadata (isolated environment: --setup tflite-support)",
    )
    name: str = Field(default="", description="the model's name in its metadata; default: the network's")
    version: str = Field(default="1", description="the model's version in its metadata")
    author: str = Field(default="", description="the model's author in its metadata")
    licence: str = Field(default="", description="the model's licence in its metadata, such as Apache-2.0")

    @property
    def wants_module(self) -> bool:
        """litert-torch starts from the torch module."""
        return self.route == "litert-torch" or (self.route == "auto" and roads.ready("litert-torch"))


CARD = ExporterCard(
    title="TFLite",
    suffix=".tflite",
    source="onnx",
    precisions={"fp32": "", "fp16": "", "int8": "", "int8-dynamic": "", "int16x8": "", "sparse": ""},
    defaults=("fp32",),
    packages=("ai_edge_litert", "flatbuffers", "ai_edge_quantizer"),
    extra="tflite",
    runtimes=("litert",),
    calibrated=("int8", "int16x8"),
    options=TFLiteOptions,
    keeps_float="",
    taps="values",
)


class TFLiteExporter:
    """Writes `.tflite` files with one signature, "serving_default", and runs them."""

    def export(self, request: ExportRequest) -> Exported:
        """Facts about the flatbuffer written at `request.out`; images are NHWC in its contract unless the options say NCHW.

        Raises UserError for operators that TFLite cannot hold (all at once), for a graph that is not the contract's, for one
        that can't be quantised as asked, for names in `keep_float` that it lacks, and for class names that don't fit its outputs.
        """
        CARD.refuse(request.precision)
        options = request.options if isinstance(request.options, TFLiteOptions) else TFLiteOptions()
        if options.io != "float32" and request.precision != "int8":
            raise UserError(
                f"TFLite {request.precision} with {options.io} inputs and outputs can't be made: they go with int8 alone",
                hint="use --precision int8, or io = float32",
            )
        road = roads.other_road(request, options)
        if road:
            asked = "it was asked for" if options.route == road else f"auto, since {roads.SPARSE}"
            made = roads.by(road, request, options, why=asked)
        else:
            try:
                made = _own(request, options)
            except RefusalError as refused:
                if options.route != "auto":
                    raise
                made = roads.fallback(refused, request, options)
        roads.with_metadata_in(request, made, options)
        return made

    def runner(self, path: Path, contract: Contract) -> Runner:
        """A function that runs the saved file in LiteRT on one thread, resizing its inputs as they come.

        Raises UserError when the file is missing, no TFLite model, or lacks a tensor of the contract.
        """
        return Session(path, contract)

    def tapped(self, path: Path, contract: Contract) -> Runner:
        """A function that runs the saved file without XNNPACK and returns, beside its outputs, the inner values in float32 by
        the name of the ONNX value that they hold, axes as they lie in the file. Raises UserError as `runner` does."""
        from .taps import TappedSession

        return TappedSession(path, contract)


exporters.register("tflite", CARD)(TFLiteExporter())


def laid_out(contract: Contract, layout: Literal["NCHW", "NHWC"]) -> Contract:
    """The same contract with every image in this layout."""
    return contract.model_copy(
        update={side: tuple(spec.as_layout(layout) for spec in getattr(contract, side)) for side in ("inputs", "outputs")}
    )


def nhwc(contract: Contract) -> Contract:
    """The same contract with every image in NHWC."""
    return laid_out(contract, "NHWC")


def _own(request: ExportRequest, options: TFLiteOptions) -> Exported:
    """Facts about the file that our own writer made at `request.out`, still without metadata."""
    from ..onnx_int8 import check_names
    from .anatomy import histogram
    from .audit import audit
    from .model import build
    from .sizes import with_sizes
    from .writer import SCHEMA_VERSION

    if request.graph is None:
        raise UserError("TFLite is written from an ONNX graph and none was given", hint="export the module to ONNX first")
    check_names(request.keep_float, request.graph)
    contract = laid_out(request.contract, options.layout)
    program = build(request.graph, contract, integer=request.precision in INTEGER)
    data = with_sizes(program, description="trimtab")
    warnings: tuple[str, ...] = ()
    tools = ["ai-edge-litert", "flatbuffers"]
    if request.precision != "fp32":
        data, contract, warnings = _quantised(data, program, contract, request, options)
        tools.append("ai-edge-quantizer")
    files.write_bytes(request.out, data)
    return Exported(
        contract=contract,
        ops=histogram(data),
        spec_version=f"tflite schema {SCHEMA_VERSION}",
        warnings=warnings,
        evaluator=f"LiteRT {importlib.metadata.version('ai-edge-litert')} interpreter, XNNPACK, 1 thread",
        tool_versions={name: importlib.metadata.version(name) for name in tools},
        audit=audit(data, integer=request.precision in INTEGER),
        route="own writer: " + ("it was asked for" if options.route == roads.OWN else "auto, it holds every operator"),
    )


def _quantised(
    data: bytes, program: Program, contract: Contract, request: ExportRequest, options: TFLiteOptions
) -> tuple[bytes, Contract, tuple[str, ...]]:
    """The file in fewer bits, its contract, and warnings."""
    from ..parity import inputs_in_layout
    from .doors import with_integer_doors
    from .quantise import kept, quantised

    feeds = [inputs_in_layout(feed, module=request.contract, artifact=contract) for feed in request.calibration]
    scopes = kept(program, request.keep_float) if request.precision != "fp16" else ()
    made = quantised(data, request.precision, feeds, keep=scopes, doors=options.io != "float32")
    if options.io == "float32":
        return made.data, contract, made.warnings
    data, contract = with_integer_doors(made.data, contract, options.io)
    return data, contract, made.warnings
