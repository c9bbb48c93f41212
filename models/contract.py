"""The I/O contract: what goes into a network, what comes out, and what the numbers mean."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

Dim = int | str
DType = Literal["float32", "float16", "uint8", "uint16", "int8", "int32", "int64"]
Layout = Literal["NCHW", "NHWC", "NC", "other"]


def _is_none(value: object) -> bool:
    return value is None


class TensorSpec(BaseModel):
    """One input or output tensor.

    A string in `shape` is a symbolic dimension, free at run time: `("N", 3, 224, 224)`, `("N", 3, "H", "W")`.
    `value_range` holds the values *before* normalisation; the tensor itself holds `(value − mean) / std`, per channel.
    `default` makes an input a setting: the values (in row-major order) used when the caller gives none, as profilers and
    evaluation do.
    An integer tensor that stands for real numbers has `scale` and `zero_point`: it holds q, which means scale · (q − zero_point).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    shape: tuple[Dim, ...]
    dtype: DType = "float32"
    layout: Layout = "other"
    value_range: tuple[float, float] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    default: tuple[float, ...] = Field(default=(), exclude_if=operator.not_)  # absent where there is none: hashes stay
    scale: float | None = Field(default=None, gt=0, exclude_if=_is_none)
    zero_point: int | None = Field(default=None, exclude_if=_is_none)

    @model_validator(mode="after")
    def _consistent(self) -> TensorSpec:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} entries, std {len(self.std)}: they go together")
        if any(s <= 0 for s in self.std):
            raise ValueError(f"std {self.std} must be positive")
        if any(isinstance(d, int) and d < 1 for d in self.shape):
            raise ValueError(f"shape {self.shape} has a dimension below 1")
        if self.layout in ("NCHW", "NHWC") and len(self.shape) != 4:
            raise ValueError(f"layout {self.layout} wants 4 dimensions, shape {self.shape} has {len(self.shape)}")
        if self.default and (self.symbols or len(self.default) != math.prod(self.concrete({}))):
            raise ValueError(f"default has {len(self.default)} values, shape {self.shape} does not take as many")
        if (self.scale is None) != (self.zero_point is None):
            raise ValueError(f"scale is {self.scale}, zero_point {self.zero_point}: they go together")
        if self.scale is not None and self.dtype not in ("int8", "uint8"):
            raise ValueError(f"scale {self.scale} goes with int8 or uint8, dtype is {self.dtype}")
        return self

    @property
    def symbols(self) -> tuple[str, ...]:
        """The names of the symbolic dimensions, in order."""
        return tuple(d for d in self.shape if isinstance(d, str))

    @property
    def channel_axis(self) -> int:
        """The axis that mean and std run over."""
        return len(self.shape) - 1 if self.layout == "NHWC" else min(1, len(self.shape) - 1)

    def concrete(self, dims: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with every symbol replaced from `dims` (a batch symbol "N" defaults to 1). Raises KeyError for a missing one."""
        return tuple(d if isinstance(d, int) else dims.get(d, 1) if d == "N" else dims[d] for d in self.shape)

    def normalised(self, values: np.ndarray) -> np.ndarray:
        """`values` (in `value_range`) as the tensor the network takes: `(value − mean) / std` along the channel axis."""
        if not self.mean:
            return self.stored(values)
        side = [1] * values.ndim
        side[self.channel_axis] = -1
        mean, std = (np.asarray(v, dtype=np.float32).reshape(side) for v in (self.mean, self.std))
        return self.stored((values.astype(np.float32) - mean) / std)

    def stored(self, numbers: np.ndarray) -> np.ndarray:
        """Real numbers as the tensor holds them: in its dtype, or as round(number / scale) + zero_point within the dtype's range."""
        if self.scale is None or self.zero_point is None:
            return numbers.astype(self.dtype)
        steps = np.rint(numbers.astype(np.float32) / np.float32(self.scale)) + self.zero_point
        bounds = np.iinfo(self.dtype)
        return np.clip(steps, bounds.min, bounds.max).astype(self.dtype)

    def real(self, held: np.ndarray) -> np.ndarray:
        """The real numbers that a tensor's entries stand for: float32 scale · (q − zero_point); as they are without a scale."""
        if self.scale is None or self.zero_point is None:
            return held
        return (held.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)

    def random(self, dims: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
        """A seeded random tensor of the concrete shape, uniform in `value_range` (default 0…1), then normalised."""
        low, high = self.value_range or (0.0, 1.0)
        return self.normalised(rng.uniform(low, high, self.concrete(dims)).astype(np.float32))

    def as_layout(self, layout: Literal["NCHW", "NHWC"]) -> TensorSpec:
        """The same tensor with its dimensions in another order; other layouts come back unchanged."""
        if self.layout not in ("NCHW", "NHWC") or self.layout == layout:
            return self
        n, a, b, c = self.shape
        return self.model_copy(update={"layout": layout, "shape": (n, b, c, a) if layout == "NHWC" else (n, c, a, b)})


class Contract(BaseModel):
    """The inputs and outputs of a network, and the names of its classes (empty when it does not classify)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    classes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _unique(self) -> Contract:
        names = [spec.name for spec in (*self.inputs, *self.outputs)]
        if len(set(names)) != len(names):
            raise ValueError(f"tensor names {names} must all differ")
        return self

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbolic dimensions of the inputs, each once, in order."""
        return tuple(dict.fromkeys(symbol for spec in self.inputs for symbol in spec.symbols))

    def example_dims(self, *, batch: int = 1) -> dict[str, int]:
        """A size for every symbolic dimension, where any will do: `batch` for "N", 64 for the others."""
        return {symbol: batch if symbol == "N" else 64 for symbol in self.symbols}

    def random_inputs(self, dims: Mapping[str, int], *, seed: int) -> dict[str, np.ndarray]:
        """Seeded random tensors for every input, by name."""
        rng = np.random.default_rng(seed)
        return {spec.name: spec.random(dims, rng) for spec in self.inputs}

    def defaults(self) -> dict[str, np.ndarray]:
        """The default values of the inputs that have some, by name, in their shape and dtype."""
        settings = [spec for spec in self.inputs if spec.default]
        return {spec.name: spec.stored(np.array(spec.default).reshape(spec.concrete({}))) for spec in settings}


def image_classifier(
    *, channels: int, height: Dim, width: Dim, classes: tuple[str, ...], mean: tuple[float, ...], std: tuple[float, ...]
) -> Contract:
    """The contract of a plain image classifier: "image" (N,C,H,W) with pixels in 0…1 before normalisation → "logits" (N, classes)."""
    return Contract(
        inputs=(
            TensorSpec(
                name="image", shape=("N", channels, height, width), layout="NCHW", value_range=(0.0, 1.0), mean=mean, std=std
            ),
        ),
        outputs=(TensorSpec(name="logits", shape=("N", len(classes)), layout="NC"),),
        classes=classes,
    )
