"""Networks that decide in Python on the values of their input: a traced program would always go the way its example went."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn


class _Decides(Exception):  # noqa: N818 - it is caught here and never seen
    """A value computed from the input became a Python number."""


def refuse_decisions(module: nn.Module, example: Sequence[Tensor]) -> None:
    """None, when no value computed from the inputs becomes a Python number or truth value in `module`'s forward.

    `example` holds one tensor per input. The numbers of parameters and buffers, and sizes, may decide: they are the same for every
    input. Raises UserError that names the line and the module.
    """
    import torch

    paths = {id(each): path for path, each in module.named_modules()}
    inside: list[int] = []
    hooks = [
        torch.nn.modules.module.register_module_forward_pre_hook(lambda each, _: inside.append(id(each))),
        torch.nn.modules.module.register_module_forward_hook(lambda *_: _drop(inside), always_call=True),
    ]
    deepest: list[int] = []
    try:
        with torch.no_grad(), _watch(example, inside, deepest):
            module(*example)
    except _Decides as found:
        path = next((paths[each] for each in reversed(deepest) if each in paths), "")
        where = _line(found)
        raise UserError(
            f"the network decides on the values of its input in {paths_words(path)}{where}: a converted network would always go one way",
            hint='compute both sides and choose with torch.where, or make branches with the recipe step "route"; leave assertions '
            "on values out of forward",
        ) from None
    except Exception:
        return  # whatever else is wrong with the network is the tracer's to say
    finally:
        for hook in hooks:
            hook.remove()


def _drop(stack: list[int]) -> None:
    stack.pop()


def paths_words(path: str) -> str:
    """A module's path in words; the network itself has none."""
    return f"{path!r}" if path else "its own forward"


def _watch(example: Sequence[Tensor], inside: Sequence[int], deepest: list[int]) -> Any:
    """A dispatch mode under which everything computed from `example` is known, and may not become a Python number."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.weak import WeakTensorKeyDictionary

    known: Any = WeakTensorKeyDictionary()
    for tensor in example:
        known[tensor] = True
    numbers = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default, torch.ops.aten.equal.default)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            from_input = any(leaf in known for leaf in given)
            if from_input and func in numbers:
                deepest[:] = inside
                raise _Decides
            out = func(*args, **(kwargs or {}))
            if from_input:
                for leaf in tree_leaves(out):
                    if isinstance(leaf, torch.Tensor):
                        known[leaf] = True
            return out

    return Watch()


def _line(error: BaseException) -> str:
    """ " (net.py:41: if x.sum() > 0:)": the innermost line that is neither torch's nor this file's."""
    import torch

    own = (str(Path(torch.__file__).parent), __file__)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(own)]
    if not frames:
        return ""
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}: {(frames[-1].line or '').strip()[:80]})"
