"""A run's state on disk: one safetensors file, whole or absent, that belongs to one run alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..models.files import digest_of, write_bytes

FORMAT = 1


def state_digest(module: nn.Module) -> str:
    """A hex digest over names, shapes, types and values of a module's state: where a run starts from."""
    tensors = {name: t.detach().cpu().clone().contiguous() for name, t in module.state_dict().items()}
    return digest_of({name: [str(t.dtype), list(t.shape), _hash(t)] for name, t in tensors.items()})


def _hash(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


@dataclass
class Position:
    """How far a run is, JSON-able: steps done, finished epochs' records, sums over the unfinished one, the loss scaler."""

    step: int = 0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    scaler: dict[str, Any] = field(default_factory=dict)


class Checkpoint:
    """The file that holds a run's state. `identity` says which run: configuration, data, starting weights, precision."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.identity = json.loads(json.dumps(dict(identity), default=str))

    def save(self, module: nn.Module, optimizer: torch.optim.Optimizer, position: Position) -> bool:
        """True when the state was written; False when it holds a value that is not finite (the file then stays as it was)."""
        tensors = {f"module.{name}": t for name, t in module.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": t for name, t in state.items() if isinstance(t, Tensor)}
        if not all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point()):
            return False
        saved = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
        about = {"format": FORMAT, "identity": self.identity, "position": vars(position)}
        write_bytes(self.path, safetensors.torch.save(saved, metadata={"trimtab": json.dumps(about)}))
        return True

    def load(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Position | None, str]:
        """The saved position, its state put into module and optimiser; or None and why the file was left alone ("" = no file)."""
        if not self.path.exists():
            return None, ""
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("trimtab", "{}"))
                why = self._foreign(about)
                if why:
                    return None, f"checkpoint {self.path.name} was not used, training starts over: {why}"
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        except (safetensors.SafetensorError, json.JSONDecodeError) as error:
            return None, f"checkpoint {self.path.name} is damaged and was not used, training starts over: {error}"
        module.load_state_dict({n.removeprefix("module."): t for n, t in tensors.items() if n.startswith("module.")})
        _restore_optimizer(optimizer, {n: t for n, t in tensors.items() if n.startswith("optimizer.")})
        return Position(**about["position"]), ""

    def _foreign(self, about: Mapping[str, Any]) -> str:
        if about.get("format") != FORMAT:
            return f"its format is {about.get('format')}, this version writes {FORMAT}"
        theirs = about["identity"]
        if theirs == self.identity:
            return ""
        names = [n for n in {**self.identity, **theirs} if theirs.get(n) != self.identity.get(n)]
        shown = ", ".join(f"{n} {_short(theirs.get(n))} → {_short(self.identity.get(n))}" for n in names)
        return f"it belongs to another run ({shown})"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "…"


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, tensor in tensors.items():
        _, index, key = name.split(".", 2)
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:  # fused kernels walk state and parameter together: same strides
            tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)  # noqa: PLW2901
        optimizer.state[parameter][key] = tensor.to(parameter.device)
