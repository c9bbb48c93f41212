"""An artifact on a device as a function: inputs by name in, outputs by name out. What the task's metric is taken through there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..export.manifest import UserError
from .device import Item, Job
from .job import load_request, open_request
from .link import Link
from .linked import Linked
from .staging import read_staged

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


@contextmanager
def remote_runner(device: Linked, job: Job, item: Item) -> Iterator[Run]:
    """Inside the block, a function that runs any number of samples through the job's runtime on the device.

    Raises UserError, RejectedError, LinkLostError.
    """
    staged = read_staged(Path(item.folder))
    link = device.link()
    try:
        link.ask(open_request(job, device.cores))
        link.ask({**load_request(staged, item.place), "slot": 0, "gaps": []})
        first = staged.inputs[0]["name"]
        batch = int(staged.feeds[0][first]["shape"][0])
        outputs = [port["name"] for port in staged.outputs]
        with tempfile.TemporaryDirectory(prefix="trimtab-remote-") as folder:

            def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
                return _run(device, link, Path(folder), _whole(inputs, first, batch), outputs, keep=len(inputs[first]))

            yield run
    finally:
        link.close()


def _whole(inputs: Mapping[str, np.ndarray], first: str, batch: int) -> dict[str, np.ndarray]:
    """The inputs with the last samples repeated until whole batches are full."""
    samples = len(inputs[first])
    short = -samples % batch
    if not short:
        return dict(inputs)
    rows = [*range(samples), *[samples - 1] * short]
    return {name: array[rows] if len(array) == samples else array for name, array in inputs.items()}


def _run(
    device: Linked, link: Link, folder: Path, inputs: Mapping[str, np.ndarray], outputs: list[str], *, keep: int
) -> dict[str, np.ndarray]:
    """The first `keep` samples' outputs, through files that are put there and collected."""
    feed: dict[str, dict[str, Any]] = {}
    out: dict[str, str] = {}
    sent = folder / "samples"
    sent.mkdir(exist_ok=True)
    for k, (name, array) in enumerate(inputs.items()):
        np.ascontiguousarray(array).tofile(sent / f"in-{k}.bin")
        feed[name] = {"file": f"in-{k}.bin", "shape": list(array.shape), "dtype": str(array.dtype)}
    place = device.put(sent, "samples")
    for told in feed.values():
        told["file"] = f"{place}/{told['file']}"
    out = {name: f"{place}/out-{k}.bin" for k, name in enumerate(outputs)}
    written = link.ask({"do": "run", "slot": 0, "feed": feed, "out": out})["outputs"]
    found = {}
    for k, name in enumerate(outputs):
        path = device.collect(out[name], folder / f"out-{k}.bin")
        shape, values = written[name]["shape"], np.fromfile(path, written[name]["dtype"])
        if values.size != int(np.prod(shape)):
            raise UserError(
                f"{device.name} sent {values.size} values of output {name!r}, shape {shape} has others", exit_code=1
            )
        found[name] = values.reshape(shape)[:keep]
    return found
