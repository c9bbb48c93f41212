"""Image classification on the data sets of `datasets`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..contract import Contract, image_classifier
from ..errors import UserError
from .critical import critical_classes, named_classes, rates, require_samples
from .images import ArrayImages, Images
from .splits import Splits, make_splits
from .task import RawBatch, Split, TaskCard, batches, tasks

if TYPE_CHECKING:
    import torch
    from torch import Tensor

STATISTICS_LIMIT = 4096
"""Of images that lie on disk, so many give mean and standard deviation: all of a small set, a fair sample of a large one."""


@dataclass(frozen=True)
class ImageSamples:
    """The samples of one split; picklable, so that DataLoader workers can read them."""

    images: Images

    @property
    def targets(self) -> np.ndarray:
        """int64 (N,): all targets of the split, without reading a pixel."""
        return self.images.targets

    def __len__(self) -> int:
        return len(self.images.targets)

    def __getitems__(self, indices: Sequence[int]) -> RawBatch:
        """The samples at these positions as one batch: uint8 pixels (n, C, H, W)."""
        import torch

        where = np.asarray(indices, dtype=np.int64)
        return RawBatch(
            pixels=torch.from_numpy(self.images.read(where)),
            targets=torch.from_numpy(self.images.targets[where]),
            index=torch.from_numpy(where),
        )


class ClassificationTask:
    """One label per image: cross-entropy in training, accuracy as the figure that decides.

    `critical` names the classes whose misses cost most, if there are any: `evaluate` then reports their error rates too.
    """

    name = "classification"
    metric = "accuracy"

    def __init__(
        self,
        splits: Splits,
        *,
        data: str,
        label_smoothing: float = 0.0,
        flip: bool | None = None,
        normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
        options: Mapping[str, Any] | None = None,
        critical: Sequence[str] = (),
    ) -> None:
        self.data = data
        self.critical: tuple[str, ...] = critical_classes(critical, splits.classes).names if critical else ()
        self.options = dict(options or {})
        self.data_id = splits.data_id
        self.label_smoothing = label_smoothing
        self.flip = splits.flips if flip is None else flip
        self._samples = {
            "train": ImageSamples(splits.train),
            "val": ImageSamples(splits.val),
            "test": ImageSamples(splits.test),
        }
        channels, height, width = splits.train.shape
        mean, std = normalisation or pixel_statistics(splits.train)
        if len(mean) != channels or len(std) != channels:
            raise UserError(
                f"mean {mean} and std {std} must have one number for each of the {channels} channels of {data}",
                hint="mean=0.5 std=0.5 for grey images, three numbers each for colour",
            )
        self.contract: Contract = image_classifier(
            channels=channels, height=height, width=width, classes=splits.classes, mean=mean, std=std
        )

    def normalised_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> ClassificationTask:
        """The same task for a network that was trained with another normalisation (per channel, of pixels in 0…1)."""
        spec = self.contract.inputs[0].model_copy(update={"mean": tuple(mean), "std": tuple(std)})
        twin = copy(self)
        twin.contract = self.contract.model_copy(update={"inputs": (spec,)})
        twin.options = {**self.options, "mean": tuple(mean), "std": tuple(std)}
        return twin

    def samples(self, split: Split) -> ImageSamples:
        """The samples of a split, in a fixed shuffled order: its first n are a fair sample of it."""
        return self._samples[split]

    def inputs(self, batch: RawBatch, *, augment: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """float32 (N, C, H, W) on the batch's device: pixels/255, normalised by the contract.

        `augment` shifts each image by up to an eighth of its side and, where the data allows it, mirrors half of them.
        """
        import torch

        from .augment import crop_and_flip

        pixels = batch.pixels
        if augment:
            if generator is None:
                raise ValueError("augment=True needs a generator: augmentation draws from nothing else")
            pixels = crop_and_flip(pixels, flip=self.flip, generator=generator)
        spec = self.contract.inputs[0]
        mean, std = (torch.tensor(v, device=pixels.device).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
        return pixels.float().div_(255).sub_(mean).div_(std)

    def training_pair(self, batch: RawBatch, *, augment: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs (N, C, H, W) and their classes int64 (N,): augmentation does not change a class."""
        return self.inputs(batch, augment=augment, generator=generator), batch.targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of logits (N, classes) against targets int64 (N,), in nats. Raises UserError for other shapes."""
        from torch.nn import functional as F

        self._check(outputs)
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def evaluate(
        self, predict: Callable[[Tensor], Tensor], split: Split = "test", *, limit: int | None = None, batch_size: int = 256
    ) -> dict[str, float]:
        """{"accuracy", "loss", "macro_f1"} of `predict` over the first `limit` samples of a split.

        The loss is plain cross-entropy in nats, whatever the training's label smoothing. With critical classes also "fnr" and
        "fpr" of deciding by argmax, and "auc" (see `critical`). Raises UserError when the outputs do not have one column per
        class, and when the critical classes or all others have no sample among these.
        """
        import torch
        from torch.nn import functional as F
        from torchmetrics.classification import MulticlassStatScores

        scores = MulticlassStatScores(len(self.contract.classes), average=None, sync_on_compute=False)
        total = 0.0
        count = 0
        kept: list[tuple[np.ndarray, np.ndarray]] = []
        for batch in batches(self.samples(split), limit=limit, batch_size=batch_size):
            with torch.no_grad():
                outputs = predict(self.inputs(batch)).detach().float().cpu()
            self._check(outputs)
            scores.update(outputs.argmax(1), batch.targets)
            total += F.cross_entropy(outputs, batch.targets, reduction="sum").item()
            count += len(batch.targets)
            if self.critical:
                kept.append((outputs.numpy(), batch.targets.numpy()))
        hits, false_alarms, _, misses, _ = scores.compute().double().T
        errors = false_alarms + misses
        seen = hits + errors > 0  # a class neither present nor guessed has no F1
        f1 = (2 * hits / (2 * hits + errors))[seen].mean()
        found = {"accuracy": hits.sum().item() / count, "loss": total / count, "macro_f1": f1.item()}
        return {**found, **self._critical_rates(kept, split)}

    def _critical_rates(self, kept: Sequence[tuple[np.ndarray, np.ndarray]], split: Split) -> dict[str, float]:
        """{"fnr", "fpr", "auc"} from batches of (logits, targets); {} without critical classes."""
        if not self.critical:
            return {}
        critical = critical_classes(self.critical, self.contract.classes)
        logits, targets = (np.concatenate(parts) for parts in zip(*kept, strict=True))
        positive = critical.positive(targets)
        require_samples(positive, f"the {len(targets)} {split} samples of {self.data}", critical=critical)
        found = rates(critical.score(logits), positive)
        figures = {"fnr": found.fnr, "fpr": found.fpr, "auc": found.auc}
        return {name: value for name, value in figures.items() if value is not None}

    def _check(self, outputs: Tensor) -> None:
        classes = len(self.contract.classes)
        if outputs.ndim != 2 or outputs.shape[1] != classes:
            raise UserError(
                f"the network's output has shape {tuple(outputs.shape)}, but {self.data} has {classes} classes",
                hint=f"build the network with num_classes={classes}, or choose the data it was trained on",
            )


def pixel_statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in 0…1, over all images in memory or the first `STATISTICS_LIMIT` on disk.

    Exact integer histograms, so the figures do not depend on the machine. A constant channel gets one grey level (1/255)
    instead of 0 as its deviation.
    """
    channels = images.shape[0]
    counts = np.zeros((channels, 256), dtype=np.int64)
    total = len(images.targets)
    if not isinstance(images, ArrayImages):
        total = min(total, STATISTICS_LIMIT)
    for start in range(0, total, 256):
        pixels = images.read(np.arange(start, min(start + 256, total)))
        for channel in range(channels):
            counts[channel] += np.bincount(pixels[:, channel].ravel(), minlength=256)
    level = np.arange(256) / 255
    mean = counts @ level / counts.sum(1)
    variance = (counts * (level[None] - mean[:, None]) ** 2).sum(1) / counts.sum(1)
    std = np.maximum(np.sqrt(variance), 1 / 255)
    return tuple(round(float(m), 6) for m in mean), tuple(round(float(s), 6) for s in std)


