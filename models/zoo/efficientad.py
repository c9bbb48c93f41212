"""EfficientAD: a student that fails to imitate its teacher where a picture is odd, and an autoencoder for what is in the wrong place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..architectures import ArchitectureCard, architectures
from ..outputs import AnomalyOutput
from ..patches import sides
from .layers import scaled
from .pdn import BORDER, CHANNELS, SOURCE, ImagenetNorm, Pdn, build_medium, build_small, check, map_side

RECIPE = ({"kind": "pdn-teacher"}, {"kind": "efficientad"})
KERNEL = 8
"""Places a side at which the encoder stops halving and takes in the whole map at once."""
DROPOUT = 0.2


class PatchAutoencoder(nn.Module):
    """The picture pressed through one vector: normalised pixels (N, 3, H, W) → the teacher's features (N, C, h, w).

    Published for 256×256: five halving convolutions (256 → 8) and one of 8×8 into a vector; six times a bilinear enlargement (3, 8, 15,
    32, 63, 127), a convolution and dropout; an enlargement to the PDN's map and two convolutions. Other sizes halve until fewer than
    16 places are left, and enlarge once more often than they halved, by the same fractions of the side.
    """

    def __init__(self, size: tuple[int, int], *, out_channels: int, width: float) -> None:
        super().__init__()
        narrow, wide = scaled(32, width), scaled(64, width)
        left, halvings = size, 0
        while min(left) >= 2 * KERNEL:
            left, halvings = (left[0] // 2, left[1] // 2), halvings + 1
        widths = [3, *([narrow, narrow, *([wide] * halvings)][:halvings])]
        layers: list[nn.Module] = []
        for i in range(halvings):
            layers += [nn.Conv2d(widths[i], widths[i + 1], 4, 2, 1), nn.ReLU()]
        self.encoder = nn.Sequential(*layers, nn.Conv2d(widths[-1], wide, left))
        self.sizes = [tuple(max(1, enlarged(side, halvings, step)) for side in size) for step in range(halvings + 1)]
        self.decoder = nn.ModuleList(
            nn.Sequential(nn.Conv2d(wide, wide, 4, 1, 2), nn.ReLU(), nn.Dropout(DROPOUT)) for _ in self.sizes
        )
        self.map_size = (map_side(size[0]), map_side(size[1]))
        self.head = nn.Sequential(nn.Conv2d(wide, wide, 3, 1, 1), nn.ReLU(), nn.Conv2d(wide, out_channels, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.encoder(x)
        for size, block in zip(self.sizes, self.decoder, strict=True):
            x = block(F.interpolate(x, size, mode="bilinear", align_corners=False))
        return self.head(F.interpolate(x, self.map_size, mode="bilinear", align_corners=False))


def enlarged(side: int, halvings: int, step: int) -> int:
    """The decoder's size before convolution `step` (from 0): 3, 8, 15, 32, 63, 127 of 256, and the same fractions of other sides."""
    return side // 2 ** (halvings + 1 - step) - (0 if step in (1, 3) else 1)


