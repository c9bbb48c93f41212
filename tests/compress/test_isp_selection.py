"""Which iterate is kept: the distance, the ranks, the files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from isp_training_kit import feature_net, smooth, tiny_isp
from training_kit import same, weights

from trimtab.compress.procedures.isp_features import Eyes
from trimtab.compress.procedures.isp_selection import Candidates, Judge, Moments, chosen, gaussian_distance, judged, ranked

torch.set_num_threads(1)


def moments(*maps):
    found = Moments()
    for one in maps:
        found.add(one)
    return found


def test_moments_and_distance_by_numpy():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(6, 4, 3, 5, generator=generator), 2 + 3 * torch.randn(8, 4, 3, 5, generator=generator)
    got = gaussian_distance(moments(a[:2], a[2:]), moments(b))
    x, y = (m.numpy().transpose(1, 0, 2, 3).reshape(4, -1).astype(np.float64) for m in (a, b))
    expected = (((x.mean(1) - y.mean(1)) ** 2 + (x.std(1) - y.std(1)) ** 2) / y.var(1)).mean()
    assert got == pytest.approx(expected, rel=1e-9)
    assert gaussian_distance(moments(b), moments(b[:5], b[5:])) == pytest.approx(0, abs=1e-12)


def test_a_channel_that_never_varies_does_not_decide_alone():
    real = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    real[:, 2] = 0
    made = real.clone()
    made[:, 2] = 0.1
    # 0.1² over a thousandth of the mean variance (2/3), averaged over three channels
    assert gaussian_distance(moments(made), moments(real)) == pytest.approx(0.01 / (1e-3 * 2 / 3) / 3, rel=0.2)


def test_ranks_are_added_and_equal_ones_shared():
    rows = [
        {"distance": 3.0, "content": 1.0},  # 3 + 1.5
        {"distance": 1.0, "content": 1.0},  # 1 + 1.5
        {"distance": 2.0, "content": 5.0},  # 2 + 3
        {"distance": float("nan"), "content": 9.0},  # 4 + 4
    ]
    assert ranked(rows) == [4.5, 2.5, 5.0, 8.0]
    assert chosen(rows) == 1


def test_of_equal_sums_the_nearer_then_the_later_one_is_kept():
    assert chosen([{"distance": 1.0, "content": 2.0}, {"distance": 2.0, "content": 1.0}]) == 0
    assert chosen([{"distance": 2.0, "content": 1.0}, {"distance": 1.0, "content": 2.0}]) == 1
    assert chosen([{"distance": 1.0, "content": 1.0}] * 3) == 2


@pytest.mark.parametrize(
    ("total", "count", "steps"),
    [(100, 4, (25, 50, 75, 100)), (3, 10, (1, 2, 3)), (1, 1, (1,)), (10, 3, (3, 7, 10))],
)
def test_candidates_are_spread_over_the_run_and_end_with_it(tmp_path, total, count, steps):
    candidates = Candidates(tmp_path, total=total, count=count)
    assert candidates.steps == steps
    net = tiny_isp()
    for step in range(total + 1):
        candidates.keep(step, net)
    assert candidates.present() == list(steps)
    assert len(list(tmp_path.iterdir())) == len(steps)


def test_a_removed_file_is_left_out_and_a_load_brings_the_weights_back(tmp_path):
    candidates = Candidates(tmp_path, total=2, count=2)
    first, second = tiny_isp(0), tiny_isp(1)
    candidates.keep(1, first)
    candidates.keep(2, second)
    net = tiny_isp(2)
    candidates.load(1, net)
    assert same(weights(net), weights(first))
    next(tmp_path.glob("*1.safetensors")).unlink()
    assert candidates.present() == [2]


def eyes():
    return Eyes(content=feature_net(0, (2,)), texture=feature_net(1, (0, 2)), colour=feature_net(2, (1,)))


def test_the_judge_prefers_pictures_like_the_real_ones_and_content_like_the_references():
    scenes, others = smooth(8, 1), smooth(8, 2)
    judge = Judge(eyes(), [scenes[:4], scenes[4:]], [others])
    right = judge.figures([scenes[:4], scenes[4:]])
    dark = judge.figures([scenes[:4] * 0.4, scenes[4:] * 0.4])
    assert right["content"] == 0
    assert right["distance"] < dark["distance"]
    assert dark["content"] > 0
    # pictures are clamped as they are when they are looked at
    assert judge.figures([scenes[:4] + 1e-7, scenes[4:]])["content"] == pytest.approx(0, abs=1e-6)
    beyond = judge.figures([torch.where(scenes[:4] >= 1, 5.0, scenes[:4]), scenes[4:]])
    assert beyond == pytest.approx(right, abs=1e-9)


def test_pairs_take_no_part_in_the_choice(tmp_path):
    """The best PSNR is at step 1, the rule's choice at step 2."""
    candidates = Candidates(tmp_path, total=3, count=3)
    nets = [tiny_isp(seed) for seed in range(3)]
    for step, net in enumerate(nets, start=1):
        candidates.keep(step, net)
    net = tiny_isp(9)

    def place():
        return next(i for i, one in enumerate(nets) if same(weights(one), weights(net)))

    def figures(_):
        return [{"distance": 2.0, "content": 2.0}, {"distance": 1.0, "content": 1.0}, {"distance": 3.0, "content": 3.0}][
            place()
        ]

    for psnrs in ([30.0, 10.0, 20.0], [1.0, 1.0, 99.0]):
        rows = judged(candidates, net, figures, lambda _, psnrs=psnrs: {"psnr": psnrs[place()]})
        assert [row["chosen"] for row in rows] == [False, True, False]
        assert [row["paired"]["psnr"] for row in rows] == psnrs
        assert place() == 1
    assert "paired" not in judged(candidates, net, figures, None)[0]
