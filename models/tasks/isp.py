"""RAW in, RGB out: mosaic patches of one sensor, and the pictures that a network should develop them to."""

from __future__ import annotations

import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from ..contract import Contract, DType, TensorSpec
from ..errors import UserError, did_you_mean
from ..files import digest_of
from ..raw.classical import GAINS, render
from ..raw.frame import RawFrame
from ..raw.packing import FORMS, Form, in_form
from .isp_data import IspData, Patches, Sensor, takes_counts
from .task import RawBatch, Split, TaskCard, batches, tasks

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CACHE_BYTES = 1 << 29
"""Renderings of patches that were asked for before are kept up to this."""
TRANSPOSED = frozenset(("RGGB", "BGGR"))
"""Phases that stay what they are when a mosaic is mirrored along its main diagonal; the other two along the other diagonal."""


class IspSamples:
    """Mosaics as counts, int32 (N, 1, H, W), with the finished pictures, float32 (N, 3, H, W) in 0…1, or the renderings as targets."""

    def __init__(self, patches: Patches, rendered: Callable[[np.ndarray], np.ndarray]) -> None:
        self.patches = patches
        self._rendered = rendered

    def __len__(self) -> int:
        return len(self.patches)

    def __getitems__(self, indices: Sequence[int]) -> RawBatch:
        """The patches at these positions, in this order."""
        import torch

        places = np.asarray(indices, dtype=np.int64)
        counts, pictures = self.patches.mosaics(places), self.patches.pictures(places)
        targets = self._rendered(counts) if pictures is None else pictures.astype(np.float32) / 255
        return RawBatch(torch.from_numpy(counts.astype(np.int32))[:, None], torch.from_numpy(targets), torch.from_numpy(places))


