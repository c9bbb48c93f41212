"""The two roads from a torch module to an MIL program: tracing, and `torch.export` where tracing fails.

Tracing is the default: it is faster, and unlike `torch.export` (2.13) it takes strided networks with free height and width
without proving guards about every size. Neither follows Python control flow; the parity check runs more sizes than were traced.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..models.errors import UserError
from .tracing import TensorsOnly

_IOS = {7: "iOS16", 8: "iOS17", 9: "iOS18"}
"""Program specification → the oldest system that runs it, as coremltools names its deployment targets."""


_SCATTERS = (torch.scatter, Tensor.scatter, Tensor.scatter_)


class _Rewrite(TorchFunctionMode):
    """Spells out, while a module is traced, what coremltools refuses as soon as the batch is free.

    Adaptive average pooling from a known height and width becomes means over its fixed windows. A scalar scattered along an
    axis becomes a tensor of that scalar. With height and width free (`sides_known` off) pooling is left to coremltools.
    """

    def __init__(self, *, sides_known: bool) -> None:
        super().__init__()
        self.sides_known = sides_known

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.adaptive_avg_pool2d and self.sides_known:
            return _adaptive_average(*args, **kwargs)
        if func in _SCATTERS and len(args) == 4 and not isinstance(args[3], Tensor) and not kwargs:
            x, axis, index, value = args
            return func(x, axis, index, torch.full_like(index, value, dtype=x.dtype))
        return func(*args, **kwargs)


def _adaptive_average(x: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """The mean over PyTorch's adaptive windows ⌊i n/o⌋ … ⌈(i+1) n/o⌉ of x (N, C, H, W), one dimension after the other."""
    asked = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if asked == (1, 1):
        return x.mean((-2, -1), keepdim=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # height and width are known: constants are right here
        sizes = [int(n) for n in x.shape[-2:]]
    for axis, (size, out) in enumerate(zip(sizes, asked, strict=True), start=x.ndim - 2):
        x = _adaptive_side(x, axis, size, out or size)
    return x


def _adaptive_side(x: Tensor, axis: int, size: int, out: int) -> Tensor:
    if out == size:
        return x
    if size % out == 0:
        step = (size // out, 1) if axis == x.ndim - 2 else (1, size // out)
        return F.avg_pool2d(x, step, step)
    spans = [slice(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]
    parts = [x[..., span, :] if axis == x.ndim - 2 else x[..., span] for span in spans]
    return torch.cat([part.mean(axis, keepdim=True) for part in parts], dim=axis)


_OURS = frozenset({TensorsOnly.__name__, "PackageDoors"})


def trace(module: nn.Module, example: tuple[Tensor, ...], *, sides_known: bool) -> Any:
    """The TorchScript of one run of `module` on `example`."""
    with torch.no_grad(), _Rewrite(sides_known=sides_known):
        return torch.jit.trace(module, example, check_trace=False, strict=False)


def exported(
    module: nn.Module, example: tuple[Tensor, ...], *, sides_known: bool, free: Sequence[Mapping[int, tuple[str, int, int]]]
) -> Any:
    """The `torch.export` program of `module`; `free` maps each input's free axes to (symbol, lowest, highest)."""
    dims = {symbol: torch.export.Dim(symbol, min=low, max=high) for axes in free for symbol, low, high in axes.values()}
    shapes = tuple({axis: dims[symbol] for axis, (symbol, _, _) in axes.items()} for axes in free)
    with torch.no_grad(), _Rewrite(sides_known=sides_known):
        return torch.export.export(module, example, dynamic_shapes=shapes).run_decompositions({})


def systems(target: str, *, least: int = 7) -> tuple[int, ...]:
    """The program specifications to try, the oldest first: those from `least` on, or the one of the system `target` ("" for any).

    Raises UserError when `target` is older than `least`.
    """
    if not target:
        return tuple(specification for specification in _IOS if specification >= least)
    (wanted,) = (specification for specification, system in _IOS.items() if system == target)
    if wanted < least:
        raise UserError(
            f"the package is to run on {target}, and such weights need {_IOS[least]}",
            hint=f"set minimum_target to {_IOS[least]}, or choose another precision",
        )
    return (wanted,)


def converted(
    program: Any,
    *,
    inputs: list[Any],
    outputs: list[Any],
    half: bool,
    exact: Callable[[Any], bool] | None = None,
    specifications: Sequence[int] = tuple(_IOS),
) -> Any:
    """The `MLModel` for the oldest system of `specifications` that has every operation the program needs.

    `exact` names the operations that stay in float32 in a `half` program.
    """
    import coremltools as ct

    precision = ct.precision.FLOAT16 if half else ct.precision.FLOAT32
    if half and exact is not None:
        precision = ct.transform.FP16ComputePrecision(op_selector=lambda op: not exact(op))
    for specification in specifications:
        try:
            return ct.convert(
                program,
                inputs=inputs,
                outputs=outputs,
                convert_to="mlprogram",
                minimum_deployment_target=getattr(ct.target, _IOS[specification]),
                compute_precision=precision,
                skip_model_load=True,
            )
        except Exception as error:
            # coremltools says in words, not by type, that an operation arrived with a later system
            if specification == specifications[-1] or "deployment_target" not in str(error):
                raise
    raise AssertionError("unreachable: the newest system returns or raises")


def system_of(specification: int) -> str:
    """The program version in words: "mlprogram spec 7 (iOS16)"."""
    return f"mlprogram spec {specification} ({_IOS.get(specification, 'a newer system')})"


def refusal(error: Exception, traced: Any) -> UserError:
    """coremltools' refusal as an error the user can act on: the operation, the module it sits in, and what to do."""
    reason = first_line(error)
    if "deployment_target" in str(error):
        return UserError(
            f"an operation of this network needs a newer system: {reason}", hint="leave minimum_target out, or set a newer one"
        )
    if "Adaptive pooling is only supported" in reason:
        return UserError(
            "Core ML cannot pool adaptively to a fixed grid while height and width are free",
            hint="fix height and width in the contract, pool to 1×1, or export to another format",
        )
    quoted = reason.split("'")
    kind = quoted[1] if "convert function for op" in reason and len(quoted) > 1 else ""
    where = _module_of(kind, traced)
    if kind:
        return UserError(
            f"Core ML has no operation for torch's {kind!r}{where}",
            hint="replace that layer by one Core ML has (see trimtab inspect), or export to another format such as onnx",
        )
    return UserError(
        f"coremltools cannot convert this network: {reason}",
        hint="replace the layer it names, fix free dimensions in the contract, or export to another format such as onnx",
    )


def first_line(error: Exception) -> str:
    """An exception's type and first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _module_of(kind: str, traced: Any) -> str:
    """Where the first operation `kind` sits: " (module features.3)", or "" when the trace does not tell."""
    graph = getattr(traced, "inlined_graph", None)
    if not kind or graph is None:
        return ""
    for node in graph.nodes():
        if node.kind().split("::")[-1] == kind:
            path = module_path(node, wrappers(traced))
            return f" (module {path})" if path else ""
    return ""


def module_path(node: Any, depth: int) -> str:
    """The path of the module that a node of a trace sits in, but for `depth` wrappers of ours; "" for the outermost."""
    parts = node.scopeName().split("/")[-1].removeprefix("__module").lstrip(".").split(".")
    return ".".join(parts[depth:])


def wrappers(module: Any) -> int:
    """How many modules of ours are around a user's module, or around its trace: each holds the next as `module`."""
    depth = 0
    while (getattr(module, "original_name", "") or type(module).__name__) in _OURS:
        depth, module = depth + 1, module.module
    return depth
