"""EfficientAD's networks: what they weigh, what they see, how map and score come about, and which pictures they refuse."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from trimtab.models.architectures import architectures
from trimtab.models.errors import UserError
from trimtab.models.patches import RECEPTIVE_FIELD
from trimtab.models.zoo.efficientad import rescaled
from trimtab.models.zoo.pdn import BORDER, MEAN, STD, map_side

S, M = architectures.get("efficientad_s"), architectures.get("efficientad_m")
TINY = {"image_size": 64, "width": 0.125, "out_channels": 16}


def size_of(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def conv(inputs, outputs, kernel) -> int:
    return inputs * outputs * kernel * kernel + outputs


def tiny(**kwargs):
    torch.manual_seed(0)
    return S(**{**TINY, **kwargs}).eval()


def fitted(**kwargs):
    """A network whose statistics and scales are not those it is built with."""
    net = tiny(**kwargs)
    net.teacher_mean.normal_(generator=torch.Generator().manual_seed(1))
    net.teacher_std.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
    net.q_st.copy_(torch.tensor([0.4, 1.1]))
    net.q_ae.copy_(torch.tensor([0.2, 0.7]))
    return net


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


class TestSize:
    def test_parameters_are_the_published_ones(self):
        """8.06 M and 20.74 M with teacher, student and autoencoder."""
        assert size_of(S()) == 8_057_856
        assert size_of(M()) == 20_738_432

    def test_the_small_one_part_by_part(self):
        """By the tables of the paper's appendix: 6, 7 (the student's last layer is twice as wide) and 8."""
        net = S()
        shared = conv(3, 128, 4) + conv(128, 256, 4) + conv(256, 256, 3)
        assert size_of(net.teacher) == shared + conv(256, 384, 4)
        assert size_of(net.student) == shared + conv(256, 768, 4)
        encoder = conv(3, 32, 4) + conv(32, 32, 4) + conv(32, 64, 4) + 2 * conv(64, 64, 4) + conv(64, 64, 8)
        decoder = 6 * conv(64, 64, 4) + conv(64, 64, 3) + conv(64, 384, 3)
        assert size_of(net.autoencoder) == encoder + decoder

    @pytest.mark.parametrize(("part", "last"), [("teacher", 384), ("student", 768)])
    def test_the_medium_one_layer_by_layer(self, part, last):
        layers = (3, 256, 4), (256, 512, 4), (512, 512, 1), (512, 512, 3), (512, last, 4), (last, last, 1)
        assert size_of(getattr(M(), part)) == sum(conv(*layer) for layer in layers)

    def test_width_scales_hidden_channels_and_out_channels_the_rest(self):
        net = S(width=0.5, out_channels=96)
        assert [layer.out_channels for layer in net.teacher.convs] == [64, 128, 128, 96]
        assert [layer.out_channels for layer in net.student.convs] == [64, 128, 128, 192]
        assert net.out_channels == 96
        assert size_of(net.autoencoder) < size_of(S().autoencoder) / 3

    def test_only_student_and_autoencoder_learn(self):
        net = tiny()
        learning = {name.split(".")[0] for name, parameter in net.named_parameters() if parameter.requires_grad}
        assert learning == {"student", "autoencoder"}


class TestPdn:
    @pytest.mark.parametrize("name", ["pdn_small", "pdn_medium"])
    def test_every_output_sees_33_pixels_and_the_next_lies_4_further(self, name):
        torch.manual_seed(0)
        net = architectures.get(name)(width=0.125, out_channels=8)
        with torch.no_grad():
            for layer in net.convs:  # no ReLU may hide a pixel
                layer.weight.abs_()
                layer.bias.fill_(0.1)
        x = torch.rand(1, 3, 64, 64, requires_grad=True)
        found = net.features(x)
        seen = []
        for row in (0, 1):
            (gradient,) = torch.autograd.grad(found[0, :, row, 0].sum(), x, retain_graph=True)
            rows, columns = (gradient[0].abs().sum(0).sum(axis).nonzero().flatten() for axis in (1, 0))
            assert len(columns) == RECEPTIVE_FIELD
            seen.append((int(rows[0]), int(rows[-1])))
        assert seen == [(0, RECEPTIVE_FIELD - 1), (4, 4 + RECEPTIVE_FIELD - 1)]

    @pytest.mark.parametrize("name", ["pdn_small", "pdn_medium"])
    @pytest.mark.parametrize("size", [(33, 33), (64, 64), (65, 66), (48, 100)])
    def test_map_sides(self, name, size):
        net = architectures.get(name)(width=0.0625, out_channels=3)
        assert net(torch.rand(1, 3, *size)).shape == (1, 3, map_side(size[0]), map_side(size[1]))

    def test_the_published_map_has_56_places_and_64_with_padding(self):
        net = architectures.get("pdn_small")(width=0.0625, out_channels=3)
        picture = torch.rand(1, 3, 256, 256)
        assert net(picture).shape[2:] == (56, 56)
        with net.padded():
            assert net(picture).shape[2:] == (64, 64)
        assert net(picture).shape[2:] == (56, 56)

    def test_padding_changes_no_place_that_sees_the_inside_alone(self):
        """The padded map without its border of 4 is the other map, as the map's own padding takes it to be."""
        net = architectures.get("pdn_small")(width=0.125, out_channels=4)
        picture = torch.rand(1, 3, 64, 64)
        whole = net(picture)
        with net.padded():
            padded = net(picture)
        assert padded.shape[2] == whole.shape[2] + 2 * BORDER
        torch.testing.assert_close(padded[..., BORDER:-BORDER, BORDER:-BORDER], whole)