class IspTask:
    """RAW patches in three splits; PSNR to the finished pictures decides, or to the fixed rendering where the data has no pairs.

    `paired` says which. The network's input is the packed mosaic (N, 4, H/2, W/2), channels B, Gr, R, Gb, or three planes (N, 3, H, W),
    both (count − black) / (white − black), or the mosaic's counts (N, 1, H, W); its output is sRGB (N, 3, H, W), clamped to 0…1 when it
    is judged.
    """

    name = "isp"
    metric = "psnr"

    def __init__(
        self,
        data: IspData,
        *,
        text: str,
        form: Form = "packed",
        gains: tuple[float, float, float] = GAINS,
        demosaic: str = "menon",
        max_train: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.data = text
        self.options = dict(options or {})
        self.sensor: Sensor = data.sensor
        self.notes = data.notes
        self.form: Form = form
        self.contract: Contract = isp_contract(form, data.sensor)
        self._gains, self._demosaic = gains, demosaic
        self._pool = data.pool
        self._cache: OrderedDict[bytes, np.ndarray] = OrderedDict()
        parts = dict(data.parts)
        if max_train is not None and max_train < len(parts["train"]):
            parts["train"] = parts["train"].take(np.arange(max_train))
        self.paired = parts["test"].pictures([0]) is not None
        self._samples = {split: IspSamples(patches, self._rendered) for split, patches in parts.items()}
        self.data_id = digest_of(["isp", data.content, max_train, list(gains), demosaic])

    def normalised_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> IspTask:
        """The same task for a network whose input is normalised further."""
        spec = self.contract.inputs[0].model_copy(update={"mean": tuple(mean), "std": tuple(std)})
        return self._with(self.contract.model_copy(update={"inputs": (spec,)}))

    def fitted(self, contract: Contract) -> IspTask:
        """The same data in the form that a network of this contract takes. Raises UserError where there is no such form."""
        spec = contract.inputs[0].as_layout("NCHW")
        forms = [form for form, channels in FORMS.items() if spec.layout == "NCHW" and spec.shape[1] == channels]
        if not forms or contract.outputs[0].as_layout("NCHW").shape[1:2] != (3,):
            raise UserError(
                f"the network takes {' × '.join(map(str, spec.shape))}, which is no form of a RAW mosaic",
                hint="4 channels (packed), 3 (planes) or 1 (counts) go in, and a picture of 3 comes out",
            )
        twin = self._with(contract)
        twin.form = forms[0]
        return twin

    def _with(self, contract: Contract) -> IspTask:
        twin = copy(self)
        twin.contract = contract
        return twin

    def samples(self, split: Split) -> IspSamples:
        """The patches of a split, in a fixed shuffled order."""
        return self._samples[split]

    def inputs(self, batch: RawBatch, *, augment: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """The network's input on the batch's device, in the contract's form and type; `augment` alone changes nothing here."""
        import torch

        spec = self.contract.inputs[0]
        counts = batch.pixels[:, 0]
        if takes_counts(spec):
            return in_form(counts.to(getattr(torch, spec.dtype)), self.sensor.pattern, self.form)
        x = in_form(self._normalised(counts), self.sensor.pattern, self.form)
        if not spec.mean:
            return x
        mean, std = (torch.tensor(v, device=x.device).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
        return (x - mean) / std

    def training_pair(self, batch: RawBatch, *, augment: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets; with `augment` a fair coin mirrors square patches along the diagonal that keeps the mosaic's phase.

        A mirror image from left to right would exchange the colours' places in the cell, which no sensor of this phase does.
        """
        import torch

        square = batch.pixels.shape[-1] == batch.pixels.shape[-2]
        if augment and square and bool(torch.rand((), generator=generator) < 0.5):
            pixels, targets = (self._mirrored(t) for t in (batch.pixels, batch.targets))
            batch = RawBatch(pixels, targets, batch.index)
        return self.inputs(batch), batch.targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean absolute difference of pictures (N, 3, H, W)."""
        from torch.nn import functional as F

        return F.l1_loss(outputs, targets)

    def references(self, batch: RawBatch) -> Tensor:
        """float32 (N, 3, H, W): the fixed rendering of every mosaic, each stretched by its own extremes, on the batch's device."""
        import torch

        return torch.from_numpy(self._rendered(batch.pixels[:, 0].cpu().numpy())).to(batch.pixels.device)

    def unpaired(self, count: int, generator: torch.Generator) -> Tensor:
        """float32 (count, 3, H, W) in 0…1: finished pictures of other scenes, drawn with replacement."""
        import torch

        drawn = torch.randint(len(self._pool), (count,), generator=generator)
        return torch.from_numpy(self._pool.read(drawn.numpy()).astype(np.float32) / 255)

    def evaluate(
        self, predict: Callable[[Tensor], Tensor], split: Split = "test", *, limit: int | None = None, batch_size: int = 32
    ) -> dict[str, float]:
        """ "psnr" (dB), "ssim", "delta_e" (CIEDE2000) and "loss" of developed patches clamped to 0…1, means over patches.

        Against the finished pictures, or the fixed rendering where there are no pairs. Raises UserError for outputs of another shape or
        that are not finite.
        """
        import torch
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim

        from .colour_difference import delta_e

        found: dict[str, list[float]] = {"psnr": [], "ssim": [], "delta_e": [], "loss": []}
        for batch in batches(self.samples(split), limit=limit, batch_size=batch_size):
            with torch.no_grad():
                made = predict(self.inputs(batch)).detach().float().cpu()
            if made.shape != batch.targets.shape:
                raise UserError(
                    f"the network's output has shape {tuple(made.shape)}, the pictures {tuple(batch.targets.shape)}",
                    hint="take an ISP network: efficient_isp, robust_isp, rmfa_tiny",
                )
            if not bool(made.isfinite().all()):
                raise UserError(
                    "a developed patch holds NaN or infinity", hint="the network has diverged: train it again with a lower lr"
                )
            seen, true = made.clamp(0, 1), batch.targets
            errors = (seen.double() - true.double()).square().flatten(1).mean(1)
            found["psnr"] += (-10 * errors.clamp_min(1e-10).log10()).tolist()
            found["ssim"] += ssim(seen, true, data_range=1.0, reduction="none").reshape(-1).tolist()  # type: ignore[union-attr]
            found["delta_e"] += delta_e(seen.numpy(), true.numpy()).tolist()
            found["loss"] += (made - true).abs().flatten(1).mean(1).tolist()
        return {name: float(np.mean(values)) for name, values in found.items()}

    def _normalised(self, counts: Tensor) -> Tensor:
        """float32 (N, H, W): (count − black) / (white − black), not clipped."""
        import torch

        height, width = counts.shape[-2:]
        black = torch.tensor(self.sensor.black, device=counts.device).view(2, 2).repeat(height // 2, width // 2)
        return (counts.float() - black) / (self.sensor.white - black)

    def _mirrored(self, values: Tensor) -> Tensor:
        turned = values.transpose(-1, -2)
        return turned if self.sensor.pattern in TRANSPOSED else turned.flip((-1, -2))

    def _rendered(self, counts: np.ndarray) -> np.ndarray:
        """float32 (n, 3, H, W) of counts (n, H, W)."""
        return np.stack([self._one(mosaic) for mosaic in counts])

    def _one(self, mosaic: np.ndarray) -> np.ndarray:
        key = hashlib.blake2b(np.ascontiguousarray(mosaic, np.uint16).data, digest_size=16).digest()
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        frame = RawFrame(mosaic.astype(np.uint16), self.sensor.pattern, self.sensor.black, self.sensor.white)
        picture = render(frame.normalised(), frame.pattern, gains=self._gains, demosaic=self._demosaic)
        self._cache[key] = picture
        while len(self._cache) * picture.nbytes > CACHE_BYTES:
            self._cache.popitem(last=False)
        return picture


def isp_contract(form: Form, sensor: Sensor, *, dtype: DType = "float32") -> Contract:
    """The contract of a network from RAW to RGB: "raw" (N, C, h, w) → "rgb" (N, 3, H, W), of any size.

    The mosaic's values are sensor counts of `dtype`, 0…white; the other forms are normalised.
    """
    top = sensor.white if form == "mosaic" else 1.0
    size = ("h", "w") if form == "packed" else ("H", "W")
    raw = TensorSpec(name="raw", shape=("N", FORMS[form], *size), layout="NCHW", dtype=dtype, value_range=(0.0, top))
    rgb = TensorSpec(name="rgb", shape=("N", 3, "H", "W"), layout="NCHW", value_range=(0.0, 1.0))
    return Contract(inputs=(raw,), outputs=(rgb,))


@tasks.register("isp", TaskCard("RAW to RGB", "photos:DIR, raws:DIR, zurich:DIR or fujifilm:DIR"))
def isp(
    *,
    data: str,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    form: Form = "packed",
    pattern: str | None = None,
    black: float | tuple[float, ...] | None = None,
    white: float | None = None,
    gains: tuple[float, float, float] = GAINS,
    demosaic: str = "menon",
    noise: bool = True,
    patches: int = 48,
    val_fraction: float = 0.12,
    test_fraction: float = 0.2,
    max_train: int | None = None,
    skip_bad: bool = False,
) -> IspTask:
    """The ISP task on `data` (see `sources_isp`), in mosaic patches of (H, W) = `size` (128×128, or the files' own for pairs).

    `form` is what goes into the network. `pattern`, `black` and `white` are the sensor's phase and levels, where the data does not say
    or to overrule it; for photographs they are those of the synthetic camera (RGGB, 63, 1023), with `noise` or without. `gains` and
    `demosaic` make the fixed rendering. `patches` is the most that a photograph or frame gives, `max_train` the most in training. The
    fractions are those of photographs, frames or pairs that are held back, drawn by `seed`.

    Raises UserError for unknown or damaged data and for values out of range.
    """
    from .sources_isp import open_isp_data

    options = {name: value for name, value in locals().items() if name in _OPTIONS and value != _OPTIONS[name]}
    if form not in FORMS:
        raise UserError(f"form={form!r} is unknown", hint=did_you_mean(str(form), get_args(Form)))
    if seed < 0:
        raise UserError(f"seed={seed} must be 0 or more", hint="any whole number from 0 up")
    if max_train is not None and max_train < 1:
        raise UserError(f"max_train={max_train} must be 1 or more", hint="how many patches to learn from")
    found = open_isp_data(
        data,
        size=size,
        pattern=pattern,
        black=black,
        white=white,
        seed=seed,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        patches=patches,
        noise=noise,
        skip_bad=skip_bad,
    )
    return IspTask(found, text=data, form=form, gains=gains, demosaic=demosaic, max_train=max_train, options=options)


_OPTIONS = {name: parameter.default for name, parameter in inspect.signature(isp).parameters.items()}
