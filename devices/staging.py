"""An artifact made ready for the road: a folder with its file and the tensors that it is timed and checked on, as plain bytes."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from ..export.manifest import SAMPLES, Artifact, TensorSpec, UserError, read_json, write_json
from .golden import read_golden

STAGED = "staged.json"
Feed = dict[str, dict[str, Any]]
"""Input name → the file that holds its values (in C order, little-endian), its shape and its dtype."""


class Staged(BaseModel):
    """What lies in a staged folder: `file`, the exported one; `feeds`, inputs in turn; `golden`, None where the artifact brings none.

    All paths are relative to the folder. `inputs` and `outputs` describe the tensors as runners want them; `expected` are the
    golden outputs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifact: Artifact
    file: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    shapes: dict[str, tuple[int, ...]]
    feeds: list[Feed]
    golden: Feed | None
    expected: list[dict[str, Any]]


def read_staged(folder: Path) -> Staged:
    """What `stage` wrote there."""
    return Staged.model_validate(read_json(folder / STAGED))


def at(place: str, feed: Feed) -> Feed:
    """The same feed with its files inside `place`."""
    return {name: {**told, "file": f"{place}/{told['file']}"} for name, told in feed.items()}


def stage(source: Path, artifact: Artifact, into: Path, *, dims: Mapping[str, int], seed: int) -> Staged:
    """What lies in the folder `into`, made and filled from the artifact's in `source`.

    Raises UserError when golden.npz or samples.npz is damaged.
    """
    into.mkdir(parents=True)
    exported = artifact.path(source)
    _carry(exported, into / exported.name)
    cycle = cycle_of(source, artifact, dims=dims, seed=seed)
    feeds = [_feed(inputs, into, prefix=f"in{k}") for k, inputs in enumerate(cycle)]
    known = read_golden(source, artifact)
    golden: Feed | None = None
    expected: list[dict[str, Any]] = []
    if known is not None:
        golden = _feed(known[0], into, prefix="golden-in")
        told = _feed(known[1], into, prefix="golden-out")
        expected = [
            {"name": spec.name, **told[spec.name], "scale": spec.scale, "zero_point": spec.zero_point}
            for spec in artifact.contract.outputs
        ]
    staged = Staged(
        artifact=artifact,
        file=exported.name,
        inputs=[_port(spec) for spec in artifact.contract.inputs],
        outputs=[_port(spec) for spec in artifact.contract.outputs],
        shapes={name: array.shape for name, array in cycle[0].items()},
        feeds=feeds,
        golden=golden,
        expected=expected,
    )
    write_json(into / STAGED, staged.model_dump(mode="json"))
    return staged


def _port(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def _carry(source: Path, target: Path) -> None:
    """The file or folder at a second place: a hard link where the file system has them, else a copy."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link)
    else:
        _link(source, target)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def _feed(arrays: Mapping[str, np.ndarray], folder: Path, *, prefix: str) -> Feed:
    """The arrays written to files, numbered since tensor names may hold anything."""
    feed = {}
    for k, (name, array) in enumerate(arrays.items()):
        file = f"{prefix}-{k}.bin"
        np.ascontiguousarray(array).tofile(folder / file)
        feed[name] = {"file": file, "shape": list(array.shape), "dtype": str(array.dtype)}
    return feed


def cycle_of(folder: Path, artifact: Artifact, *, dims: Mapping[str, int], seed: int) -> list[dict[str, np.ndarray]]:
    """The inputs to time an artifact on, in turn: the real ones that it brings (samples.npz), else one that is random.

    Inputs with a default have it. What a network that adapts to its input costs is the mean over many, not any single one's time.
    Raises UserError when the file of samples is damaged.
    """
    contract, path = artifact.contract, folder / SAMPLES
    usual = contract.random_inputs(dims, seed=seed) | contract.defaults()
    if not path.exists():
        return [usual]
    spec = contract.inputs[0]
    try:
        with np.load(path, allow_pickle=False) as stored:
            samples = stored["inputs"]
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged: {error}", hint="export again") from None
    if not len(samples) or samples.shape[1:] != spec.concrete(dims)[1:] or samples.dtype != spec.dtype:
        raise UserError(
            f"{path} holds {samples.dtype} {samples.shape}, input {spec.name!r} is {spec.dtype} {spec.concrete(dims)}",
            hint="export again",
        )
    return [{**usual, spec.name: np.ascontiguousarray(samples[k : k + 1])} for k in range(len(samples))]
