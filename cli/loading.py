"""From what the user typed to Bundles and tasks."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .models.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from .models.bundle import Bundle, TaskRef
    from .models.contract import Contract
    from .models.tasks.task import Task
    from .options import Selection


DEFAULT_TASK = "classification"


def keywords(pairs: Sequence[str], flag: str, *, once: bool = False) -> dict[str, Any]:
    """`key=value` pairs as keyword arguments; values are Python literals (1, 0.5, true, (1, 2)) or plain words.

    A key said again replaces what it was, or, with `once`, is refused.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"{flag} {pair!r} is not key=value", hint=f"{flag} width=0.5")
        if once and key in found:
            raise UserError(f"{flag} says {key!r} twice", hint=f"say it once; several values go into one: {flag} {key}=a,b")
        found[key] = literal(text)
    return found


def literal(text: str) -> Any:
    """A Python or TOML literal, or the text itself."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def task_options(chosen: Selection, size: str | None) -> dict[str, Any]:
    """Keyword arguments for the task on `chosen.data`."""
    options: dict[str, Any] = {
        "data": _absolute(chosen.data or ""),
        "seed": chosen.seed,
        **keywords(chosen.data_args, "--data-arg", once=True),
    }
    if size:
        options["size"] = image_size(size)
    if chosen.skip_bad:
        options["skip_bad"] = True
    return options


def task_name(chosen: Selection, own: str = "") -> str:
    """The task that `--data` is for: the one named by --task, else `own` (the Bundle's), else classification."""
    return chosen.task or own or DEFAULT_TASK


def image_size(text: str) -> tuple[int, int]:
    """(height, width) from "224" or "192x256"."""
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(p.isdigit() and int(p) > 0 for p in parts):
        raise UserError(f"--size {text!r} is not a size", hint="--size 224, or HEIGHTxWIDTH: --size 192x256")
    return int(parts[0]), int(parts[-1])


def _absolute(data: str) -> str:
    """A data spec whose path no longer depends on the working folder."""
    kind, colon, path = data.partition(":")
    return f"{kind}:{Path(path).expanduser().resolve()}" if colon else data


def open_task(name: str, options: dict[str, Any]) -> Task:
    """The task, its data read. Raises UserError for an unknown task or option."""
    from .models.tasks.task import tasks

    factory = tasks.get(name)
    import inspect

    known = inspect.signature(factory).parameters
    for key in options:
        if key not in known:
            raise UserError(f"task {name!r} has no option {key!r}", hint=did_you_mean(key, known))
    return factory(**options)


def task_of(bundle: Bundle, chosen: Selection) -> Task | None:
    """The task named on the command line, else the one the Bundle was made for, else None.

    Raises UserError when the data's classes or channels do not fit the network.
    """
    ref = bundle.manifest.task
    if chosen.data:
        options = task_options(chosen, chosen.size or own_size(bundle.contract))
        return fitted(bundle.contract, open_task(task_name(chosen, ref.name if ref else ""), options))
    _task_wants_data(chosen, ref.name if ref else "")
    if ref:
        options = {key: tuple(v) if isinstance(v, list) else v for key, v in ref.options.items()}
        return fitted(bundle.contract, open_task(ref.name, options))
    return None


def own_size(contract: Contract) -> str | None:
    """The network's own fixed image size, as "HxW"; None where it is free."""
    spec = contract.inputs[0].as_layout("NCHW")
    if spec.layout == "NCHW" and all(isinstance(d, int) for d in spec.shape[2:]):
        return "x".join(str(d) for d in spec.shape[2:])
    return None


def fitted(contract: Contract, task: Task) -> Task:
    """The task with the network's own normalisation, whatever the data's statistics are.

    A task whose data can be given in several forms (`Task.fitted`) takes the network's. Raises UserError when the data's channels,
    classes or numbers of points do not fit the network.
    """
    if adapt := getattr(task, "fitted", None):
        return adapt(contract)
    mine, theirs = contract.inputs[0], task.contract.inputs[0]
    if mine.layout == "NCHW" and mine.shape[1] != theirs.shape[1]:
        raise UserError(
            f"the network takes {mine.shape[1]} channels, {task.data} has {theirs.shape[1]}",
            hint="use other data, or --model-arg in_channels=",
        )
    _check_outputs(contract.outputs[0].shape, task, hint="use the data it was trained on, or another network")
    if mine.mean and (mine.mean, mine.std) != (theirs.mean, theirs.std):
        return task.normalised_by(mine.mean, mine.std)
    return task


def _check_outputs(shape: Sequence[int | str], task: Task, *, hint: str) -> None:
    """None, when an output of this shape (N, …) is what the task judges. Raises UserError otherwise; free dimensions fit anything."""
    wanted = task.contract.outputs[0].shape
    pairs = list(zip(shape[1:], wanted[1:], strict=False))
    if len(shape) == len(wanted) and all(a == b or isinstance(a, str) or isinstance(b, str) for a, b in pairs):
        return
    if task.contract.classes and len(shape) == len(wanted) == 2:
        raise UserError(f"the network has {shape[-1]} classes, {task.data} has {wanted[-1]}", hint=hint)
    own, its = (" × ".join(str(d) for d in dims[1:]) for dims in (shape, wanted))
    raise UserError(f"the network gives {own} numbers an image, the task {task.name!r} on {task.data} wants {its}", hint=hint)


def _task_wants_data(chosen: Selection, own: str = "") -> None:
    """None, unless --task names another task than the Bundle's `own`, or --data-arg says something, and there is no --data for it."""
    if chosen.data_args:
        raise UserError(
            f"--data-arg {chosen.data_args[0]} goes with --data, and there is none",
            hint="name the data again: --data … (the Bundle's own task is used as it was saved)",
        )
    if chosen.task and chosen.task != own:
        raise UserError(
            f"--task {chosen.task} says what --data is for, and there is no --data", hint="add --data, or leave --task out"
        )


def open_network(path: Path, stack: ExitStack, selection: Selection) -> tuple[Bundle, Task | None]:
    """The network the user pointed at, as a Bundle, and its task.

    A Bundle's folder is opened. A checkpoint file with `--model` is wrapped in a Bundle in a temp folder that `stack` removes.
    """
    from .models.bundle import MANIFEST, load_bundle

    chosen = selection
    if path.is_dir() or path.name == MANIFEST:
        bundle = load_bundle(path)
        if chosen.model:
            bundle = _with_code(bundle, chosen.model, chosen.model_args)
        return bundle, task_of(bundle, chosen)
    if not path.exists():
        raise UserError(f"{path} does not exist", hint="a Bundle's folder, or a .safetensors/.pt checkpoint with --model")
    if not chosen.model:
        raise UserError(
            f"{path} holds weights alone", hint="say which network they belong to: --model resnet20, or --model net.py:factory"
        )
    if not chosen.data:
        _task_wants_data(chosen)
    task = open_task(task_name(chosen), task_options(chosen, chosen.size)) if chosen.data else None
    return _wrap(path, stack, chosen.model, chosen, task), task


def _with_code(bundle: Bundle, model: str, model_args: Sequence[str]) -> Bundle:
    """The Bundle with its Python file trusted (and replaced) by what the user passed as --model."""
    from .models.bundle import Bundle as BundleType
    from .models.source import parse

    kwargs = {**bundle.manifest.architecture.kwargs, **keywords(model_args, "--model-arg")}
    return BundleType(bundle.folder, bundle.manifest.model_copy(update={"architecture": parse(model, kwargs)}))


def _wrap(path: Path, stack: ExitStack, model: str, chosen: Selection, task: Task | None) -> Bundle:
    """A checkpoint as a Bundle in a temp folder."""
    import tempfile

    from .models.architectures import stock_arguments
    from .models.bundle import Manifest, save_bundle, with_output
    from .models.checkpoint import load_into, load_state
    from .models.source import parse

    state = load_state(path)
    kwargs = keywords(chosen.model_args, "--model-arg")
    stock = stock_arguments(task.contract, model) if task and ".py:" not in model else {}
    architecture = parse(model, {**stock, **kwargs})
    module = architecture.build()
    load_into(module, state, origin=str(path))
    contract = contract_for(with_output(module, chosen.output_name), architecture.name, task, chosen.size)
    manifest = Manifest(
        architecture=architecture, contract=contract, output=chosen.output_name, task=task_ref(task) if task else None
    )
    temp = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trimtab-")))
    return save_bundle(temp / path.stem, module, manifest)


def task_ref(task: Task) -> TaskRef:
    """What a Bundle remembers of a task, so that it can be opened again."""
    from .models.bundle import TaskRef

    return TaskRef(name=task.name, options=dict(task.options), data_id=task.data_id)


def contract_for(module: Any, name: str, task: Task | None, size: str | None) -> Contract:
    """The contract of a network: the task's, or from `--size` and a trial run (pixels 0…1, not normalised)."""
    import torch

    from .models.architectures import architectures
    from .models.contract import Contract, Layout, TensorSpec
    from .models.outputs import require_tensor

    if task is not None:
        spec = task.contract.inputs[0]
        outputs = task.contract.outputs
        shape = tuple(int(d) for d in spec.shape[1:])
    else:
        if not size and name not in architectures:
            raise UserError(
                "the network's input size is not known", hint="add --data, or --size 3x224x224 (channels, height, width)"
            )
        shape = _input_shape(size) if size else architectures.entry(name).card.input
        spec, outputs = TensorSpec(name="image", shape=("N", *shape), layout="NCHW", value_range=(0.0, 1.0)), ()
    module.eval()
    try:
        with torch.no_grad():
            returned = require_tensor(module(torch.zeros(1, *shape)))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the network fails on an input of {(1, *shape)}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
            hint="check --data, --size and --model-arg (channels, classes)",
        ) from error
    if task is not None:
        _check_outputs(tuple(returned.shape), task, hint="--model-arg num_classes=…, or other data")
        return task.contract
    layout: Layout = "NCHW" if returned.ndim == 4 else "NC" if returned.ndim == 2 else "other"
    outputs = (TensorSpec(name="output", shape=("N", *returned.shape[1:]), layout=layout),)
    return Contract(inputs=(spec,), outputs=outputs)


