"""The recipe step "raw-input": an ISP network takes the sensor's counts themselves, and packs them inside the graph."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..models.errors import UserError
from .method import Context, MethodCard, MethodConfig, Result, register_method

if TYPE_CHECKING:
    from torch import nn

    from ..models.tasks.isp_data import Sensor
    from ..models.tasks.task import Task

TAKEN = ("packing", "pattern", "black", "white", "dtype")
"""The arguments by which a stock network says what stands in front of it."""


class RawInputConfig(MethodConfig):
    """Which sensor's counts the network takes. What is left out is that of the data that the recipe runs on."""

    kind: Literal["raw-input"] = "raw-input"
    pattern: str = Field("", description="colours of the 2×2 cell in reading order, such as GRBG")
    black: tuple[float, ...] = Field((), description="one black level, or four by the position in the cell")
    white: float = Field(0.0, ge=0, allow_inf_nan=False, description="the count at which the sensor saturates; 0 = the data's")
    dtype: Literal["uint16", "uint8", "float32"] = Field(
        "uint16", description="type of the counts (float32: whole numbers as floats)"
    )


@register_method(
    "raw-input",
    RawInputConfig,
    MethodCard(
        title="Packing inside: sensor counts go in, and the first layer normalises and packs them",
        source="exact by construction: one fixed 2×2 convolution",
        needs_data=False,
        needs_labels=False,
        changes_structure=False,
        trains=False,
    ),
)
def apply(module: nn.Module, task: Task | None, config: RawInputConfig, context: Context) -> Result:
    """The same weights behind a fixed 2×2 convolution that takes counts (N, 1, H, W) of one sensor: phase, black and white level.

    Such a network suits cameras' drivers, and that one sensor alone. Raises UserError for a network that has no such input or has it
    already, for levels that neither the step nor the data tells, and for levels that make no sense or don't fit the type.
    """
    from ..models.architectures import architectures
    from ..models.source import Architecture
    from ..models.tasks.isp import isp_contract

    current = context.current.manifest.architecture
    known = inspect.signature(architectures.get(current.name)).parameters if current.name in architectures else {}
    if not all(name in known for name in TAKEN):
        raise UserError(
            f"raw-input is for networks that develop RAW, and this is {current.name or 'a network of your own'}",
            hint="efficient_isp, robust_isp and rmfa_tiny have the input it sets",
        )
    if current.kwargs.get("packing", "outside") != "outside":
        raise UserError("the network takes sensor counts already", hint="leave the step raw-input out")
    sensor = _sensor(config, task)
    black = sensor.black[0] if len(set(sensor.black)) == 1 else list(sensor.black)
    levels = {"packing": "inside", "pattern": sensor.pattern, "black": black, "white": sensor.white, "dtype": config.dtype}
    architecture = Architecture(name=current.name, kwargs={**current.kwargs, **levels})
    plan = context.current.plan
    made = plan.replay(architecture.build())
    made.load_state_dict(module.state_dict())
    figures = {"sensor": {"pattern": sensor.pattern, "black": list(sensor.black), "white": sensor.white, "dtype": config.dtype}}
    notes = (
        f"takes {config.dtype} counts of a {sensor.pattern} sensor, black {black}, white {sensor.white:g}, and of no other",
    )
    return Result(
        made,
        plan,
        figures=figures,
        notes=notes,
        architecture=architecture,
        output=context.current.manifest.output,
        contract=isp_contract("mosaic", sensor, dtype=config.dtype),
    )


def _sensor(config: RawInputConfig, task: Task | None) -> Sensor:
    """The sensor of the step's own parameters, and of the data where those say nothing."""
    from ..models.raw.frame import checked_levels
    from ..models.raw.packing import checked_pattern
    from ..models.tasks.isp_data import Sensor

    own: Sensor | None = getattr(task, "sensor", None)
    missing = [name for name in ("pattern", "black", "white") if not getattr(config, name)]
    if own is None and missing:
        raise UserError(
            f"raw-input doesn't know the sensor's {', '.join(missing)}",
            hint='say them: pattern = "GRBG", black = [64], white = 1023, or run the recipe on data of the task isp',
        )
    black: tuple[float, ...] = config.black or (own.black if own else ())
    levels, white = checked_levels(black[0] if len(black) == 1 else black, config.white or (own.white if own else 0.0))
    return Sensor(checked_pattern(config.pattern or (own.pattern if own else "")), levels, white)
