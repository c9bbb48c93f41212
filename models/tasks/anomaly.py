"""Anomalies: pictures that are unlike the normal ones, the only ones seen in training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from ..contract import Contract, Dim, TensorSpec
from ..errors import UserError
from .anomaly_data import AnomalySplits, anomaly_splits
from .anomaly_metrics import image_figures, operating_point, pixel_figures, threshold_at
from .classification import ImageSamples
from .task import RawBatch, Split, TaskCard, batches, tasks

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class AnomalyTask:
    """A map per picture, higher where something is odd: AUROC of its maximum over normal and anomalous test pictures decides.

    Training and validation hold normal pictures alone. Targets are int64 (N,), 0 normal and 1 anomalous. The network takes colour
    pictures in 0…1 and normalises inside; grey data is repeated to three channels.
    """

    name = "anomaly"
    metric = "auroc"

    def __init__(
        self, splits: AnomalySplits, *, data: str, fpr: float = 0.01, options: Mapping[str, Any] | None = None
    ) -> None:
        self.data = data
        self.options = dict(options or {})
        self.data_id = splits.data_id
        self.fpr = fpr
        self.groups = dict(splits.groups)
        self.notes = splits.notes
        self._parts = splits.parts
        self._samples = {split: ImageSamples(part.images) for split, part in splits.parts.items()}
        _, height, width = splits.parts["train"].images.shape
        self.contract: Contract = anomaly_contract(height, width)

    def normalised_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> AnomalyTask:
        """The same task for a network that was trained with another normalisation (per channel, of pixels in 0…1)."""
        spec = self.contract.inputs[0].model_copy(update={"mean": tuple(mean), "std": tuple(std)})
        twin = copy(self)
        twin.contract = self.contract.model_copy(update={"inputs": (spec,)})
        return twin

    def samples(self, split: Split) -> ImageSamples:
        """The samples of a split, in a fixed shuffled order: its first n are a fair sample of it."""
        return self._samples[split]

    def masks(self, split: Split) -> np.ndarray | None:
        """uint8 (N, H, W), 1 where a picture is anomalous, in the samples' order; None where the data has no masks."""
        return self._parts[split].masks

    def kinds(self, split: Split) -> tuple[str, ...]:
        """What each sample is: "good", or the kind of its anomaly."""
        return self._parts[split].kinds

    def inputs(self, batch: RawBatch, *, augment: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """float32 (N, 3, H, W) on the batch's device: pixels/255.

        `augment` changes nothing: a shift, a turn or a mirror image may be the very anomaly that is looked for. What a method
        needs (penalty images, brightness for the autoencoder) it makes itself.
        """
        import torch

        pixels = batch.pixels.float().div_(255)
        pixels = pixels.expand(-1, 3, -1, -1).contiguous() if pixels.shape[1] == 1 else pixels
        spec = self.contract.inputs[0]
        if not spec.mean:
            return pixels
        mean, std = (torch.tensor(v, device=pixels.device).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
        return pixels.sub_(mean).div_(std)

    def training_pair(self, batch: RawBatch, *, augment: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs (N, 3, H, W) and targets int64 (N,), which are all 0 in training."""
        return self.inputs(batch, augment=augment, generator=generator), batch.targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Raises UserError: there are normal pictures alone to train on, so no loss compares an output with a target."""
        raise UserError(
            "the task anomaly has no training loss of its own: it trains on normal pictures alone",
            hint="use the step anomaly-fit (gaussian_ad, memory_bank), or pdn-teacher and efficientad (efficientad_s, efficientad_m)",
        )

    def evaluate(
        self, predict: Callable[[Tensor], Tensor], split: Split = "test", *, limit: int | None = None, batch_size: int = 64
    ) -> dict[str, float]:
        """Metrics of `predict` (pictures → maps (N, 1, h, w)) over the first `limit` samples of a split; a score is a map's maximum.

        On the test: "auroc" and "ap" of the scores, "auroc_KIND" for each kind (and group of kinds) against all normal pictures,
        "pixel_auroc" and "au_pro" (up to 30 % false-positive rate) where there are masks and maps, and "tpr", "fpr" at "threshold",
        which is chosen on the normal validation pictures so that at most the task's `fpr` of them lie above it. On train and val,
        which hold normal pictures alone: "threshold" and "score", the mean. Raises UserError for outputs of another shape, and
        when the first `limit` samples lack normal or anomalous ones.
        """
        maps = self._maps(predict, split, limit=limit, batch_size=batch_size)
        scores = maps.reshape(len(maps), -1).max(1)
        if split != "test":
            return {"score": float(scores.mean()), "threshold": threshold_at(scores, self.fpr)}
        part = self._parts["test"]
        kinds = np.array(part.kinds[: len(maps)])
        figures = image_figures(scores, part.images.targets[: len(maps)], kinds, self.groups)
        if part.masks is not None and maps.shape[1:] != (1, 1):
            figures |= pixel_figures(maps, part.masks[: len(maps)])
        normal = self._maps(predict, "val", limit=limit, batch_size=batch_size)
        threshold = threshold_at(normal.reshape(len(normal), -1).max(1), self.fpr)
        return figures | operating_point(scores, part.images.targets[: len(maps)], threshold)

    def _maps(self, predict: Callable[[Tensor], Tensor], split: Split, *, limit: int | None, batch_size: int) -> np.ndarray:
        """float32 (N, h, w)."""
        import torch

        found = []
        for batch in batches(self.samples(split), limit=limit, batch_size=batch_size):
            with torch.no_grad():
                outputs = predict(self.inputs(batch)).detach().float().cpu()
            if outputs.ndim != 4 or outputs.shape[1] != 1:
                raise UserError(
                    f"the network's output has shape {tuple(outputs.shape)}, an anomaly map has (N, 1, h, w)",
                    hint="take a network that returns map and score, such as gaussian_ad, memory_bank or efficientad_s",
                )
            found.append(outputs[:, 0].numpy())
        maps = np.concatenate(found)
        if not np.isfinite(maps).all():
            wrong = int((~np.isfinite(maps).reshape(len(maps), -1).all(1)).sum())
            raise UserError(
                f"the maps of {wrong} of {len(maps)} {split} pictures hold NaN or infinity",
                hint="fit or train the network again; look for constant pictures and for a diverged training",
            )
        return maps


def anomaly_contract(height: Dim, width: Dim, *, map_size: tuple[Dim, Dim] = ("h", "w")) -> Contract:
    """The contract of a network that looks for anomalies: "image" (N, 3, H, W), pixels in 0…1 → "map" (N, 1, h, w) and "score" (N, 1).

    What the map's size is, the network says: a step that makes one fills it in.
    """
    image = TensorSpec(name="image", shape=("N", 3, height, width), layout="NCHW", value_range=(0.0, 1.0))
    outputs = (
        TensorSpec(name="map", shape=("N", 1, *map_size), layout="NCHW"),
        TensorSpec(name="score", shape=("N", 1), layout="NC"),
    )
    return Contract(inputs=(image,), outputs=outputs)


@tasks.register(
    "anomaly",
    TaskCard("Anomaly detection", "elpv, elpv:DIR, mvtec:DIR, loco:DIR, visa:DIR, folder:DIR or scenes"),
)
def anomaly(
    *,
    data: str,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    val_fraction: float = 0.1,
    max_train: int | None = None,
    fpr: float = 0.01,
    cells: str = "all",
    counts: tuple[int, int, int] | None = None,
    skip_bad: bool = False,
) -> AnomalyTask:
    """The anomaly task on `data` (see `sources_anomaly`), at (H, W) = `size` or the data's own.

    `val_fraction` of the normal training pictures, drawn by `seed`, becomes the validation split where the data has none of its own;
    `max_train` then keeps that many. `fpr` is the false-positive rate on normal validation pictures that sets the threshold.
    `cells` ("mono", "poly" or "all") picks the kind of solar cell for elpv; `counts` are the pictures of "scenes": training normals,
    test normals, test anomalies (240, 60 and 120 unless told otherwise). `skip_bad` leaves out pictures that cannot be read.

    Raises UserError for unknown or damaged data, for values out of range, and for options that the data does not have.
    """
    from .sources_anomaly import open_anomaly

    options = {name: value for name, value in locals().items() if name in _OPTIONS and value != _OPTIONS[name]}
    if not 0 < fpr < 1:
        raise UserError(f"fpr={fpr} must lie between 0 and 1", hint="0.01 lets one normal picture in a hundred pass as odd")
    pool = open_anomaly(data, size=size, cells=cells, counts=counts, skip_bad=skip_bad)
    splits = anomaly_splits(pool, seed=seed, val_fraction=val_fraction, max_train=max_train)
    return AnomalyTask(splits, data=data, fpr=fpr, options=options)


_OPTIONS = {name: parameter.default for name, parameter in inspect.signature(anomaly).parameters.items()}
