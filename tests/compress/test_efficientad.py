"""EfficientAD's losses and measures against NumPy, and its two steps on drawn scenes."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch

from trimtab.compress.apply import run_recipe
from trimtab.compress.procedures.efficientad_calibrate import anchors, channel_statistics, map_values
from trimtab.compress.procedures.efficientad_lesson import Lesson
from trimtab.compress.procedures.efficientad_losses import FEW, changed, hard_count, hard_loss, penalty_loss, upper_quantile
from trimtab.compress.procedures.textures import textures
from trimtab.compress.recipe import parse_recipe
from trimtab.compress.runtime import Runtime
from trimtab.models.architectures import architectures
from trimtab.models.bundle import Manifest, load_bundle, save_bundle
from trimtab.models.errors import UserError
from trimtab.models.source import Architecture
from trimtab.models.tasks.anomaly import anomaly

SIDE = 48
NET = {"image_size": SIDE, "width": 0.125, "out_channels": 16}
BRIEF = {"iterations": 12, "p_hard": 0.9, "checkpoint_s": 1000}


def numbers(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def network(seed=0, **kwargs):
    torch.manual_seed(seed)
    return architectures.get("efficientad_s")(**{**NET, **kwargs})


class TestHardLoss:
    @pytest.mark.parametrize("size", [1, 2, 7, 1000, 4321])
    @pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.999])
    def test_the_quantile_is_numpys(self, size, p):
        values = numbers(3, size)
        expected = np.quantile(values.double().numpy(), p, axis=1)
        np.testing.assert_allclose(upper_quantile(values, p)[:, 0], expected, rtol=1e-6)  # one rounding of a float32
        above = (values >= upper_quantile(values, p)).sum(1)
        assert above.tolist() == [hard_count(size, p)] * 3

    def test_more_elements_than_torchs_own_quantile_takes(self):
        values = numbers(1, 2**24 + 5)
        with pytest.raises(RuntimeError, match="too large"):
            torch.quantile(values, 0.999)
        assert float(upper_quantile(values, 0.999)) == pytest.approx(np.quantile(values.numpy(), 0.999), rel=1e-6)

    @pytest.mark.parametrize("p", [0.5, 0.9, 0.999])
    def test_the_mean_above_each_pictures_own_quantile(self, p):
        """Pictures of very different errors: the quantile of all together would ignore the first."""
        distance = numbers(3, 5, 7, 9) * torch.tensor([0.01, 1.0, 10.0]).view(3, 1, 1, 1)
        means = [picture[picture >= np.quantile(picture, p)].mean() for picture in distance.double().numpy()]
        assert float(hard_loss(distance, p)) == pytest.approx(np.mean(means), rel=1e-5)

    def test_all_elements_at_0_and_all_equal_ones(self):
        distance = numbers(2, 3, 4, 4)
        assert float(hard_loss(distance, 0)) == pytest.approx(float(distance.mean()))
        assert float(hard_loss(torch.full((2, 3, 4, 4), 0.25), 0.999)) == 0.25

    def test_only_hard_elements_teach_and_each_the_same(self):
        guessed = numbers(2, 3, 4, 4).requires_grad_()
        hard_loss(guessed.square(), 0.9).backward()
        kept = hard_count(48, 0.9)
        assert [(g != 0).sum().item() for g in guessed.grad] == [kept, kept]
        taught = guessed.grad[guessed.grad != 0]
        torch.testing.assert_close(taught, 2 * guessed.detach()[guessed.grad != 0] / (2 * kept))


class TestOtherTerms:
    def test_penalty_is_the_mean_square(self):
        guessed = numbers(3, 4, 5, 6) - 0.5
        assert float(penalty_loss(guessed)) == pytest.approx(float(np.mean(guessed.numpy() ** 2)), rel=1e-5)

    def test_a_changed_picture_is_brighter_of_more_contrast_or_more_colourful(self):
        """Each of 600 copies equals one of the three formulas for some factor of 0.8 … 1.2, and all three occur about equally often."""
        torch.manual_seed(0)
        picture = 0.3 + 0.3 * numbers(3, 6, 6)  # in 0.3 … 0.6: nothing is cut off
        found = changed(picture.expand(600, -1, -1, -1)).double().numpy()
        x = picture.double().numpy()
        grey = np.tensordot([0.299, 0.587, 0.114], x, axes=1)
        counts, factors = {}, []
        for copy in found:
            fits = {}
            for name, around in (
                ("brightness", 0 * x),
                ("contrast", np.full_like(x, grey.mean())),
                ("colour", grey[None] + 0 * x),
            ):
                base, moved = (x - around).ravel(), (copy - around).ravel()
                factor = base @ moved / (base @ base)
                fits[name] = (np.abs(moved - factor * base).max(), factor)
            name, (error, factor) = min(fits.items(), key=lambda item: item[1][0])
            assert error < 1e-6
            counts[name] = counts.get(name, 0) + 1
            factors.append(factor)
        assert min(counts.values()) > 150  # 200 expected, deviation 11.5
        assert 0.8 <= min(factors) < 0.81
        assert 1.19 < max(factors) <= 1.2
        assert found.min() >= 0

    def test_textures_are_pictures_that_differ(self):
        torch.manual_seed(0)
        found = textures(40, (40, 56))
        assert found.shape == (40, 3, 40, 56)
        assert 0 <= float(found.min()) < float(found.max()) <= 1
        assert float(found.std((2, 3)).mean()) > 0.05
        grey = (found - found.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-6
        assert 4 <= int(grey.sum()) <= 20  # 12 expected, deviation 2.9


class TestLesson:
    @pytest.fixture
    def seen(self):
        return {
            "wanted": numbers(4, 16, 5, 5, seed=1),
            "guessed": numbers(4, 32, 5, 5, seed=2),
            "whole": numbers(2, 16, 5, 5, seed=3),
            "strange": numbers(2, 32, 5, 5, seed=4),
        }

    def test_every_term_by_numpy(self, seen):
        """Equations 2 to 5: two pictures, then the same two changed."""
        parts = Lesson(network(), p_hard=0.9, l2=0).parts(seen, 2)
        a = {name: value.double().numpy() for name, value in seen.items()}
        distance = (a["wanted"][:2] - a["guessed"][:2, :16]) ** 2
        hard = np.mean([d[d >= np.quantile(d, 0.9)].mean() for d in distance])
        expected = {
            "hard": hard,
            "penalty": np.mean(a["strange"][:, :16] ** 2),
            "ae": np.mean((a["wanted"][2:] - a["whole"]) ** 2),
            "stae": np.mean((a["whole"] - a["guessed"][2:, 16:]) ** 2),
        }
        assert {name: float(value) for name, value in parts.items()} == pytest.approx(expected, rel=1e-5)

    def test_which_network_sees_which_pictures(self):
        """The teacher and the student both, the autoencoder the changed ones, and nobody but the student the strange ones."""
        net = network().eval()
        lesson = Lesson(net, p_hard=0.9, l2=0)
        images, altered, strange = (numbers(2, 3, SIDE, SIDE, seed=i) for i in range(3))
        with torch.no_grad():
            found = lesson(images, altered, strange)
            x, y, z = (net.norm(pictures) for pictures in (images, altered, strange))
            expected = {
                "wanted": torch.cat([net.describe(x), net.describe(y)]),
                "guessed": torch.cat([net.student.features(x), net.student.features(y)]),
                "whole": net.autoencoder(y),
                "strange": net.student.features(z),
            }
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)  # other kernels by batch

    def test_the_loss_is_their_sum_and_the_pull_half_the_squared_weights(self):
        net = network()
        lesson = Lesson(net, p_hard=0.9, l2=0.5)
        lesson.frozen_teacher()
        total, parts = lesson.loss(lesson, numbers(2, 3, SIDE, SIDE), numbers(2, 3, SIDE, SIDE, seed=1))
        assert list(parts) == ["hard", "penalty", "ae", "stae", "l2"]
        assert float(total.detach()) == pytest.approx(sum(float(v.detach()) for v in parts.values()), rel=1e-6)
        squares = sum(
            float(p.detach().double().square().sum()) for part in (net.student, net.autoencoder) for p in part.parameters()
        )
        assert float(parts["l2"].detach()) == pytest.approx(0.25 * squares, rel=1e-5)
        total.backward()
        assert all(p.grad is None for p in net.teacher.parameters())
        assert all(p.grad is not None for part in (net.student, net.autoencoder) for p in part.parameters())

    def test_the_autoencoder_is_not_taught_by_the_students_other_terms(self):
        lesson = Lesson(network(), p_hard=0.9, l2=0)
        lesson.frozen_teacher()
        parts = lesson.loss(lesson, numbers(2, 3, SIDE, SIDE), numbers(2, 3, SIDE, SIDE, seed=1))[1]
        (parts["hard"] + parts["penalty"]).backward()
        assert all(p.grad is None for p in lesson.net.autoencoder.parameters())

    def test_without_penalty_and_autoencoder_one_term_is_left(self):
        lesson = Lesson(network(autoencoder=False), p_hard=0.9, l2=0)
        assert list(lesson.loss(lesson, numbers(1, 3, SIDE, SIDE), None)[1]) == ["hard"]

    def test_too_few_hard_elements_are_said_and_the_share_named_that_leaves_enough(self):
        lesson = Lesson(network(), p_hard=0.999, l2=0)
        assert "too few" in lesson.few
        better = float(lesson.few.split("p_hard = ")[2].split()[0])
        assert abs(hard_count(16 * 4 * 4, better) - FEW) <= 1
        assert Lesson(network(), p_hard=0, l2=0).few == ""


class TestCalibration:
    def test_statistics_by_numpy_over_batches(self):
        """Large offsets against small deviations: float32 sums of squares would lose them."""
        pictures = [numbers(4, 3, 5, 6, seed=i) + torch.tensor([0.0, 1000.0, -50.0]).view(3, 1, 1) for i in range(3)]
        mean, std = channel_statistics(lambda x: x, iter(pictures))
        every = torch.cat(pictures).double().numpy()
        np.testing.assert_allclose(mean[0, :, 0, 0], every.mean((0, 2, 3)), rtol=1e-6)
        np.testing.assert_allclose(std[0, :, 0, 0], every.std((0, 2, 3)), rtol=1e-5)

    def test_a_channel_that_does_not_vary_gets_the_smallest_deviation(self):
        pictures = numbers(4, 3, 5, 5) * torch.tensor([1.0, 0.1, 0.0]).view(3, 1, 1)
        std = channel_statistics(lambda x: x, iter([pictures]))[1][0, :, 0, 0]
        assert std[2] == std[1] < std[0]

    def test_features_that_do_not_vary_at_all(self):
        with pytest.raises(UserError, match="the same at every place"):
            channel_statistics(lambda x: x, iter([torch.ones(2, 3, 4, 4)]))

    def test_anchors_by_numpy(self):
        values = numbers(5000).numpy()
        assert anchors(values, "quantile", name="M") == pytest.approx(tuple(np.quantile(values.astype(float), [0.9, 0.995])))
        mean, top = anchors(values, "gaussian", name="M")
        scaled = 0.1 * (values.astype(float) - mean) / (top - mean)
        assert (scaled.mean(), scaled.var()) == pytest.approx((0, 1), abs=1e-9)

    @pytest.mark.parametrize("rule", ["quantile", "gaussian"])
    @pytest.mark.parametrize(
        ("values", "said"), [(np.full(50, 3.0), "the same at nearly every place"), (np.array([1, np.nan]), "not finite")]
    )
    def test_maps_that_cannot_be_scaled(self, rule, values, said):
        with pytest.raises(UserError, match=f"map M_AE .*{said}"):
            anchors(values.astype(np.float32), rule, name="M_AE")


@pytest.fixture(scope="module")
def task():
    return anomaly(data="scenes", counts=(12, 4, 6), size=(SIDE, SIDE), val_fraction=0.25)


@pytest.fixture
def start(task, tmp_path):
    return bundle(tmp_path / "start", task)


def bundle(folder, task, name="efficientad_s", **kwargs):
    architecture = Architecture(name=name, kwargs={**NET, **kwargs} if name.startswith("efficientad") else kwargs)
    torch.manual_seed(0)
    return save_bundle(folder, architecture.build(), Manifest(architecture=architecture, contract=task.contract))


def run(entering, task, folder, kind="efficientad", **config):
    steps = parse_recipe({"format": 1, "seed": 0, "step": [{"kind": kind, **BRIEF, **config}]}, origin="test")
    return run_recipe(entering, steps, task, folder, device="cpu")[0]


class TestStep:
    def test_a_tiny_training_end_to_end(self, start, task, tmp_path):
        done = run(start, task, tmp_path / "w", iterations=60, lr=1e-3)
        before, net = start.module(), load_bundle(done.bundle.folder).module().eval()
        assert all(torch.equal(a, b) for a, b in zip(before.teacher.parameters(), net.teacher.parameters(), strict=True))
        epochs = done.figures["history"]["epochs"]
        assert sum(epochs[-1]["parts"][k] for k in ("hard", "ae", "stae")) < sum(
            epochs[0]["parts"][k] for k in ("hard", "ae", "stae")
        )
        assert done.figures["iterations"] == 60
        assert any("60 steps of 1 (70 000 of 1 are published)" in note for note in done.notes)
        assert any("no step pdn-teacher" in note for note in done.notes)
        figures = task.evaluate(lambda x: net(x).map)
        assert {"auroc", "pixel_auroc", "au_pro", "auroc_logical", "auroc_structural", "tpr"} <= set(figures)

    def test_the_teachers_features_are_standardised_over_training_pictures(self, start, task, tmp_path):
        net = run(start, task, tmp_path / "w").bundle.module().eval()
        samples = task.samples("train")
        with torch.no_grad():
            found = net.describe(net.norm(task.inputs(samples.__getitems__(range(len(samples))))))
        torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(16), atol=1e-4, rtol=0)  # float32 features of size 1
        torch.testing.assert_close(found.std((0, 2, 3), correction=0), torch.ones(16), atol=1e-3, rtol=0)

    def test_the_scale_comes_from_held_out_normal_pictures(self, start, task, tmp_path):
        """Of either map's places on validation pictures nine in ten lie below 0, and one in two hundred above a tenth."""
        net = run(start, task, tmp_path / "w").bundle.module().eval()
        values = map_values(net, task, "val", runtime=Runtime("cpu"))
        for found, kept in zip(values, (net.q_st, net.q_ae), strict=True):
            np.testing.assert_allclose(
                kept, np.quantile(found.astype(float), [0.9, 0.995]), rtol=1e-4
            )  # measured in another batch
        train = map_values(net, task, "train", runtime=Runtime("cpu"))
        assert not np.allclose(np.quantile(train[0], [0.9, 0.995]), net.q_st, rtol=1e-3)

    def test_the_other_normalisation(self, start, task, tmp_path):
        net = run(start, task, tmp_path / "w", normalisation="gaussian").bundle.module().eval()
        values = map_values(net, task, "val", runtime=Runtime("cpu"))[0].astype(float)
        np.testing.assert_allclose(net.q_st, [values.mean(), values.mean() + 0.1 * values.std()], rtol=1e-4)

    def test_hard_loss_and_penalty_can_be_left_out(self, start, task, tmp_path):
        done = run(start, task, tmp_path / "w", p_hard=0, penalty="")
        assert done.figures["hard_elements"] == 16 * 4 * 4
        assert done.figures["penalty"] == "none"
        assert "penalty" not in done.figures["history"]["epochs"][0]["parts"]

    def test_without_the_autoencoder_the_bundle_holds_a_smaller_network(self, start, task, tmp_path):
        done = run(start, task, tmp_path / "w", autoencoder=False)
        assert done.bundle.manifest.architecture.kwargs["autoencoder"] is False
        net = load_bundle(done.bundle.folder).module().eval()
        assert net.autoencoder is None
        assert net(numbers(1, 3, SIDE, SIDE)).map.shape == (1, 1, SIDE, SIDE)
        assert done.figures["q_ae"] is None

    def test_penalty_pictures_of_the_users_own(self, start, task, tmp_path):
        from PIL import Image

        (tmp_path / "photos").mkdir()
        for i in range(3):
            pixels = (255 * numbers(60, 80, 3, seed=i)).byte().numpy()
            Image.fromarray(pixels).save(tmp_path / f"photos/{i}.png")
        done = run(start, task, tmp_path / "w", penalty=f"photos:{tmp_path / 'photos'}")
        assert done.figures["penalty"] == "3 photographs"
        with pytest.raises(UserError, match=r"penalty 'photos:.*no picture lies there"):
            run(start, task, tmp_path / "v", penalty=f"photos:{tmp_path / 'nowhere'}")