class TestMap:
    def test_map_and_score_by_the_paper(self, pictures):
        """Sections 3.1 to 3.4 written down again, from the networks' own layers."""
        net = fitted()
        with torch.no_grad():
            output = net(pictures)
            x = (pictures - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
            wanted = (net.teacher.features(x) - net.teacher_mean) / net.teacher_std
            guessed, whole = net.student.features(x), net.autoencoder(x)
        local = ((wanted - guessed[:, :16]) ** 2).mean(1, keepdim=True)
        logical = ((whole - guessed[:, 16:]) ** 2).mean(1, keepdim=True)
        local, logical = (F.pad(found, (BORDER,) * 4) for found in (local, logical))
        expected = (0.1 * (local - 0.4) / 0.7 + 0.1 * (logical - 0.2) / 0.5) / 2
        expected = F.interpolate(expected, (64, 64), mode="bilinear")
        torch.testing.assert_close(output.map, expected)  # float32, the same sums in the same order: torch's own 1.3e-6
        assert output.map.shape == (2, 1, 64, 64)
        assert torch.equal(output.score[:, 0], output.map.flatten(1).max(1).values)

    def test_the_border_is_the_least_odd_place(self, pictures):
        output = fitted()(pictures)
        assert output.map[..., 0, 0].allclose(output.map.amin((2, 3)))
        assert (output.score > output.map[:, :, 0, 0]).all()

    def test_the_two_quantiles_become_0_and_a_tenth(self):
        assert rescaled(torch.tensor([2.0, 5.0, 8.0]), torch.tensor([2.0, 5.0])).tolist() == pytest.approx([0.0, 0.1, 0.2])

    @pytest.mark.parametrize("size", [(33, 33), (40, 72), (97, 64)])
    @pytest.mark.parametrize("build", [S, M])
    def test_any_size_from_the_receptive_field_on(self, build, size):
        net = build(image_size=list(size), width=0.0625, out_channels=4).eval()
        output = net(torch.rand(2, 3, *size))
        assert output.map.shape == (2, 1, *size)
        assert output.score.shape == (2, 1)

    def test_pictures_do_not_influence_each_other(self, pictures):
        net = fitted()
        torch.testing.assert_close(net(pictures).map[1:], net(pictures[1:]).map, rtol=1e-4, atol=1e-5)  # other kernels by batch

    def test_a_saved_network_is_the_same_function(self, pictures):
        net, again = fitted(), tiny()
        again.load_state_dict(net.state_dict())
        assert torch.equal(net(pictures).map, again(pictures).map)


class TestAutoencoder:
    def test_its_sizes_at_256_are_the_published_ones(self):
        net = S(width=0.0625, out_channels=4)
        assert net.autoencoder.sizes == [(side, side) for side in (3, 8, 15, 32, 63, 127)]
        assert net.autoencoder.map_size == (56, 56)

    @pytest.mark.parametrize("size", [(33, 33), (64, 64), (128, 80)])
    def test_the_picture_goes_through_one_vector(self, size):
        net = S(image_size=size, width=0.125, out_channels=4)
        assert net.autoencoder.encoder(torch.rand(1, 3, *size)).shape[2:] == (1, 1)

    def test_taken_out_the_students_map_is_left(self, pictures):
        net = fitted()
        small = net.without_autoencoder()
        assert small.autoencoder is None
        assert small.student.out_channels == 16
        torch.testing.assert_close(small.raw_maps(pictures)[0], net.raw_maps(pictures)[0])
        local = F.interpolate(
            F.pad(rescaled(net.raw_maps(pictures)[0], net.q_st), (BORDER,) * 4, value=-0.4 / 7), (64, 64), mode="bilinear"
        )
        torch.testing.assert_close(small.eval()(pictures).map, local)
        built = tiny(autoencoder=False)
        assert {name: value.shape for name, value in built.state_dict().items()} == {
            name: value.shape for name, value in small.state_dict().items()
        }
        with torch.no_grad():
            small.student.convs[0].weight.zero_()
        assert net.student.convs[0].weight.abs().sum() > 0


class TestRefusals:
    @pytest.mark.parametrize("size", [32, (32, 256), (256, 8)])
    @pytest.mark.parametrize("build", [S, M])
    def test_pictures_below_the_receptive_field(self, build, size):
        with pytest.raises(UserError, match=r"must be 33 or more[\s\S]*enlarge the images"):
            build(image_size=size)

    def test_three_sides(self):
        with pytest.raises(UserError, match="image_size="):
            S(image_size=(64, 64, 64))

    @pytest.mark.parametrize(
        ("kwargs", "said"), [({"width": 0}, "width=0"), ({"width": 5}, "width=5"), ({"out_channels": 0}, "out_channels=0")]
    )
    @pytest.mark.parametrize("name", ["efficientad_s", "efficientad_m", "pdn_small", "pdn_medium"])
    def test_values_out_of_range(self, name, kwargs, said):
        with pytest.raises(UserError, match=said):
            architectures.get(name)(**kwargs)
