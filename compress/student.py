"""The recipe step "student": another network takes the place of the one so far, to be taught by the steps that follow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from ..models.errors import UserError, did_you_mean
from .method import Context, MethodCard, MethodConfig, Result, register_method

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..models.bundle import Bundle
    from ..models.contract import Contract
    from ..models.tasks.task import Task

PARENT = "parent"


class StudentConfig(MethodConfig):
    """A fresh network, or one from another Bundle."""

    kind: Literal["student"] = "student"
    model: str = Field(
        min_length=1,
        description='a zoo name (`trimtab models ls`), "parent" = the same network with fresh weights, or a Bundle\'s folder, '
        "whose weights are kept",
    )
    args: dict[str, Any] = Field(
        {}, description="arguments of a zoo network; num_classes and in_channels are those of the network it replaces"
    )

    @field_validator("model")
    @classmethod
    def _no_code(cls, model: str) -> str:
        if ".py:" in model or model.endswith(".py"):
            raise ValueError(
                f"a recipe names no Python code: use `trimtab compress … --student {model} --objective …` on the command line"
            )
        return model

    @model_validator(mode="after")
    def _coherent(self) -> StudentConfig:
        if self.args and (self.model == PARENT or self.is_folder):
            raise ValueError(f"args {self.args} go with a zoo name; model {self.model!r} is built with its own")
        return self

    @property
    def is_folder(self) -> bool:
        """True when `model` is written as a path."""
        return "/" in self.model or "\\" in self.model or self.model.startswith("~")

    def bundles(self) -> tuple[str, ...]:
        """The folder that the weights come from."""
        return (self.model,) if self.is_folder else ()


@register_method(
    "student",
    StudentConfig,
    MethodCard(
        title="Put a fresh network in this one's place, for the steps that follow to teach",
        source="Furlanello et al.: Born-Again Neural Networks, ICML 2018 (with model = parent)",
        needs_data=False,
        needs_labels=False,
        changes_structure=True,
        trains=False,
    ),
)
def student(module: nn.Module, task: Task | None, config: StudentConfig, context: Context) -> Result:
    """The new network and its cost beside the old one's.

    The contract stays: it is fed what the old one was fed. Raises UserError when the model is unknown, or when it can't take the
    contract's inputs or give its outputs.
    """
    import torch

    contract = context.parent.contract
    with torch.random.fork_rng(devices=[]):  # networks are built on the CPU; the run's own random numbers stay as they were
        torch.default_generator.manual_seed(_seed(config, context))
        made = _bundle(config, context) if config.is_folder else _fresh(config, context)
    figures = _figures(module, made.module, contract)
    return Result(
        module=made.module,
        plan=made.plan,
        figures={"network": made.architecture.name if made.architecture else "", **figures},
        notes=made.notes,
        architecture=made.architecture,
        output=made.output,
        code=made.code,
    )


def _seed(config: StudentConfig, context: Context) -> int:
    """The recipe's seed for its first student: plain training starts there too, so the two compare.

    The later ones start elsewhere, and so does a copy of the parent, which may have been trained from this very seed.
    """
    import numpy as np

    earlier = sum(bundle.manifest.lineage[-1].step == "student" for bundle in context.steps)
    number = earlier + (config.model == PARENT)
    return int(np.random.SeedSequence((context.seed, number)).generate_state(1)[0]) if number else context.seed


def _fresh(config: StudentConfig, context: Context) -> Result:
    """An untrained network: the parent's own structure, or a stock one."""
    from ..models.architectures import architectures, stock_arguments
    from ..models.source import Architecture

    parent = context.parent
    if config.model == PARENT:
        return _like(parent, parent.skeleton())
    if config.model not in architectures:
        known = [*architectures.names(), PARENT]
        raise UserError(
            f"student: unknown model {config.model!r}",
            hint=f"{did_you_mean(config.model, known)}; a Bundle's folder is written as a path: ./{config.model}",
        )
    kwargs = {**stock_arguments(parent.contract, config.model), **config.args}
    architecture = Architecture(name=config.model, kwargs=kwargs)
    try:
        return Result(architecture.build(), architecture=architecture)
    except UserError as error:
        raise UserError(
            f"student: {error.what}", hint=f"check args {config.args} in the recipe, or --student-arg on the command line"
        ) from error


def _bundle(config: StudentConfig, context: Context) -> Result:
    """The network of another Bundle, weights and all."""
    from ..models.bundle import load_bundle

    bundle = load_bundle(Path(config.model).expanduser())
    mine, its = context.parent.contract.inputs[0], bundle.contract.inputs[0]
    notes: tuple[str, ...] = ()
    if (mine.mean, mine.std, mine.value_range) != (its.mean, its.std, its.value_range):
        notes = (
            f"{bundle.folder.name} was made for inputs of mean {its.mean}, std {its.std}, range {its.value_range}; from here on "
            f"it gets the parent's: mean {mine.mean}, std {mine.std}, range {mine.value_range}",
        )
    return _like(bundle, bundle.module(), notes)


def _like(bundle: Bundle, module: nn.Module, notes: tuple[str, ...] = ()) -> Result:
    """A Result that is built as `bundle` is."""
    from ..models.bundle import CODE

    own = bundle.manifest
    return Result(
        module,
        plan=bundle.plan,
        notes=notes,
        architecture=own.architecture,
        output=own.output,
        code=bundle.folder / CODE if own.architecture.is_file else None,
    )


def _figures(old: nn.Module, new: nn.Module, contract: Contract) -> dict[str, Any]:
    """Costs of both networks at batch 1, once the new one has proven that it fits the contract."""
    import torch

    from .cost import count

    inputs = [torch.from_numpy(v) for v in contract.random_inputs(contract.example_dims(), seed=0).values()]
    _check(new, inputs, contract)
    before, after = count(old, inputs), count(new, inputs)
    return {
        "macs_before": before.macs,
        "macs_after": after.macs,
        "mac_ratio": after.macs / before.macs,
        "params_before": before.params,
        "params_after": after.params,
        "param_ratio": after.params / before.params,
    }


def _check(new: nn.Module, inputs: list[Tensor], contract: Contract) -> None:
    """None, when the network turns the contract's inputs into its outputs. Raises UserError otherwise."""
    import torch

    from ..models.outputs import require_tensor

    shapes, modes = [tuple(x.shape) for x in inputs], [(part, part.training) for part in new.modules()]
    new.eval()
    try:
        with torch.no_grad():
            returned = tuple(require_tensor(new(*inputs)).shape)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the student fails on an input of {shapes[0]}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
            hint="choose a network for images of this size and these channels",
        ) from error
    finally:
        for part, training in modes:
            part.training = training
    wanted = contract.outputs[0].shape
    if len(returned) != len(wanted) or any(isinstance(w, int) and w != r for w, r in zip(wanted, returned, strict=True)):
        raise UserError(
            f"the student's output for one image has shape {returned}, the network it replaces gives {('N', *wanted[1:])}",
            hint="give it as many outputs: args = {num_classes = …} in a recipe, --student-arg num_classes=… on the command line",
        )
