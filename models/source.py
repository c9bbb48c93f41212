"""Where a network's code comes from: the zoo by name, or a user's own `file.py:factory`."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from . import files
from .architectures import architectures
from .errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import nn


class Architecture(BaseModel):
    """How to build the network: a zoo name, or `factory` in a Python file of which `sha256` is known; plus keyword arguments.

    `file` is the user's own path; a Bundle carries a copy of the file. What the file imports from beside it comes from the folder
    where the user last named it with --model, never from one that a manifest names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kwargs: dict[str, Any] = {}
    file: str = ""
    sha256: str = ""

    @property
    def is_file(self) -> bool:
        """True for a user's own Python file."""
        return bool(self.file)

    def build(self, *, copy: Path | None = None) -> nn.Module:
        """A fresh module. `copy` is the Bundle's copy of the Python file.

        Raises UserError when the name is unknown, the file is not trusted, or the factory fails or returns no module.
        """
        if not self.is_file:
            return _call(architectures.get(self.name), self.kwargs, self.name)
        path = copy if copy is not None and copy.exists() else Path(self.file)
        if not path.exists():
            raise UserError(f"the network's code {path} is gone", hint="pass --model path/to/file.py:factory again")
        digest = _digest(path)
        if self.sha256 and digest != self.sha256:
            raise UserError(
                f"{path} has changed since the Bundle was made (sha256 {digest[:12]}…, was {self.sha256[:12]}…)",
                hint=f"pass --model {self.file}:{self.name} to use the new code",
            )
        folder = trusted_folder(digest)
        if folder is None:
            raise UserError(
                f"the network is Python code, {path}, which this machine has not been told to trust",
                hint=f"read it; then pass --model {path}:{self.name} once",
            )
        return _call(_factory(path, self.name, beside=folder), self.kwargs, f"{path}:{self.name}")


def parse(text: str, kwargs: dict[str, Any] | None = None) -> Architecture:
    """An Architecture from what the user typed: `resnet20` or `path/to/net.py:factory`. Typing a path is trusting that file."""
    if ".py:" not in text:
        if text.endswith(".py"):
            raise UserError(
                f"--model {text} names a file but no factory",
                hint=f"--model {text}:NAME, NAME a function that returns the module",
            )
        architectures.entry(text)
        return Architecture(name=text, kwargs=kwargs or {})
    file, _, name = text.rpartition(":")
    path = Path(file).resolve()
    if not path.is_file():
        raise UserError(f"--model {text}: {path} does not exist", hint="check the path")
    digest = _digest(path)
    trust(digest, path.parent)
    return Architecture(name=name, kwargs=kwargs or {}, file=str(path), sha256=digest)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _factory(path: Path, name: str, *, beside: Path) -> Callable[..., Any]:
    module_name = f"_trimtab_user_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} cannot be imported as Python", hint="give a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    module.__dict__["__trimtab_beside__"] = str(beside)  # where another process finds what the file imports
    sys.path.insert(0, str(beside))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(
            f"importing {path} failed: {type(error).__name__}: {error}", hint="run it with python to see the whole trace"
        ) from error
    finally:
        sys.path.remove(str(beside))
    found = getattr(module, name, None)
    if not callable(found):
        raise UserError(
            f"{path} has no function {name!r}",
            hint=did_you_mean(name, [n for n in vars(module) if callable(getattr(module, n))]),
        )
    return found


def _call(factory: Callable[..., Any], kwargs: dict[str, Any], label: str) -> nn.Module:
    from torch import nn  # torch only when a network is really built

    shown = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
    try:
        module = factory(**kwargs)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{label}({shown}) raised {type(error).__name__}: {error}",
            hint="check --model-arg key=value; run the factory in python",
        ) from error
    if not isinstance(module, nn.Module):
        raise UserError(
            f"{label}({shown}) returned {type(module).__name__}, not a torch.nn.Module",
            hint="return the network from the factory",
        )
    return module


def _trust_file() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "trimtab" / "trusted_models.txt"


def trusted_folder(digest: str) -> Path | None:
    """Where the file with this sha256 lay when the user last passed it as --model; None when that never happened."""
    path = _trust_file()
    found = None
    for line in path.read_text().splitlines() if path.exists() else ():
        known, _, folder = line.partition(" ")
        if known == digest:
            found = Path(folder)
    return found


def trust(digest: str, folder: Path) -> None:
    """Remembers a file's sha256, and the folder its imports may come from, as trusted by this user."""
    if trusted_folder(digest) != folder:
        path = _trust_file()
        known = path.read_text() if path.exists() else ""
        files.write_text(path, f"{known}{digest} {folder}\n")