@tasks.register(
    "classification",
    TaskCard(
        "Image classification",
        "fashion-mnist, digits, elpv, folder:PATH, npz:PATH, idx:DIR, cifar10:DIR or cifar100:DIR",
    ),
)
def classification(
    *,
    data: str,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    val_fraction: float = 0.1,
    max_train: int | None = None,
    skip_bad: bool = False,
    download: bool = True,
    label_smoothing: float = 0.0,
    flip: bool | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    critical: str | tuple[str, ...] = (),
) -> ClassificationTask:
    """The classification task on `data` (see `datasets`), at (H, W) = `size` or the data's own.

    `val_fraction` of the training split, stratified and drawn by `seed`, becomes the validation split where the data has
    none of its own; `max_train` then keeps that many training samples, stratified too. `skip_bad` leaves out images that
    cannot be read instead of stopping. `flip` overrides whether augmentation mirrors images (by default: photographs and
    clothes yes, digits and arrays of unknown content no). `mean` and `std` (per channel, of pixels in 0…1; both or neither)
    are the normalisation that the network was trained with; by default the training split's own. `critical` names the classes
    whose misses cost most (several: a list, or one text with commas); samples and `data_id` do not depend on it.

    Raises UserError for unknown data and for values out of range.
    """
    from .datasets import open_dataset

    if not 0 <= label_smoothing < 1:
        raise UserError(f"label_smoothing={label_smoothing} must be in 0 … 1 (1 excluded)", hint="0.1 is usual, 0 turns it off")
    if (mean is None) != (std is None):
        raise UserError(f"mean={mean} and std={std} go together", hint="give both, or neither")
    options = {name: value for name, value in locals().items() if name in _OPTIONS and value != _OPTIONS[name]}
    dataset = open_dataset(data, size=size, skip_bad=skip_bad, download=download)
    splits = make_splits(dataset, seed=seed, val_fraction=val_fraction, max_train=max_train)
    names = critical_classes(chosen, splits.classes).names if (chosen := named_classes(critical, splits.classes)) else ()
    options = {name: value for name, value in options.items() if name != "critical"} | ({"critical": names} if names else {})
    return ClassificationTask(
        splits,
        data=data,
        label_smoothing=label_smoothing,
        flip=flip,
        normalisation=None if mean is None or std is None else (tuple(mean), tuple(std)),
        options=options,
        critical=names,
    )


_OPTIONS = {name: parameter.default for name, parameter in inspect.signature(classification).parameters.items()}
