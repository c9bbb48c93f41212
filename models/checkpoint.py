"""Weights in, safely: `.safetensors`, or `.pt`/`.pth`/`.bin` that hold tensors alone."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from .errors import UserError
from .files import write_bytes

_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "ema", "params")
_PREFIXES = ("module.", "_orig_mod.")


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU.

    Looks inside the usual containers (`{"state_dict": …}`), and strips `module.` (DataParallel) and `_orig_mod.` (compile).
    Raises UserError when the file is missing, damaged, empty of tensors, or a pickle that needs code to load.
    """
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist", hint="check the path")
    if path.is_dir():
        raise UserError(
            f"checkpoint {path} is a folder", hint="give a .safetensors/.pt file, or a Bundle's folder (holds bundle.json)"
        )
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = _tensors(content)
    if not state:
        raise UserError(
            f"{path} holds no tensors (top level: {_outline(content)})",
            hint="save the network's weights with torch.save(model.state_dict(), path)",
        )
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}", hint="copy or save it again") from None


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.findall(r"GLOBAL ([\w.]+)|Unsupported global: GLOBAL ([\w.]+)", str(error))
        code = ", ".join(sorted({name for pair in named for name in pair if name})) or "Python objects that are not tensors"
        raise UserError(
            f"{path} is a pickle that runs code when loaded ({code}); trimtab loads tensors alone",
            hint=(
                "save model.state_dict() instead of the whole model; or, if you trust whoever made the file, "
                f"`trimtab convert-checkpoint --trust {path}` writes its tensors to a .safetensors"
            ),
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is not a readable torch checkpoint: {first}", hint="copy or save it again") from None


def _tensors(content: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, found at the top or in one of the usual containers."""
    if not isinstance(content, Mapping):
        return {}
    for key in _CONTAINERS:
        if isinstance(inner := content.get(key), Mapping) and (found := _tensors(inner)):
            return found
    return {str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)}


def _outline(content: Any) -> str:
    if isinstance(content, Mapping):
        return "a dict with " + (", ".join(repr(k) for k in list(content)[:8]) or "nothing in it")
    return type(content).__name__


def load_into(module: nn.Module, state: Mapping[str, Tensor], *, origin: str = "the checkpoint") -> None:
    """Puts `state` into `module`, strictly.

    Raises UserError listing the first ten missing, unexpected and mis-shaped names (both shapes), when anything differs.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shaped = [
        f"{name}: the network has {tuple(own[name].shape)}, {origin} {tuple(state[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    problems = [
        f"{len(names)} {kind}:\n    "
        + "\n    ".join(names[:10])
        + (f"\n    … and {len(names) - 10} more" if len(names) > 10 else "")
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shaped))
        if names
    ]
    if problems:
        raise UserError(
            f"{origin} does not fit the network ({len(own)} names in the network, {len(state)} in the file)\n  "
            + "\n  ".join(problems),
            hint="check --model and its arguments (number of classes, input channels, width)",
        )
    with torch.no_grad():
        module.load_state_dict({**{name: own[name] for name in own if name not in state}, **state}, strict=True)


def nan_names(state: Mapping[str, Tensor]) -> list[str]:
    """The names of floating-point tensors that hold NaN or infinity."""
    return [name for name, tensor in state.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]


def convert_untrusted(path: Path, out: Path, *, trust: bool, say: Callable[[str], None]) -> int:
    """How many tensors were written to `out` (.safetensors) from a pickle that runs code, which it says before it does.

    Raises UserError without `trust`, when classes it needs can't be imported, or when it holds no tensors.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist", hint="check the path")
    if not trust:
        raise UserError(
            f"loading {path} runs the Python code that whoever made it put in",
            hint="only if you trust them: add --trust (in a container or a throw-away account, if in doubt)",
        )
    say(f"running the pickle {path} with your rights: it may execute any code")
    try:
        content = torch.load(path, map_location="cpu", weights_only=not trust)
    except Exception as error:
        raise UserError(
            f"{path} can't be unpickled: {type(error).__name__}: {error}", hint="its classes must be importable: set PYTHONPATH"
        ) from error
    if isinstance(content, nn.Module):
        content = content.state_dict()
    elif isinstance(content, Mapping):
        content = {k: v.state_dict() if isinstance(v, nn.Module) else v for k, v in content.items()}
    if not (state := _tensors(content)):
        raise UserError(f"{path} holds no tensors (top level: {_outline(content)})", hint="nothing was written")
    shared: set[int] = set()
    whole = {}
    for name, tensor in state.items():
        whole[name] = tensor.clone().contiguous() if tensor.data_ptr() in shared else tensor.contiguous()
        shared.add(tensor.data_ptr())
    write_bytes(out, save(whole))
    return len(whole)
