"""Tiles without seams: the reach is measured right, windows cover the picture, and tiled is whole."""

import numpy as np
import pytest
import torch
from isp_kit import contract_of, frame_of, isp_bundle
from torch import nn
from torch.nn import functional as F

from trimtab.develop import answers, develop
from trimtab.develop_network import bundle_isp
from trimtab.develop_passes import Kept, gathered_pools, typical_pools
from trimtab.develop_tiles import Reach, Window, measured_reach, tiles, windows
from trimtab.models.errors import UserError

EXACT = 1e-5
"""What the product promises; float32 sums in another order differ by about 1e-7 here."""


def reach_of(module, *, channels=3, scale=1, fixed=None):
    def call(values):
        with torch.inference_mode():
            return module(torch.from_numpy(values)).numpy()

    return measured_reach(call, lambda numbers: numbers, channels=channels, scale=scale, fixed=fixed)


def stack(depth, *, kernel=3, stride=1, channels=3):
    torch.manual_seed(depth)
    pad = kernel // 2
    convs = [nn.Conv2d(channels, channels, kernel, padding=pad) for _ in range(depth)]
    layers = [layer for conv in convs for layer in (conv, nn.ReLU())][:-1]
    if stride > 1:
        layers = [nn.AvgPool2d(stride), *layers, nn.Upsample(scale_factor=stride, mode="nearest")]
    return nn.Sequential(*layers)


class Global(nn.Module):
    """A convolution whose answer is weighed, ever so little, by the mean of the whole picture."""

    def __init__(self, weight):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.weight = nn.Conv2d(3, 3, 3, padding=1), weight

    def forward(self, x):
        return self.conv(x) * (1 + self.weight * x.mean((2, 3), keepdim=True))


# ---------------------------------------------------------------- reach


@pytest.mark.parametrize("fixed", [None, (48, 80)])
@pytest.mark.parametrize(("depth", "kernel", "margin"), [(1, 1, 0), (1, 3, 1), (3, 3, 3), (2, 7, 6)])
def test_the_reach_of_convolutions_is_the_sum_of_their_half_widths(depth, kernel, margin, fixed):
    assert reach_of(stack(depth, kernel=kernel), fixed=fixed) == Reach(margin, 1)


def test_a_network_that_pools_moves_in_its_own_steps():
    found = reach_of(stack(1, stride=4))
    assert found.stride == 4
    assert found.margin == 4  # one pooled pixel to either side, each four wide


def test_a_reach_beyond_the_first_probe_is_found_in_a_larger_one():
    assert reach_of(stack(1, kernel=41)) == Reach(20, 1)


@pytest.mark.parametrize("weight", [1.0, 1e-3])
def test_a_network_that_looks_at_the_whole_picture_is_known_as_such(weight):
    assert reach_of(Global(weight)).margin is None


@pytest.mark.parametrize(("name", "channels", "margin"), [("efficient_isp", 4, 3), ("robust_isp", 4, 3)])
def test_the_stock_networks_see_three_cells_far(tmp_path, name, channels, margin):
    network = bundle_isp(isp_bundle(tmp_path / "b", name))
    assert network.spec.shape[1] == channels
    assert network.reach == Reach(margin, 1)


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize(
    ("length", "size", "margin", "unit"), [(300, 64, 6, 2), (301, 64, 6, 2), (1000, 130, 13, 8), (65, 64, 0, 2)]
)
def test_windows_cover_every_pixel_once_and_keep_their_margins(length, size, margin, unit):
    found = windows(length, size, margin=margin, unit=unit)
    kept = [pixel for w in found for pixel in range(w.first, w.last)]
    assert kept == list(range(length))
    for w in found:
        assert w.start % unit == 0
        assert w.stop - w.start < size + unit
        assert w.first - w.start >= margin or w.start == 0
        assert w.stop - w.last >= margin or w.stop == length


def test_a_picture_that_fits_is_one_window():
    assert windows(64, 64, margin=6, unit=2) == [Window(0, 64, 0, 64)]
    assert windows(40, 64, margin=6, unit=2) == [Window(0, 40, 0, 40)]