class TestStopped:
    def test_a_stopped_training_resumes_bit_for_bit(self, start, task, tmp_path, monkeypatch):
        """With its dropout, its changed pictures and its textures."""
        whole = run(start, task, tmp_path / "whole")
        calls, original = [], Lesson.loss

        def interrupting(self, *arguments):
            calls.append(1)
            if len(calls) == 5:
                signal.raise_signal(signal.SIGINT)
            return original(self, *arguments)

        monkeypatch.setattr(Lesson, "loss", interrupting)
        with pytest.raises(KeyboardInterrupt):
            run(start, task, tmp_path / "cut")
        resumed = run(start, task, tmp_path / "cut")
        assert resumed.figures["history"]["resumed_at"] == 5
        assert resumed.bundle.hash == whole.bundle.hash

    def test_a_term_that_is_no_longer_finite_is_named(self, start, task, tmp_path, monkeypatch):
        original = Lesson.parts
        monkeypatch.setattr(Lesson, "parts", lambda self, *a: {**(p := original(self, *a)), "stae": p["stae"] * float("nan")})
        with pytest.raises(UserError, match="efficientad: the term 'stae' became nan at step 1 of 12"):
            run(start, task, tmp_path / "w")

    def test_a_wild_learning_rate_stops_in_words(self, start, task, tmp_path):
        with pytest.raises(UserError, match=r"efficientad: .* at step [0-9]+ of 12[\s\S]*try lr"):
            run(start, task, tmp_path / "w", lr=1e12)


