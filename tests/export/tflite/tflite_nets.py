"""Small torch networks in the shapes that the exporter meets, seeded, with live BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def unit(cin: int, cout: int, k: int = 3, s: int = 1, groups: int = 1, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Conv, BatchNorm, activation."""
    conv = nn.Conv2d(cin, cout, k, s, k // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), act())


class Add(nn.Module):
    """x + f(x)."""

    def __init__(self, *body: nn.Module, short: nn.Module | None = None, last: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.short, self.last = nn.Sequential(*body), short or nn.Identity(), last or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.short(x) + self.body(x))


class Gate(nn.Module):
    """Squeeze and excitation, by 1×1 convolutions or by linear layers."""

    def __init__(self, c: int, linear: bool = False) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(c, c // 4) if linear else nn.Conv2d(c, c // 4, 1)
        self.up = nn.Linear(c // 4, c) if linear else nn.Conv2d(c // 4, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        g = F.adaptive_avg_pool2d(x, 1)
        if self.linear:
            g = torch.sigmoid(self.up(F.relu(self.down(g.flatten(1))))).view(x.shape[0], -1, 1, 1)
        else:
            g = F.hardsigmoid(self.up(F.relu(self.down(g))))
        return x * g


def vgg() -> nn.Module:
    """Convolutions and pools, Flatten of an 4×4 map, three fully connected layers."""
    return nn.Sequential(
        *[unit(3, 8), unit(8, 8), nn.MaxPool2d(2), unit(8, 16), nn.MaxPool2d(2), unit(16, 16), nn.MaxPool2d(2)],
        *[nn.Flatten(), nn.Linear(16 * 16, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 24), nn.ReLU6(), nn.Linear(24, 10)],
    )


def resnet() -> nn.Module:
    """The ImageNet stem (7×7 stride 2, padded max-pool), two residual blocks, one strided."""

    def block(cin: int, cout: int, s: int) -> nn.Module:
        short = None if s == 1 else nn.Sequential(nn.Conv2d(cin, cout, 1, s, bias=False), nn.BatchNorm2d(cout))
        return Add(unit(cin, cout, 3, s), unit(cout, cout, act=nn.Identity), short=short, last=nn.ReLU())

    return nn.Sequential(
        *[unit(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1), block(8, 8, 1), block(8, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
        nn.Linear(16, 10),
    )


def mobilenet_v2() -> nn.Module:
    """Inverted residuals with ReLU6, one strided."""

    def block(cin: int, cout: int, s: int) -> nn.Module:
        wide = cin * 4
        body = [unit(cin, wide, 1, act=nn.ReLU6), unit(wide, wide, 3, s, wide, nn.ReLU6), unit(wide, cout, 1, act=nn.Identity)]
        return Add(*body) if (cin, s) == (cout, 1) else nn.Sequential(*body)

    return nn.Sequential(
        *[
            unit(3, 8, 3, 2, act=nn.ReLU6),
            block(8, 12, 2),
            block(12, 12, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 10),
        ]
    )


def mobilenet_v3() -> nn.Module:
    """Inverted residuals with squeeze-excitation and hard-swish."""

    def block(cin: int, cout: int, s: int) -> nn.Module:
        wide = cin * 4
        body = [unit(cin, wide, 1, act=nn.Hardswish), unit(wide, wide, 5, s, wide, nn.Hardswish), Gate(wide)]
        body.append(unit(wide, cout, 1, act=nn.Identity))
        return Add(*body) if (cin, s) == (cout, 1) else nn.Sequential(*body)

    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 20), nn.Hardswish(), nn.Linear(20, 10)]
    return nn.Sequential(unit(3, 8, 3, 2, act=nn.Hardswish), block(8, 12, 2), block(12, 12, 1), *head)


class Mixed(nn.Module):
    """Grouped convolutions, concatenation, a squeeze-excitation gate of linear layers, a residual sum, SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = unit(3, 16, act=nn.SiLU), unit(16, 16, groups=4, act=nn.SiLU)
        self.b, self.join = unit(16, 8, 1), unit(24, 16, 1, act=nn.Identity)
        self.gate, self.head = Gate(16, linear=True), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.gate(self.join(torch.cat([self.a(x), self.b(x)], 1))))
        return self.head(x.mean((2, 3)))


class Isp(nn.Module):
    """4-channel RAW at half size in, RGB out: convolutions with PReLU, a global skip, PixelShuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.slope = nn.Conv2d(4, 16, 3, padding=1), nn.PReLU(16)
        self.body = Add(nn.Conv2d(16, 16, 3, padding=1), nn.PReLU(16), nn.Conv2d(16, 16, 3, padding=1))
        self.last, self.shuffle = nn.Sequential(nn.Conv2d(16, 12, 3, padding=1), nn.PReLU(12)), nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.shuffle(self.last(self.body(self.slope(self.first(x))))))


class Seg(nn.Module):
    """A pyramid of adaptive pools, upsampled bilinearly and concatenated; class scores at the input's size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(unit(3, 8, s=2), unit(8, 12, s=2))
        self.arms = nn.ModuleList([nn.Sequential(nn.AdaptiveAvgPool2d(n), nn.Conv2d(12, 4, 1)) for n in (1, 2, 4)])
        self.head = nn.Conv2d(24, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        f = self.stem(x)
        pools = [F.interpolate(arm(f), size=f.shape[2:], mode="bilinear", align_corners=False) for arm in self.arms]
        return F.interpolate(self.head(torch.cat([f, *pools], 1)), size=x.shape[2:], mode="bilinear", align_corners=False)


class UNet(nn.Module):
    """Down by max-pooling, up by transposed convolution (2×2 and 4×4) and by nearest neighbours; fully convolutional."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = unit(3, 8), unit(8, 12), unit(12, 16)
        self.up1, self.up2 = nn.ConvTranspose2d(16, 12, 2, 2), nn.ConvTranspose2d(24, 8, 4, 2, 1)
        self.head = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), unit(16, 8), nn.Conv2d(8, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        d = torch.cat([self.up1(c), b], 1)
        return self.head(torch.cat([self.up2(d), a], 1))


class Shuffle(nn.Module):
    """A channel shuffle (view, transpose, view) between grouped and dense convolutions, and PixelUnshuffle in front."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.PixelUnshuffle(2)
        self.a = nn.Sequential(unit(12, 16, 1), unit(16, 16, 1, groups=4))
        self.b, self.c = unit(16, 16, groups=16), unit(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.down(x))
        n, c, h, w = x.shape
        x = x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.c(self.b(x)).mean((2, 3))


class Decoder(nn.Module):
    """A linear layer reshaped into an image, convolutions, sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(20, 8 * 4 * 4), nn.BatchNorm1d(8 * 4 * 4)
        self.body = nn.Sequential(nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(6, 3, 3, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.body(F.relu(self.norm(self.first(x))).view(-1, 8, 4, 4)))


class ConvNext(nn.Module):
    """Depthwise 7×7, channels-last LayerNorm and linear layers between two permutes, GroupNorm in the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.group = nn.Conv2d(3, 16, 4, 4), nn.GroupNorm(4, 16)
        self.depth, self.norm = nn.Conv2d(16, 16, 7, padding=3, groups=16), nn.LayerNorm(16)
        self.wide, self.narrow, self.scale = nn.Linear(16, 48), nn.Linear(48, 16), nn.Parameter(torch.rand(16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group(self.stem(x))
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.narrow(F.gelu(self.wide(y))) * self.scale
        return self.head((x + y.permute(0, 3, 1, 2)).mean((2, 3)))


class Attention(nn.Module):
    """Multi-head self-attention with one qkv projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))


class Vit(nn.Module):
    """Patch embedding by convolution, class token, positions, two transformer blocks."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, width, 8, 8), nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 17, width))
        self.blocks = nn.Sequential(
            *[
                nn.Sequential(
                    Add(nn.LayerNorm(width), Attention(width, 3)),
                    Add(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)),
                )
                for _ in range(2)
            ]
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], bool]] = {
    "vgg": (vgg, (3, 32, 32), False),
    "resnet": (resnet, (3, 64, 64), True),
    "mobilenet_v2": (mobilenet_v2, (3, 32, 32), True),
    "mobilenet_v3": (mobilenet_v3, (3, 32, 32), True),
    "mixed": (Mixed, (3, 16, 16), True),
    "isp": (Isp, (4, 24, 32), True),
    "seg": (Seg, (3, 32, 32), False),
    "unet": (UNet, (3, 32, 32), True),
    "shuffle": (Shuffle, (3, 16, 16), False),
    "decoder": (Decoder, (20,), False),
    "convnext": (ConvNext, (3, 32, 32), True),
    "vit": (Vit, (3, 32, 32), False),
}
"""Name → factory, input shape without the batch, whether height and width are free."""


def build(name: str) -> nn.Module:
    """A seeded network in eval mode whose BatchNorms have seen data."""
    torch.manual_seed(3)
    factory, shape, _ = NETS[name]
    module = factory().train()
    with torch.no_grad():
        for _ in range(3):
            module(torch.rand(8, *shape))
    return module.eval()