def test_windows_of_exactly_one_size_all_have_it():
    found = windows(300, 64, margin=6, unit=2, exact=True)
    assert {w.stop - w.start for w in found} == {64}
    assert found[-1].stop == 300


@pytest.mark.parametrize(
    ("length", "size", "unit", "words"),
    [(300, 12, 2, "a tile of 12 pixels is too small"), (40, 64, 2, "a side of 40 pixels, the network takes 64 and no less"),
     (302, 64, 8, "a side of 302 pixels can't be covered by windows of 64 that begin at multiples of 8")],
)  # fmt: skip
def test_what_no_window_can_do_is_said(length, size, unit, words):
    with pytest.raises(UserError, match=words):
        windows(length, size, margin=6, unit=unit, exact=size == 64)


# ---------------------------------------------------------------- tiled = whole


def whole_and_tiled(network, frame, tile):
    found = []
    for how in ({"whole": True}, {"tile": tile}):
        out = np.full((3, *frame.size), np.nan, np.float32)
        for rows, columns, answer in answers(frame, network, **how):
            assert np.isnan(out[:, rows, columns]).all()  # nothing is done twice
            out[:, rows, columns] = answer
        found.append(out)
    assert not np.isnan(found[1]).any()
    return found


@pytest.mark.parametrize("tile", [64, 70, 128])
@pytest.mark.parametrize("name", ["efficient_isp", "robust_isp"])
def test_tiled_is_whole(tmp_path, name, tile):
    network = bundle_isp(isp_bundle(tmp_path / "b", name, gain=1.5))
    whole, tiled = whole_and_tiled(network, frame_of(214, 334), tile)
    assert np.abs(whole - tiled).max() <= EXACT
    assert whole.std() > 100 * EXACT  # there is something to see