class TestRefusals:
    def test_no_data(self, start, tmp_path):
        for kind in ("efficientad", "pdn-teacher"):
            with pytest.raises(UserError, match="needs data"):
                run_recipe(start, parse_recipe({"format": 1, "step": [{"kind": kind}]}, origin="test"), None, tmp_path / kind)

    def test_pictures_of_another_size(self, start, tmp_path):
        other = anomaly(data="scenes", counts=(12, 4, 6), size=(64, 64), val_fraction=0.25)
        with pytest.raises(UserError, match=r"built for 48×48, and the pictures are 64×64[\s\S]*image_size=64"):
            run(start, other, tmp_path / "w")

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_anomalies_among_the_normal_pictures(self, start, task, tmp_path, split):
        odd = anomaly(data="scenes", counts=(12, 4, 6), size=(SIDE, SIDE), val_fraction=0.25)
        odd.samples(split).targets[1] = 1
        odd.data_id = f"odd {split}"
        with pytest.raises(UserError, match=f"the {split} split of 'scenes' holds 1 pictures that are not normal"):
            run(start, odd, tmp_path / "w")

    def test_a_task_that_normalises(self, start, task, tmp_path):
        with pytest.raises(UserError, match="this task normalises them too"):
            run(start, task.normalised_by((0.5,) * 3, (0.5,) * 3), tmp_path / "w")

    def test_a_task_of_grey_pictures_or_another_network(self, start, task, tmp_path, tiny_npz):
        from trimtab.loading import open_task

        with pytest.raises(UserError, match="built for 48×48"):
            run(start, open_task("classification", {"data": f"npz:{tiny_npz}"}).normalised_by((), ()), tmp_path / "a")
        other = bundle(tmp_path / "other", task, name="resnet8", num_classes=4)
        with pytest.raises(UserError, match=r"ResNet lacks teacher, student[\s\S]*efficientad_s"):
            run(other, task, tmp_path / "b")
        with pytest.raises(UserError, match="ResNet neither is one nor has one as teacher"):
            run_recipe(
                other, parse_recipe({"format": 1, "step": [{"kind": "pdn-teacher"}]}, origin="test"), task, tmp_path / "c"
            )