def measured_outputs(module: Any, contract: Contract) -> Contract:
    """The contract, sizes of its outputs that the task leaves to the network (symbols other than "N") filled in by a trial run.

    Where the inputs' sizes are free, so are the outputs'.
    """
    open_ends = {symbol for spec in contract.outputs for symbol in spec.symbols} - {"N"}
    if not open_ends or set(contract.symbols) - {"N"}:
        return contract
    import torch

    from .models.outputs import entries

    given = [torch.from_numpy(array) for array in contract.random_inputs(contract.example_dims(), seed=0).values()]
    mode = module.training
    with torch.no_grad():
        returned = entries(module.eval()(*given)).values()
    module.train(mode)
    outputs = tuple(
        spec.model_copy(
            update={"shape": tuple(d if d == "N" else int(size) for d, size in zip(spec.shape, found.shape, strict=True))}
        )
        for spec, found in zip(contract.outputs, returned, strict=True)
    )
    return contract.model_copy(update={"outputs": outputs})


def _input_shape(size: str) -> tuple[int, ...]:
    parts = size.lower().split("x")
    if not all(p.isdigit() and int(p) > 0 for p in parts) or len(parts) not in (1, 2, 3):
        raise UserError(f"--size {size!r} is not a size", hint="--size 3x224x224 (channels, height, width)")
    numbers = [int(p) for p in parts]
    return (3, numbers[0], numbers[0]) if len(numbers) == 1 else (3, *numbers) if len(numbers) == 2 else tuple(numbers)


def artifact_task(folder: Path, selection: Selection) -> Task:
    """The task that `selection` names, for an artifact's inputs. Raises UserError."""
    from .export.artifact import load_artifact
    from .scoring import channels_first

    contract = channels_first(load_artifact(folder).contract)
    options = task_options(selection, selection.size or own_size(contract))
    return fitted(contract, open_task(task_name(selection), options))
