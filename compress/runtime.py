"""Where and in which precision a run computes, through 🤗 Accelerate."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from ..models.errors import UserError

log = logging.getLogger("trimtab")
T = TypeVar("T")
DEVICES = ("auto", "cpu", "cuda", "mps")


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively (avx512_bf16, AMX, Arm bf16); elsewhere bf16 is emulated and slow."""
    return any(bool(flag) for name, flag in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


def choose_amp(amp: str, device: torch.device) -> str:
    """The mixed precision that runs: "off", "bf16" or "fp16". Raises UserError for fp16 on a CPU."""
    if amp == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return "bf16" if device.type == "cpu" and cpu_has_bf16() else "off"
    if amp == "fp16" and device.type == "cpu":
        raise UserError("amp 'fp16' needs a GPU, and this run is on the CPU", hint="use amp = 'auto', 'bf16' or 'off'")
    return amp


def home_of(module: nn.Module) -> torch.device:
    """The device a module's tensors lie on (the CPU when it has none)."""
    return next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def _moved(module: nn.Module, device: torch.device, order: torch.memory_format) -> nn.Module:
    """`module` itself, its tensors on `device` and those with four dimensions in this memory order."""
    return module.to(device).to(memory_format=order)  # type: ignore[call-overload]  # missing in torch's annotations


class _Trained(nn.Module):
    """The network as the engine calls it. Accelerate patches this shell's `forward`, and the user's module stays as it was."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> Any:
        return self.network(*inputs)


class Runtime:
    """A device, a precision and the processes of a run. `device` is "auto" (a GPU if there is one), "cpu", "cuda" or "mps"."""

    def __init__(self, device: str = "auto", *, amp: str = "off", channels_last: bool = True) -> None:
        self._check(device)
        # Accelerate keeps one device and precision per process and refuses a second; a recipe's steps may differ in both.
        AcceleratorState._reset_state(reset_partial_state=True)
        self.device: torch.device = PartialState(cpu=device == "cpu").device
        self.amp = choose_amp(amp, self.device)
        self.channels_last = channels_last
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no" if self.amp == "off" else self.amp)

    @staticmethod
    def _check(device: str) -> None:
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if device not in DEVICES:
            raise UserError(f"unknown training device {device!r}", hint=f"one of {', '.join(DEVICES)}")
        if not there.get(device, True):
            raise UserError(f"device {device!r} is not available to torch {torch.__version__} here", hint="use 'auto' or 'cpu'")

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.accelerator.is_main_process

    def from_main(self, value: T) -> T:
        """The main process's `value`, in every process."""
        return broadcast_object_list([value])[0] if self.accelerator.num_processes > 1 else value

    def layout(self, inputs: Tensor) -> Tensor:
        """`inputs` in the run's memory order (images (N, C, H, W) alone have one)."""
        return inputs.contiguous(memory_format=torch.channels_last) if self.channels_last and inputs.ndim == 4 else inputs

    def place(self, module: nn.Module) -> nn.Module:
        """`module`, moved in place to the device and memory order."""
        return _moved(module, self.device, torch.channels_last if self.channels_last else torch.contiguous_format)

    def autocast(self) -> torch.autocast:
        """A context in which networks compute in the run's precision."""
        dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.amp]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    @contextmanager
    def prepared(self, module: nn.Module) -> Iterator[nn.Module]:
        """`module`, placed and wrapped for the run (autocast with float32 outputs; DistributedDataParallel over processes).

        Afterwards the module is unwrapped, on the device it came from, in the default memory order and in eval mode.
        """
        home = home_of(module)
        wrapped: nn.Module = self.accelerator.prepare_model(_Trained(self.place(module)))
        try:
            yield wrapped
        finally:
            self.accelerator.free_memory()
            _moved(module, home, torch.contiguous_format).eval()

    def describe(self) -> dict[str, Any]:
        """Device, precision, processes, threads and torch version, for the record."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return {
            "device": name,
            "amp": self.amp,
            "processes": self.accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