class EfficientAd(nn.Module):
    """Pixels (N, 3, H, W) in 0…1 → `AnomalyOutput`: a map (N, 1, H, W), higher where something is odd, and its maximum (N, 1).

    M_ST is the mean over channels of (teacher − student)², M_AE of (autoencoder − the student's other half)². Each is scaled so that
    the two values of `q_st` (`q_ae`) become 0 and 0.1, and the map is their mean; both are (0, 1) until the network was fitted.
    Without `autoencoder` the student has one half and the map is M_ST's alone.

    The PDN describes no patch that reaches over the edge, so the map lacks 4 places on each side. The published code fills them with 0
    after the scaling, which lies at a normal picture's 90 % quantile. Here the unscaled difference is filled with 0, "no difference": the
    border is the least odd place of any map and never makes the score. Then the map is enlarged, bilinear, to the image.

    Source: Batzner, Heckler, König: EfficientAD, WACV 2024, sections 3.1 to 3.4.
    """

    teacher_mean: Tensor
    teacher_std: Tensor
    q_st: Tensor
    q_ae: Tensor

    def __init__(
        self,
        build: Callable[..., Pdn],
        *,
        image_size: int | list[int] | tuple[int, ...],
        width: float,
        out_channels: int,
        autoencoder: bool,
    ) -> None:
        super().__init__()
        check(width=width, out_channels=out_channels)
        self.build, self.width, self.size = build, width, sides(image_size)
        self.map_size = (map_side(self.size[0]), map_side(self.size[1]))
        self.norm = ImagenetNorm()
        self.teacher = build(out_channels=out_channels, width=width).requires_grad_(False)
        self.student = build(out_channels=2 * out_channels if autoencoder else out_channels, width=width)
        self.autoencoder = PatchAutoencoder(self.size, out_channels=out_channels, width=width) if autoencoder else None
        self.register_buffer("teacher_mean", torch.zeros(1, out_channels, 1, 1))
        self.register_buffer("teacher_std", torch.ones(1, out_channels, 1, 1))
        self.register_buffer("q_st", torch.tensor([0.0, 1.0]))
        self.register_buffer("q_ae", torch.tensor([0.0, 1.0]))

    @property
    def out_channels(self) -> int:
        """The teacher's features per patch."""
        return self.teacher.out_channels

    def describe(self, x: Tensor) -> Tensor:
        """(N, C, h, w): the teacher's features of normalised pixels, standardised per channel."""
        return (self.teacher.features(x) - self.teacher_mean) / self.teacher_std

    def raw_maps(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """(M_ST, M_AE), each (N, 1, h, w) without border or scaling; M_AE is None without the autoencoder."""
        x = self.norm(image)
        wanted, guessed, channels = self.describe(x), self.student.features(x), self.out_channels
        local = (wanted - guessed[:, :channels]).square().mean(1, keepdim=True)
        if self.autoencoder is None:
            return local, None
        return local, (self.autoencoder(x) - guessed[:, channels:]).square().mean(1, keepdim=True)

    def forward(self, image: Tensor) -> AnomalyOutput:
        """See the class."""
        local, whole = self.raw_maps(image)
        found = rescaled(F.pad(local, (BORDER,) * 4), self.q_st)
        if whole is not None:
            found = 0.5 * found + 0.5 * rescaled(F.pad(whole, (BORDER,) * 4), self.q_ae)
        found = F.interpolate(found, self.size, mode="bilinear", align_corners=False)
        return AnomalyOutput(found, found.amax(dim=(2, 3)))

    def without_autoencoder(self) -> EfficientAd:
        """The same network with neither autoencoder nor the student's other half, sharing no weight; as `autoencoder=False` builds it."""
        small = EfficientAd(
            self.build, image_size=self.size, width=self.width, out_channels=self.out_channels, autoencoder=False
        )
        kept = small.state_dict()
        for name, value in self.state_dict().items():
            if name in kept:
                kept[name] = value[tuple(slice(side) for side in kept[name].shape)].clone()
        small.load_state_dict(kept)
        return small


def rescaled(found: Tensor, quantiles: Tensor) -> Tensor:
    """The map with `quantiles[0]` moved to 0 and `quantiles[1]` to 0.1. Source: EfficientAD, section 3.4."""
    return 0.1 * (found - quantiles[0]) / (quantiles[1] - quantiles[0])


def _card(title: str) -> ArchitectureCard:
    return ArchitectureCard(title, SOURCE, (3, 256, 256), task="anomaly", recipe=RECIPE)


@architectures.register(
    "efficientad_s", _card("EfficientAD-S: anomaly maps, 8.06 M parameters with teacher, student and autoencoder")
)
def efficientad_s(
    *,
    image_size: int | list[int] | tuple[int, ...] = 256,
    width: float = 1.0,
    out_channels: int = CHANNELS,
    autoencoder: bool = True,
) -> EfficientAd:
    """EfficientAD on PDN-S; `width` multiplies the hidden channels of all three networks, `image_size` is (H, W) or one side."""
    return EfficientAd(build_small, image_size=image_size, width=width, out_channels=out_channels, autoencoder=autoencoder)


@architectures.register(
    "efficientad_m", _card("EfficientAD-M: anomaly maps, 20.74 M parameters with teacher, student and autoencoder")
)
def efficientad_m(
    *,
    image_size: int | list[int] | tuple[int, ...] = 256,
    width: float = 1.0,
    out_channels: int = CHANNELS,
    autoencoder: bool = True,
) -> EfficientAd:
    """EfficientAD on PDN-M; `width` multiplies the hidden channels of all three networks, `image_size` is (H, W) or one side."""
    return EfficientAd(build_medium, image_size=image_size, width=width, out_channels=out_channels, autoencoder=autoencoder)
