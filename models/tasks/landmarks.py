"""Landmarks: L points in every picture, as 2L regressed coordinates."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..contract import Contract, TensorSpec
from ..errors import UserError
from ..files import digest_of
from .augment_points import Movement, mirrored_order, moved
from .classification import ImageSamples, pixel_statistics
from .images import Images
from .landmark_data import Eyes, LandmarkData, Pairs, some
from .landmark_metrics import NORMS, Norm, denominators, normalised_errors, summary
from .landmark_splits import landmark_splits
from .splits import Splits
from .task import RawBatch, Split, TaskCard, batches, tasks

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Measure:
    """What errors are divided by, and which points are the eyes (for "interocular")."""

    norm: Norm
    eyes: Eyes | None


class LandmarksTask:
    """2L coordinates per picture: a regression loss in training, normalised mean error as the figure that decides (lower is better).

    Targets and outputs are float32 (N, 2L) = x₀, y₀, x₁, y₁ …, relative to the view's width and height, minus 0.5: 0 is the
    middle of the picture, ±0.5 its edges (see `landmark_data.relative`).
    """

    name = "landmarks"
    metric = "nme"

    def __init__(
        self,
        splits: Splits,
        *,
        data: str,
        measure: Measure,
        movement: Movement,
        soft: np.ndarray | None = None,
        loss: Literal["mse", "l1"] = "mse",
        normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """`soft` float32 (N, 2L) takes the place of the training targets; measuring always uses the true points."""
        self.data = data
        self.options = dict(options or {})
        self.data_id = splits.data_id
        self.measure = measure
        self.movement = movement
        self.loss_kind = loss
        train: Images = splits.train if soft is None else replace(splits.train, targets=soft)  # type: ignore[type-var]
        self._samples = {"train": ImageSamples(train), "val": ImageSamples(splits.val), "test": ImageSamples(splits.test)}
        self._truth = {"train": splits.train.targets, "val": splits.val.targets, "test": splits.test.targets}
        channels, height, width = splits.train.shape
        mean, std = normalisation or pixel_statistics(splits.train)
        if len(mean) != channels or len(std) != channels:
            raise UserError(
                f"mean {mean} and std {std} must have one number for each of the {channels} channels of {data}",
                hint="mean=0.5 std=0.5 for grey images, three numbers each for colour",
            )
        image = TensorSpec(
            name="image", shape=("N", channels, height, width), layout="NCHW", value_range=(0.0, 1.0), mean=mean, std=std
        )
        points = TensorSpec(name="landmarks", shape=("N", splits.train.targets.shape[1]), layout="NC")
        self.contract = Contract(inputs=(image,), outputs=(points,))

    def normalised_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> LandmarksTask:
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

        `augment` moves the pictures as `training_pair` does with the same generator; the points that go with them come from there.
        """
        if augment and generator is None:
            raise ValueError("augment=True needs a generator: augmentation draws from nothing else")
        if not augment or generator is None:
            return self._normalised(batch.pixels.float())
        return self.training_pair(batch, augment=True, generator=generator)[0]

    def training_pair(self, batch: RawBatch, *, augment: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs (N, C, H, W) and targets (N, 2L); `augment` shifts, turns, zooms and mirrors both alike."""
        if not augment:
            return self.inputs(batch), batch.targets
        pixels, targets = moved(batch.pixels, batch.targets, self.movement, generator)
        return self._normalised(pixels), targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared (or absolute, loss="l1") error over samples and coordinates. Raises UserError for outputs of another shape."""
        from torch.nn import functional as F

        self._check(outputs)
        return (F.l1_loss if self.loss_kind == "l1" else F.mse_loss)(outputs, targets)

    def evaluate(
        self, predict: Callable[[Tensor], Tensor], split: Split = "test", *, limit: int | None = None, batch_size: int = 256
    ) -> dict[str, float]:
        """{"nme", "auc_0.08", "failure_0.08", "loss"} of `predict` against the true points of the first `limit` samples of a split.

        All are fractions (an nme of 0.04 is 4 %): the mean normalised error (lower is better), the area under its cumulative curve
        up to 0.08 over 0.08 (higher is better), the share of samples beyond 0.08, and the task's loss.
        """
        import torch

        size = self.contract.inputs[0].shape[2:]
        truth = self._truth[split]
        outputs = []
        for batch in batches(self.samples(split), limit=limit, batch_size=batch_size):
            with torch.no_grad():
                outputs.append(predict(self.inputs(batch)).detach().float().cpu())
            self._check(outputs[-1])
        found = torch.cat(outputs)
        truth = truth[: len(found)]
        divisors = denominators(truth, size, norm=self.measure.norm, eyes=self.measure.eyes)  # type: ignore[arg-type]
        figures = summary(normalised_errors(found.numpy(), truth, size, divisors))  # type: ignore[arg-type]
        return {**figures, "loss": self.loss(found.double(), torch.from_numpy(truth).double()).item()}

    def _normalised(self, pixels: Tensor) -> Tensor:
        """Writes into `pixels`."""
        import torch

        spec = self.contract.inputs[0]
        mean, std = (torch.tensor(v, device=pixels.device).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
        return pixels.div_(255).sub_(mean).div_(std)

    def _check(self, outputs: Tensor) -> None:
        numbers = self.contract.outputs[0].shape[1]
        if outputs.ndim != 2 or outputs.shape[1] != numbers:
            raise UserError(
                f"the network's output has shape {tuple(outputs.shape)}, but {self.data} has {int(numbers) // 2} points: "
                f"{numbers} coordinates",
                hint=f"build the network with num_classes={numbers}, or choose the data it was trained on",
            )


@tasks.register(
    "landmarks", TaskCard("Landmarks", "shapes, points:DIR, csv:FILE, json:FILE or npz:FILE", higher_is_better=False)
)
def landmarks(
    *,
    data: str,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    max_train: int | None = None,
    groups: bool = False,
    crop: float | None = None,
    margin: float = 0.1,
    skip_bad: bool = False,
    norm: Norm = "interocular",
    eyes: Sequence[Any] | None = None,
    flip_pairs: Sequence[Sequence[int]] | None = None,
    shift: float = 0.05,
    rotation: float = 15.0,
    zoom: float = 0.1,
    soft: float = 0.0,
    loss: Literal["mse", "l1"] = "mse",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> LandmarksTask:
    """The landmarks task on `data` (see `sources_landmarks`), at (H, W) = `size` or the data's own.

    Data that is not divided gives `test_fraction` to the test, the same for every seed, and `val_fraction` of the rest to
    validation; `groups` keeps each group (the folder that a picture lies in, or what a table names) in one split. `crop` cuts each
    picture to its points' box, widened by this fraction of its sides; `margin` is how far outside their picture points may lie.

    `norm` is what errors are divided by: "interocular" wants `eyes`, two indices (outer corners) or two lists of them (a mean each);
    "box" and "diagonal" are those of the points' box. Augmentation shifts by up to `shift` of the sides, turns by `rotation` degrees,
    zooms by `zoom`, and mirrors only when `flip_pairs` names the points that change places ("shapes" brings its eyes and pairs).

    `soft` trains on the points as a shape model that holds this fraction of the training shapes' variance describes them: the
    tolerant teacher's targets of KD-Loss (0.9 in the released code). `mean` and `std` (per channel, of pixels in 0…1; both or neither)
    are the normalisation that the network was trained with.

    Raises UserError for unknown or damaged data, for values out of range, and for a sample whose error cannot be normalised.
    """
    options = {name: value for name, value in locals().items() if name in _OPTIONS and value != _OPTIONS[name]}
    _check_values(locals())
    from .sources_landmarks import open_landmarks

    pool = open_landmarks(data, size=_size(size), crop=crop, margin=margin, skip_bad=skip_bad)
    points = pool.images.targets.shape[1] // 2
    pairs = pool.flip_pairs or () if flip_pairs is None else _pairs(flip_pairs, points)
    measure = Measure(norm, pool.eyes if eyes is None else _eyes(eyes, points))
    _check_measure(pool, measure, points)
    splits, _ = landmark_splits(
        pool, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction, groups=groups, max_train=max_train
    )
    softened = None
    if soft:
        from .asm import fit_shapes

        softened = fit_shapes(splits.train.targets, soft).soft(splits.train.targets)
        splits = replace(splits, data_id=digest_of([splits.data_id, "soft", soft]))
    return LandmarksTask(
        splits,
        data=data,
        measure=measure,
        movement=Movement(shift, rotation, zoom, mirrored_order(points, pairs) if pairs else ()),
        soft=softened,
        loss=loss,
        normalisation=None if mean is None or std is None else (tuple(mean), tuple(std)),
        options=options,
    )


def _check_values(given: Mapping[str, Any]) -> None:
    ranges = {"shift": (0, 0.5), "rotation": (0, 180), "zoom": (0, 0.5), "soft": (0, 1), "margin": (0, 10), "crop": (0, 10)}
    for name, (low, high) in ranges.items():
        if given[name] is not None and not low <= given[name] <= high:
            raise UserError(f"{name}={given[name]} must lie in {low} … {high}", hint="see the task's description for its unit")
    for name, known in (("norm", NORMS), ("loss", ("mse", "l1"))):
        if given[name] not in known:
            raise UserError(f"{name}={given[name]!r} is unknown", hint=f"known: {', '.join(known)}")
    if (given["mean"] is None) != (given["std"] is None):
        raise UserError(f"mean={given['mean']} and std={given['std']} go together", hint="give both, or neither")


def _size(size: Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    if len(size) != 2 or min(size) < 1:
        raise UserError(f"size={size} must be a height and a width of 1 or more", hint="in pixels, such as (112, 112)")
    return int(size[0]), int(size[1])


def _pairs(flip_pairs: Sequence[Sequence[int]], points: int) -> Pairs:
    """The pairs as tuples. Raises UserError for what is no pair, for an index out of range, and for one that comes twice."""
    hint = "each pair names a left and a right point, such as [[36, 45], [39, 42]]; points on the axis are left out"
    for pair in flip_pairs:
        if isinstance(pair, int) or len(pair) != 2:
            raise UserError(f"flip_pairs: {pair!r} is not a pair", hint=hint)
    flat = [int(i) for pair in flip_pairs for i in pair]
    if wrong := [i for i in flat if not 0 <= i < points]:
        raise UserError(f"flip_pairs names point {wrong[0]}, the data has points 0 … {points - 1}", hint=hint)
    if twice := sorted({i for i in flat if flat.count(i) > 1}):
        raise UserError(f"flip_pairs names point {twice[0]} twice", hint=hint)
    return tuple((int(a), int(b)) for a, b in flip_pairs)


def _eyes(eyes: Sequence[Any], points: int) -> Eyes:
    """The points of either eye. Raises UserError for what is not two eyes, and for an index out of range."""
    hint = "two outer corners such as [36, 45], or the points of each eye such as [[36, 37], [44, 45]]"
    if len(eyes) != 2:
        raise UserError(f"eyes={eyes!r} are not two", hint=hint)
    left, right = (tuple(int(i) for i in ([eye] if isinstance(eye, int) else eye)) for eye in eyes)
    wrong = [i for i in (*left, *right) if not 0 <= i < points]
    if wrong or not left or not right:
        said = f"names point {wrong[0]}, the data has points 0 … {points - 1}" if wrong else "has an eye without points"
        raise UserError(f"eyes={eyes!r} {said}", hint=hint)
    return left, right


def _check_measure(pool: LandmarkData, measure: Measure, points: int) -> None:
    """None, when every sample's error can be divided. Raises UserError naming the samples for which the divisor is 0."""
    if measure.norm == "interocular" and measure.eyes is None:
        known = " (68 points in iBUG's order: eyes=[36, 45])" if points == 68 else ""
        raise UserError(
            'norm="interocular" needs eyes: which points are the outer corners of the eyes?',
            hint=f'eyes=[left, right]{known}, or norm="box" or "diagonal"',
        )
    found = denominators(pool.images.targets, pool.images.shape[1:], norm=measure.norm, eyes=measure.eyes)
    if not found.all():
        zero = np.flatnonzero(found == 0)
        raise UserError(
            f"{len(zero)} of {len(found)} samples have the {measure.norm} size 0, which errors cannot be divided by: "
            f"{some([pool.names[i] for i in zero])}",
            hint="their points coincide: mend or leave out these samples, or choose another norm",
        )


_OPTIONS = {name: parameter.default for name, parameter in inspect.signature(landmarks).parameters.items()}
