"""Networks with gates whose masks differ from input to input, for the tests of everything that deploys them."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from trimtab.models.architectures import architectures
from trimtab.models.bundle import CODE, save_bundle
from trimtab.models.contract import image_classifier
from trimtab.models.gates import GateSpec, attach, gates_of
from trimtab.models.surgery import SurgeryPlan

NETS = {
    "vgg16_bn": {"width": 0.25},
    "resnet8": {},
    "mobilenet_v1": {"width": 0.25, "stem_stride": 1},
}


def contract(*, channels=3, side=32):
    return image_classifier(
        channels=channels, height=side, width=side, classes=tuple("abcdefghij"), mean=(0.0,) * channels, std=(1.0,) * channels
    )


def specs_for(net, x, **more):
    """A gate for every dense convolution that a batch norm follows; depthwise ones right after it share its mask."""
    called, names = [], {part: name for name, part in net.named_modules()}
    handles = [
        part.register_forward_hook(lambda part, *_: called.append(part)) for part in net.modules() if not list(part.children())
    ]
    with torch.no_grad():
        net.eval()(x)
    for handle in handles:
        handle.remove()
    called = [part for part in called if isinstance(part, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    specs = []
    for i, (conv, norm) in enumerate(itertools.pairwise(called)):
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d) or conv.groups > 1:
            continue
        points = [names[norm]]
        after = called[i + 2 : i + 4]
        if len(after) == 2 and isinstance(after[0], nn.Conv2d) and after[0].groups == conv.out_channels > 1:
            points.append(names[after[1]])
        specs.append(
            GateSpec(conv=names[conv], points=tuple(points), inputs=conv.in_channels, channels=conv.out_channels, **more)
        )
    return tuple(specs)


def liven(net, *, seed=0):
    """`net` in eval mode with norm statistics that make every channel matter and gates that switch about half of them on."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, scale, middle=0.0):
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale + middle)

    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                normal(part.running_mean, 0.3)
                part.running_var.copy_(torch.rand(part.running_var.shape, generator=generator) + 0.5)
                normal(part.weight, 0.2, 1.0)
                normal(part.bias, 0.3)
        for gate in gates_of(net).values():
            normal(gate.linear.weight, 3.0)
            normal(gate.linear.bias, 0.5)
    return net.eval()


def gated(net, x, *, seed=0, **more):
    """`net` with lively gates."""
    return liven(attach(net, specs_for(net, x, **more)), seed=seed)


def gated_zoo(name, *, side=32, **more):
    torch.manual_seed(0)
    return gated(architectures.get(name)(num_classes=10, **NETS[name]), torch.zeros(1, 3, side, side), **more)


def fix(net, kept):
    """`net` with gates that always keep these channels, by the convolution's path."""
    with torch.no_grad():
        for path, gate in gates_of(net).items():
            gate.linear.weight.zero_()
            gate.linear.bias.fill_(-1)
            gate.linear.bias[list(kept[path])] = 1
    return net


def save_gated(folder, bundle):
    """The Bundle's network with lively gates, saved as a Bundle."""
    net = bundle.module()
    x = torch.zeros(1, *bundle.contract.inputs[0].shape[1:])
    specs = specs_for(net, x)
    net = liven(attach(net, specs))
    plan = SurgeryPlan(edits=bundle.plan.edits, gates=specs)
    manifest = bundle.manifest.model_copy(update={"plan": plan.model_dump(mode="json")})
    return save_bundle(folder, net, manifest, code=bundle.folder / CODE if bundle.manifest.architecture.is_file else None)
