"""The Core ML evaluator's kernels against torch's functional API, NumPy, and coremltools' own value inference."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trimtab.models.errors import UserError

ct = pytest.importorskip("coremltools", reason="the Core ML evaluator needs coremltools (pip install 'trimtab[coreml]')")

from coremltools.converters.mil.mil import Builder, Function  # noqa: E402

from trimtab.export import coreml_eval  # noqa: E402, F401  (its import files the kernels)
from trimtab.export.coreml_ops import KERNELS, Args  # noqa: E402

torch.set_num_threads(1)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
"""float32 sums of at most a few hundred terms of size 1: 1e-5 is a hundred units in the last place."""


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def run(kind, **inputs):
    """One kernel's result; lists and numbers become tensors as the program's constants do."""
    values = {name: value if isinstance(value, (torch.Tensor, str)) else _const(value) for name, value in inputs.items()}
    return KERNELS[kind](Args(values))


def _const(value):
    return list(value) if isinstance(value, list) and isinstance(value[0], torch.Tensor) else torch.tensor(value)


def same(got, wanted):
    torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(wanted), **TOLERANCE, check_dtype=False)


@pytest.mark.parametrize(
    ("stride", "dilation", "groups", "pad"),
    [(1, 1, 1, (0, 0)), (2, 1, 2, (1, 1)), (1, 2, 4, (2, 3)), ((2, 1), (1, 3), 1, (0, 2))],
)
def test_conv_with_custom_padding(stride, dilation, groups, pad):
    x, weight, bias = noise(2, 4, 11, 13), noise(8, 4 // groups, 3, 2, seed=1), noise(8, seed=2)
    pair = [list(v) if isinstance(v, tuple) else [v, v] for v in (stride, dilation)]
    sides = [pad[0], pad[0], pad[1], pad[1]]
    options = {"strides": pair[0], "dilations": pair[1], "groups": groups, "pad_type": "custom", "pad": sides}
    wanted = F.conv2d(x, weight, bias, stride=stride, dilation=dilation, groups=groups, padding=pad)
    same(run("conv", x=x, weight=weight, bias=bias, **options), wanted)


def test_conv_with_uneven_padding_and_other_ranks():
    x, weight = noise(2, 3, 9, 8), noise(4, 3, 3, 3, seed=1)
    wanted = F.conv2d(F.pad(x, (2, 0, 0, 1)), weight)  # F.pad: left, right, top, bottom
    same(run("conv", x=x, weight=weight, pad_type="custom", pad=[0, 1, 2, 0]), wanted)
    same(run("conv", x=x[:, :, 0], weight=weight[..., 0], pad_type="valid"), F.conv1d(x[:, :, 0], weight[..., 0]))
    volume, cube = noise(1, 2, 5, 6, 7), noise(3, 2, 2, 3, 1, seed=1)
    same(run("conv", x=volume, weight=cube, strides=[1, 2, 1]), F.conv3d(volume, cube, stride=(1, 2, 1)))


@pytest.mark.parametrize("kind", ["same", "same_lower"])
@pytest.mark.parametrize(("size", "stride", "k"), [(7, 2, 3), (8, 2, 3), (9, 3, 2), (6, 1, 4)])
def test_same_padding_by_its_definition(kind, size, stride, k):
    x, weight = noise(1, 1, size), noise(1, 1, k, seed=1)
    out = math.ceil(size / stride)
    total = max((out - 1) * stride + k - size, 0)
    before = total // 2 if kind == "same" else math.ceil(total / 2)
    padded = np.pad(x.numpy()[0, 0], (before, total - before))
    wanted = [float(padded[i * stride : i * stride + k] @ weight.numpy()[0, 0]) for i in range(out)]
    same(run("conv", x=x, weight=weight, strides=[stride], pad_type=kind)[0, 0], wanted)


@pytest.mark.parametrize(("stride", "pad", "extra", "groups"), [(1, 0, 0, 1), (2, 1, 0, 1), (2, 1, 1, 2), (3, 0, 2, 4)])
def test_conv_transpose(stride, pad, extra, groups):
    x, weight, bias = noise(2, 4, 5, 6), noise(4, 8 // groups, 3, 3, seed=1), noise(8, seed=2)
    wanted = F.conv_transpose2d(x, weight, bias, stride=stride, padding=pad, output_padding=extra, groups=groups)
    options = {"strides": [stride, stride], "groups": groups, "pad_type": "custom", "pad": [pad, pad, pad, pad]}
    if extra:
        options["output_shape"] = list(wanted.shape)
    same(run("conv_transpose", x=x, weight=weight, bias=bias, **options), wanted)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(
    ("size", "k", "stride", "pad"), [((7, 9), 3, 2, 1), ((8, 8), 2, 2, 0), ((5, 6), 3, 3, 1), ((10, 7), 4, 3, 2)]
)
def test_pools(size, k, stride, pad, ceil):
    x = noise(2, 3, *size)
    options = {"kernel_sizes": [k, k], "strides": [stride, stride], "pad_type": "custom", "pad": [pad] * 4, "ceil_mode": ceil}
    same(run("max_pool", x=x, **options), F.max_pool2d(x, k, stride, pad, ceil_mode=ceil))
    for exclude in (False, True):
        wanted = F.avg_pool2d(x, k, stride, pad, ceil_mode=ceil, count_include_pad=not exclude)
        same(run("avg_pool", x=x, exclude_padding_from_average=exclude, **options), wanted)
    if not ceil:
        same(run("l2_pool", x=x, **options), F.lp_pool2d(F.pad(x, [pad] * 4), 2.0, k, stride))


def test_norms():
    x, gamma, beta = noise(2, 4, 5, 6), noise(4, seed=1), noise(4, seed=2)
    mean, variance = noise(4, seed=3), noise(4, seed=4).square() + 0.1
    wanted = F.batch_norm(x, mean, variance, gamma, beta, eps=1e-3)
    same(run("batch_norm", x=x, mean=mean, variance=variance, gamma=gamma, beta=beta, epsilon=1e-3), wanted)
    same(run("instance_norm", x=x, gamma=gamma, beta=beta, epsilon=1e-3), F.instance_norm(x, None, None, gamma, beta, eps=1e-3))
    weight, bias = noise(5, 6, seed=5), noise(5, 6, seed=6)
    wanted = F.layer_norm(x, (5, 6), weight, bias, eps=1e-4)
    same(run("layer_norm", x=x, axes=[-1, 2], gamma=weight, beta=bias, epsilon=1e-4), wanted)
    channels_first = F.layer_norm(x.permute(0, 2, 3, 1), (4,), gamma, beta).permute(0, 3, 1, 2)
    same(run("layer_norm", x=x, axes=[1], gamma=gamma, beta=beta, epsilon=1e-5), channels_first)
    same(run("local_response_norm", x=x, size=3, alpha=1e-2, beta=0.5, k=2.0), F.local_response_norm(x, 3, 1e-2, 0.5, 2.0))
    norms = [math.sqrt((sample.numpy().astype(np.float64) ** 2).sum()) for sample in x]
    same(run("l2_norm", x=x, epsilon=1e-12), x / torch.tensor(norms).reshape(-1, 1, 1, 1))


@pytest.mark.parametrize("size", [(4, 6), (9, 7), (13, 5), (3, 1)])
def test_resizing_against_torch(size):
    x = noise(2, 3, 6, 5)
    target = {"target_size_height": size[0], "target_size_width": size[1]}
    half = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    corners = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
    same(run("resize_bilinear", x=x, sampling_mode="UNALIGN_CORNERS", **target), half)
    same(run("resize_bilinear", x=x, sampling_mode="STRICT_ALIGN_CORNERS", **target), corners)
    same(run("resize", x=x, shape=[1, *size], resized_dims=2, sampling_mode="UNALIGN_CORNERS"), half)
    same(run("resize_nearest_neighbor", x=x, **target), F.interpolate(x, size=size, mode="nearest"))


@pytest.mark.parametrize("scale", [2, 3, 1.5])
def test_upsampling_against_torch(scale):
    x = noise(1, 2, 5, 7)
    factors = {"scale_factor_height": scale, "scale_factor_width": scale}
    same(
        run("upsample_nearest_neighbor", x=x, **factors),
        F.interpolate(x, scale_factor=scale, mode="nearest", recompute_scale_factor=True),
    )
    for corners in (False, True):
        wanted = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=corners, recompute_scale_factor=True)
        same(run("upsample_bilinear", x=x, align_corners=corners, half_pixel_centers=not corners, **factors), wanted)


@pytest.mark.parametrize(
    ("mode", "out", "points"),
    [  # the grid points that MIL's resize_bilinear page lists for a side of 2
        ("UNALIGN_CORNERS", 5, [0.0, 0.1, 0.5, 0.9, 1.0]),
        ("STRICT_ALIGN_CORNERS", 5, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("DEFAULT", 5, [0.0, 0.4, 0.8, 1.0, 1.0]),
        ("OFFSET_CORNERS", 5, [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("ALIGN_CORNERS", 6, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ("ALIGN_CORNERS", 1, [0.5]),
    ],
)
def test_sampling_grids(mode, out, points):
    ramp = torch.tensor([[[0.0, 1.0]]])
    got = run("resize_bilinear", x=ramp, target_size_height=1, target_size_width=out, sampling_mode=mode)
    same(got[0, 0], points)


def test_products():
    x, y = noise(2, 3, 4), noise(2, 5, 4, seed=1)
    same(run("matmul", x=x, y=y, transpose_y=True), np.einsum("bik,bjk->bij", x, y))
    same(run("matmul", x=x, y=y[:, :3], transpose_x=True), np.einsum("bki,bkj->bij", x, y[:, :3]))
    weight, bias = noise(6, 4, seed=2), noise(6, seed=3)
    same(run("linear", x=x, weight=weight, bias=bias), x.numpy() @ weight.numpy().T + bias.numpy())
    a, b = noise(2, 3, 4, 5), noise(2, 5, 4, 6, seed=1)
    same(run("einsum", values=[a, b], equation="nchw,nwhu->nchu"), np.einsum("nchw,nwhu->nchu", a, b))
    q, k, v = noise(2, 3, 4, 8), noise(2, 3, 6, 8, seed=1), noise(2, 3, 6, 5, seed=2)
    keep = noise(4, 6, seed=3) > -1
    scores = (q @ k.transpose(-1, -2) / math.sqrt(8)).masked_fill(~keep, -math.inf)
    same(run("scaled_dot_product_attention", query=q, key=k, value=v, attn_mask=keep), scores.softmax(-1) @ v)


def test_activations_that_coremltools_does_not_infer_rightly_or_at_all():
    x = noise(2, 3, 4) * 3
    same(run("silu", x=x), x.numpy() / (1 + np.exp(-x.numpy())))
    same(run("gelu", x=x, mode="EXACT"), F.gelu(x))
    same(run("gelu", x=x, mode="TANH_APPROXIMATION"), F.gelu(x, approximate="tanh"))
    same(run("thresholded_relu", x=x, alpha=0.4), np.where(x.numpy() >= 0.4, x.numpy(), 0))
    same(run("prelu", x=x, alpha=[0.1, 0.2, 0.3]), F.prelu(x, torch.tensor([0.1, 0.2, 0.3])))
    with pytest.raises(UserError, match="gelu mode 'ERF' is unknown"):
        run("gelu", x=x, mode="ERF")


def test_blocks():
    x = noise(2, 8, 3, 5)
    same(run("pixel_shuffle", x=x, upscale_factor=2), F.pixel_shuffle(x, 2))
    same(run("pixel_unshuffle", x=F.pixel_shuffle(x, 2), downscale_factor=2), x)
    wide = run("depth_to_space", x=x, block_size=2)
    for block in range(4):  # TensorFlow's order: block offset (i, j) picks the channels [block C, (block + 1) C)
        i, j = divmod(block, 2)
        same(wide[:, :, i::2, j::2], x[:, 2 * block : 2 * block + 2])
    same(run("space_to_depth", x=wide, block_size=2), x)
    packed = run("space_to_batch", x=x, block_shape=[2, 3], paddings=[[1, 0], [0, 1]])
    padded = F.pad(x, (0, 1, 1, 0))
    same(packed, torch.cat([padded[:, :, i::2, j::3] for i in range(2) for j in range(3)]))
    same(run("batch_to_space", x=packed, block_shape=[2, 3], crops=[[1, 0], [0, 1]]), x)
    same(run("sliding_windows", x=x, axis=3, size=3, stride=2)[..., 1, :], x[..., 2:5])


def test_slices_and_pads():
    x = noise(4, 5, 6)
    same(
        run("slice_by_index", x=x, begin=[3, 0, -2], end=[0, 0, 6], stride=[-2, 2, 1], end_mask=[False, True, False]),
        x.numpy()[3:0:-2, ::2, -2:6].copy(),
    )
    same(run("slice_by_index", x=x, begin=[-1, 1, 2], end=[0, 3, 0], squeeze_mask=[True, False, True]), x[-1, 1:3, 2])
    same(run("slice_by_size", x=x, begin=[1, -3, 0], size=[2, 2, -1]), x[1:3, 2:4])
    for mode, numpy_mode in (("constant", "constant"), ("reflect", "reflect"), ("replicate", "edge")):
        wanted = np.pad(x.numpy(), ((0, 0), (2, 1), (3, 4)), mode=numpy_mode)
        same(run("pad", x=x, pad=[2, 1, 3, 4], mode=mode, constant_val=0.0), wanted)
    with pytest.raises(UserError, match=r"reflect padding \(6, 0\) needs a side above it, got 6"):
        run("pad", x=x, pad=[6, 0], mode="reflect")


def test_picking():
    x = noise(3, 4, 5)
    index = torch.tensor([[0, -1], [2, 1]])
    same(run("gather", x=x, indices=index, axis=1), x[:, index])
    batched = run("gather", x=x[:2], indices=index, axis=1, batch_dims=1)
    same(batched, torch.stack([x[0, index[0]], x[1, index[1]]]))
    along = torch.randint(0, 4, (3, 2, 5))
    same(run("gather_along_axis", x=x, indices=along, axis=1), np.take_along_axis(x.numpy(), along.numpy(), 1))
    tuples = torch.tensor([[2, 3], [0, 1]])
    same(run("gather_nd", x=x, indices=tuples), x[[2, 0], [3, 1]])
    values, places = run("topk", x=x, k=3, axis=-1)
    same(values, x.topk(3).values)
    same(places, x.topk(3).indices)
    same(run("topk", x=x, k=2, axis=1, ascending=True)[0], x.topk(2, dim=1, largest=False).values)
    written = run("scatter_along_axis", data=x, indices=along, updates=noise(3, 2, 5, seed=1), axis=1, mode="update")
    same(written, x.scatter(1, along, noise(3, 2, 5, seed=1)))
    added = run("scatter", data=x, indices=[1, 1], updates=torch.ones(3, 2, 5), axis=1, mode="add")
    same(added - x, torch.tensor([0.0, 2, 0, 0]).reshape(1, 4, 1).expand(3, 4, 5))
    same(run("one_hot", indices=[2, 0], one_hot_vector_size=3, axis=-1), np.eye(3)[[2, 0]])
    same(run("band_part", x=x, lower=1, upper=-1), np.triu(x.numpy(), -1))
    same(run("cumsum", x=x, axis=1, exclusive=True, reverse=True), x.flip(1).cumsum(1).flip(1) - x)
    same(run("concat", values=[x, x + 1], axis=0, interleave=True), torch.stack([x, x + 1], 1).flatten(0, 1))


INFERRED = {
    **{
        kind: {"x": "real"}
        for kind in ("abs", "ceil", "cos", "erf", "exp", "exp2", "floor", "relu", "relu6", "round", "sigmoid")
    },
    **{
        kind: {"x": "real"} for kind in ("sign", "sin", "sinh", "cosh", "softplus", "softsign", "square", "tanh", "atan", "tan")
    },
    **{kind: {"x": "positive"} for kind in ("sqrt", "log", "rsqrt", "inverse")},
    **{kind: {"x": "unit"} for kind in ("acos", "asin", "atanh")},
    **{
        kind: {"x": "real", "y": "row"}
        for kind in ("add", "sub", "mul", "maximum", "minimum", "greater", "less_equal", "not_equal")
    },
    **{kind: {"x": "real", "y": "positive"} for kind in ("real_div", "mod", "floor_div")},
    "pow": {"x": "positive", "y": "row"},
    **{
        kind: {"x": "real", "axes": [1], "keep_dims": True}
        for kind in ("reduce_max", "reduce_mean", "reduce_l2_norm", "reduce_prod")
    },
    **{kind: {"x": "real", "axes": [-1, 0]} for kind in ("reduce_min", "reduce_sum", "reduce_l1_norm", "reduce_log_sum_exp")},
    "reduce_sum_square": {"x": "real"},
    "reduce_log_sum": {"x": "positive", "axes": [2]},
    "reduce_argmax": {"x": "real", "axis": 1},
    "reduce_argmin": {"x": "real", "axis": 1, "keep_dims": True},
    "clip": {"x": "real", "alpha": -0.5, "beta": 0.7},
    "threshold": {"x": "real", "alpha": 0.2},
    "leaky_relu": {"x": "real", "alpha": 0.1},
    "elu": {"x": "real", "alpha": 0.8},
    "gelu": {"x": "real", "mode": "SIGMOID_APPROXIMATION"},
    "clamped_relu": {"x": "real", "alpha": 0.3, "beta": 0.9},
    "sigmoid_hard": {"x": "real", "alpha": 0.2, "beta": 0.4},
    "linear_activation": {"x": "real", "alpha": 2.0, "beta": -1.0},
    "scaled_tanh": {"x": "real", "alpha": 1.7, "beta": 0.6},
    "softplus_parametric": {"x": "real", "alpha": [1.0, 2.0, 3.0], "beta": [0.5, 1.0, 0.1]},
    "softmax": {"x": "real", "axis": 1},
    "transpose": {"x": "real", "perm": [2, 0, 1]},
    "expand_dims": {"x": "real", "axes": [0, -1]},
    "reshape": {"x": "real", "shape": [0, -1, 2]},
    "flatten2d": {"x": "real", "axis": 2},
    "reverse": {"x": "real", "axes": [0, 2]},
    "tile": {"x": "real", "reps": [2, 1, 3]},
    "argsort": {"x": "real", "axis": 1},
    "split": {"x": "real", "split_sizes": [1, 2], "axis": 1},
    "stack": {"values": ["real", "unit"], "axis": 1},
    "non_zero": {"x": "round"},
    "range_1d": {"start": 2, "end": 11, "step": 3},
}


def _operand(what):
    rng = np.random.default_rng(3)
    real = rng.normal(size=(2, 3, 4)).astype(np.float32) * 2
    made = {"real": real, "positive": np.abs(real) + 0.5, "unit": np.tanh(real), "row": rng.normal(size=4).astype(np.float32)}
    made["round"] = np.round(real)
    if isinstance(what, list) and isinstance(what[0], str):
        return [made[name] for name in what]
    if isinstance(what, str):
        return made.get(what, what)
    return np.float32(what) if isinstance(what, float) else what


@pytest.mark.parametrize("kind", INFERRED)
def test_kernels_agree_with_coremltools_own_value_inference(kind):
    given = {name: _operand(what) for name, what in INFERRED[kind].items()}
    with Function({}, opset_version=ct.target.iOS16):
        built = getattr(Builder, kind)(**given)
    wanted = [var.val for var in (built if isinstance(built, (list, tuple)) else (built,))]
    tensors = {
        n: [torch.from_numpy(a) for a in v] if isinstance(v, list) and isinstance(v[0], np.ndarray) else v
        for n, v in given.items()
    }
    tensors = {n: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for n, v in tensors.items()}
    got = run(kind, **tensors)
    for mine, theirs in zip(got if isinstance(got, tuple) else (got,), wanted, strict=True):
        assert theirs is not None
        same(mine, np.array(theirs))  # a copy: torch takes no negative strides
