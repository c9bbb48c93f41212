"""The Bundle: a network as a folder that any process can turn back into a trainable module."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from . import files
from .contract import Contract
from .errors import UserError
from .source import Architecture

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .surgery import SurgeryPlan

MANIFEST = "bundle.json"
WEIGHTS = "weights.safetensors"
MASKS = "masks.safetensors"
CODE = "architecture.py"


class TaskRef(BaseModel):
    """The task that a network was trained for: what `tasks.get(name)(**options)` needs, and the data it saw."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    options: dict[str, Any]
    data_id: str = ""


class Lineage(BaseModel):
    """One step of a network's history: what was done to the parent Bundle, with which config, seed, data and tools."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    parent: str = ""
    config: dict[str, Any] = {}
    seed: int = 0
    data_id: str = ""
    tool_versions: dict[str, str] = {}


class Manifest(BaseModel):
    """`bundle.json`. `plan` is a SurgeryPlan as JSON (validated when it is replayed: reading a manifest needs no torch)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    architecture: Architecture
    plan: dict[str, Any] = {"edits": []}
    contract: Contract
    output: str = ""
    task: TaskRef | None = None
    metrics: dict[str, float] = {}
    lineage: tuple[Lineage, ...] = ()
    weights_sha256: str = ""
    masks_sha256: str = ""


@dataclass(frozen=True)
class Bundle:
    """A saved network: its folder and what `bundle.json` says. The weights are read when a module is asked for."""

    folder: Path
    manifest: Manifest

    @property
    def contract(self) -> Contract:
        """The I/O contract of the network."""
        return self.manifest.contract

    @property
    def hash(self) -> str:
        """A digest over the weights, the structure and the contract: equal hash, equal function."""
        m = self.manifest
        masks = [m.masks_sha256] if m.masks_sha256 else []  # without masks as it always was
        return files.digest_of(
            [m.architecture.name, m.architecture.kwargs, m.plan, m.contract.model_dump(), m.weights_sha256, *masks]
        )

    @property
    def plan(self) -> SurgeryPlan:
        """The surgery plan, validated. Raises UserError when the manifest's plan is malformed."""
        from .surgery import SurgeryPlan

        try:
            return SurgeryPlan.model_validate(self.manifest.plan)
        except ValidationError as error:
            raise UserError(
                f"{self.folder / MANIFEST}: the surgery plan is malformed: {error.errors()[0]['msg']}", hint=_REMAKE
            ) from None

    def skeleton(self) -> nn.Module:
        """The network rebuilt and cut to the plan, its weights not loaded: what another process starts from."""
        module = self.manifest.architecture.build(copy=self.folder / CODE)
        return self.plan.replay(with_output(module, self.manifest.output))

    def module(self) -> nn.Module:
        """The network as a trainable module on the CPU: built, cut to the plan, weights loaded.

        Raises UserError when the weights are missing, changed since they were saved, or don't fit.
        """
        from .checkpoint import load_into, load_state

        path = self.folder / WEIGHTS
        state = load_state(path)
        if files.sha256(path) != self.manifest.weights_sha256:
            raise UserError(f"{path} is not the file that {MANIFEST} describes (its sha256 differs)", hint=_REMAKE)
        module = self.skeleton()
        load_into(bare(module), state, origin=str(path))
        if self.manifest.masks_sha256:
            self._attach_masks(bare(module))
        return module

    def _attach_masks(self, module: nn.Module) -> None:
        from .masks import attach_masks, unpack_masks

        path = self.folder / MASKS
        if not path.is_file() or files.sha256(path) != self.manifest.masks_sha256:
            raise UserError(f"{path} is not the file that {MANIFEST} describes", hint=_REMAKE)
        shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        attach_masks(module, unpack_masks(path.read_bytes(), shapes, origin=str(path)))

    @property
    def weight_bytes(self) -> int:
        """The size of the weights file in bytes."""
        return files.size_bytes(self.folder / WEIGHTS)


_REMAKE = "the Bundle is damaged; make it again"


def load_bundle(folder: Path) -> Bundle:
    """The Bundle in `folder`. Reads the manifest only. Raises UserError when there is none or it is malformed."""
    folder = folder.parent if folder.name == MANIFEST else folder
    if not (folder / MANIFEST).exists():
        raise UserError(
            f"{folder} is not a Bundle: it has no {MANIFEST}", hint="a Bundle is the folder that `trimtab compress -o` wrote"
        )
    try:
        manifest = Manifest.model_validate(files.read_json(folder / MANIFEST))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{folder / MANIFEST}: {where}: {first['msg']}", hint=_REMAKE) from None
    return Bundle(folder, manifest)


def save_bundle(
    folder: Path, module: nn.Module, manifest: Manifest, *, code: Path | None = None, force: bool = False
) -> Bundle:
    """The Bundle written to `folder` (whole or not at all), proven to reload.

    `code` is the Python file of a user's own architecture, copied in. Raises UserError when the folder is taken, when weights
    are NaN, when a pruned weight is not 0, or when the network rebuilt from the manifest does not have the module's exact structure.
    """
    from safetensors.torch import save_file

    from .checkpoint import nan_names
    from .masks import leaked, masks_of, pack_masks
    from .surgery import describe

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in bare(module).state_dict().items()}
    if broken := nan_names(state):
        raise UserError(
            f"weights with NaN or infinity: {', '.join(broken[:10])}", hint="train with a lower lr or gradient clipping"
        )
    if wrong := leaked(bare(module)):
        raise UserError(
            f"pruned weights of {', '.join(wrong[:10])} are not 0", hint="train it with trimtab's engine, which keeps the masks"
        )
    with files.new_folder(folder, force=force) as temp:
        save_file(_unshared(state), temp / WEIGHTS)
        digests = {"weights_sha256": files.sha256(temp / WEIGHTS), "masks_sha256": ""}
        if masks := masks_of(bare(module)):
            files.write_bytes(temp / MASKS, pack_masks(masks))
            digests["masks_sha256"] = files.sha256(temp / MASKS)
        manifest = manifest.model_copy(update=digests)
        if manifest.architecture.is_file:
            shutil.copyfile(code or Path(manifest.architecture.file), temp / CODE)
        files.write_json(temp / MANIFEST, manifest.model_dump(mode="json"))
        rebuilt = describe(bare(Bundle(temp, manifest).module()))
        if rebuilt != (own := describe(bare(module))):
            wrong = [
                f"{name}: {own.get(name)} ≠ {rebuilt.get(name)}"
                for name in {**own, **rebuilt}
                if own.get(name) != rebuilt.get(name)
            ]
            raise UserError(
                "the network can't be rebuilt from its architecture and surgery plan:\n    " + "\n    ".join(wrong[:10]),
                hint="the module was changed outside trimtab; pass the factory that builds it as it is now",
            )
    return Bundle(folder, manifest)


def _unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, as safetensors wants them (tied weights are stored twice)."""
    seen: set[int] = set()
    unshared = {}
    for name, tensor in state.items():
        unshared[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return unshared


def with_output(module: nn.Module, output: str) -> nn.Module:
    """`module`, or a wrapper that picks the named entry of the dict or tuple it returns."""
    if not output:
        return module
    from .outputs import SelectOutput

    return SelectOutput(module, output)


def bare(module: nn.Module) -> nn.Module:
    """The user's own module, without the output-picking wrapper: the names of its weights are the user's."""
    from .outputs import SelectOutput

    return module.module if isinstance(module, SelectOutput) else module