def test_without_the_measured_overlap_seams_would_show(tmp_path):
    network = bundle_isp(isp_bundle(tmp_path / "b", gain=1.5))
    frame = frame_of(214, 334)
    whole, _ = whole_and_tiled(network, frame, 64)
    inputs = network.inputs(frame)

    def run(rows, columns):
        return network.call(
            np.ascontiguousarray(inputs[:, :, rows.start // 2 : rows.stop // 2, columns.start // 2 : columns.stop // 2])
        )[0]

    for margin, same in ((4, False), (6, True)):
        spans = [windows(length, 64, margin=margin, unit=2) for length in frame.size]
        worst = max(np.abs(whole[:, r, c] - answer).max() for r, c, answer in tiles(*spans, run))
        assert (worst <= EXACT) == same


@pytest.mark.parametrize("tile", [96, 106])
def test_a_network_with_attention_over_the_whole_picture_is_developed_in_passes(tmp_path, tile):
    network = bundle_isp(isp_bundle(tmp_path / "b", "rmfa_tiny", gain=2.0))
    assert network.reach.margin is None
    frame = frame_of(152, 212)
    whole, tiled = whole_and_tiled(network, frame, tile)
    assert np.abs(whole - tiled).max() <= EXACT
    alone = network.call(network.inputs(frame_of(152, 212))[:, :, :96, :96])[0]
    assert np.abs(alone[:, :40, :40] - whole[:, :40, :40]).max() > 10 * EXACT  # a tile's own attention is another


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_packing_inside_gives_the_same_in_tiles(tmp_path, dtype):
    levels = {"pattern": "GRBG", "black": 25.0, "white": 1023.0}
    inside = bundle_isp(isp_bundle(tmp_path / "in", packing="inside", dtype=dtype, **levels))
    outside = bundle_isp(isp_bundle(tmp_path / "out"))
    frame = frame_of(130, 178)
    assert inside.reach.stride == 2
    whole, tiled = whole_and_tiled(inside, frame, 64)
    assert np.abs(whole - tiled).max() <= EXACT
    assert np.abs(whole - whole_and_tiled(outside, frame, 64)[0]).max() <= EXACT


@pytest.mark.parametrize("pattern", ["RGGB", "GRBG", "GBRG", "BGGR"])
def test_every_phase_goes_in_as_its_packed_form(tmp_path, pattern):
    network = bundle_isp(isp_bundle(tmp_path / "b"))
    frame = frame_of(60, 64, pattern=pattern)
    at = {"B": pattern.index("B"), "R": pattern.index("R")}
    packed = network.inputs(frame)[0]
    for channel, colour in ((0, "B"), (2, "R")):
        row, column = divmod(at[colour], 2)
        expected = (frame.mosaic[row::2, column::2] - 25.0) / (1023 - 25)
        np.testing.assert_allclose(packed[channel], expected, atol=1e-6)  # float32's rounding


# ---------------------------------------------------------------- passes


def test_pools_gathered_over_tiles_are_those_of_the_picture():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 3, 3, padding=1)

        def forward(self, x):
            x = torch.relu(self.first(x))
            x = x * torch.sigmoid(x.mean((2, 3), keepdim=True) - x.amax((2, 3), keepdim=True))
            x = self.second(x)
            return x * F.adaptive_avg_pool2d(x, 1)

    net = Net().eval()
    picture = np.random.default_rng(0).uniform(0, 1, (1, 3, 50, 70)).astype(np.float32)
    picture[..., :20] *= 0.1
    spans = windows(50, 24, margin=2, unit=2), windows(70, 24, margin=2, unit=2)

    def parts():
        for row in spans[0]:
            for column in spans[1]:
                kept = ((w.first - w.start, w.last - w.start) for w in (row, column))
                size = (row.stop - row.start, column.stop - column.start)
                yield slice(row.start, row.stop), slice(column.start, column.stop), Kept(*kept, size=size)

    whole = typical_pools(net, picture)
    found = gathered_pools(net, len(whole), parts, lambda r, c: picture[:, :, r, c])
    assert [tuple(v.shape) for v in found] == [(1, 5, 1, 1), (1, 5, 1, 1), (1, 3, 1, 1)]
    for a, b in zip(found, whole, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)  # sums in another order
    first = torch.relu(net.first(torch.from_numpy(picture))).detach().numpy()
    np.testing.assert_allclose(found[0].numpy().ravel(), first.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found[1].numpy().ravel(), first.max((0, 2, 3)), rtol=1e-6)


# ---------------------------------------------------------------- develop


def test_the_picture_is_the_rounded_answer_clamped(tmp_path):
    network = bundle_isp(isp_bundle(tmp_path / "b", gain=4.0))
    frame = frame_of(90, 110)
    answer = network.call(network.inputs(frame))[0]
    assert answer.max() > 1  # so that clamping shows
    for bits, top, kind in ((8, 255, np.uint8), (16, 65535, np.uint16)):
        picture = develop(frame, network, tile=48, bits=bits)
        expected = np.rint(np.clip(answer, 0, 1).transpose(1, 2, 0) * top)
        assert picture.dtype == kind
        # sums in another order, 1e-7 of 1, may move a number across a rounding edge, or by as many steps as 16 bits have in 1e-5
        assert np.abs(picture - expected).max() <= 1


def test_nan_is_named_with_its_place(tmp_path):
    bundle = isp_bundle(tmp_path / "b")
    network = bundle_isp(bundle)
    assert network.reach.margin == 3
    with torch.no_grad():
        network.module.conv1.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="gives NaN in the tile at row 0, column 0"):
        develop(frame_of(90, 110), network, tile=48)


def test_other_levels_than_the_networks_own_are_refused_naming_both(tmp_path):
    inside = bundle_isp(isp_bundle(tmp_path / "in", packing="inside", pattern="RGGB", black=63.0, white=1023.0, dtype="uint16"))
    with pytest.raises(UserError, match=r"was made for RGGB, black 63, white 1023; .* has GRBG, black 25, white 1023"):
        develop(frame_of(64, 64), inside)
    assert develop(frame_of(64, 64, pattern="RGGB", black=63.0), inside).shape == (64, 64, 3)


def test_a_network_that_is_no_isp_is_refused(tmp_path):
    bundle = isp_bundle(tmp_path / "b", contract=contract_of(5))
    with pytest.raises(UserError, match="no network from RAW to RGB"):
        bundle_isp(bundle)
