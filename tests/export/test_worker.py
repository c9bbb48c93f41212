"""Converters in their own processes: crashes, hangs and greed are errors in words, and the other formats go on."""

import os
import signal
import time

import pytest
import torch
from test_convert import CONTRACT, lively
from torch import nn
from user_net import make

from trimtab.export.convert import ConversionError, convert, module_source
from trimtab.export.worker import Limits, Worker
from trimtab.models.errors import UserError
from trimtab.models.source import parse

LIMITS = Limits(seconds=120)


def double(number):
    return 2 * number


def crash():
    os.write(2, b"about to fall over\n")
    os.kill(os.getpid(), signal.SIGSEGV)


def leave():
    os._exit(3)


def hang():
    time.sleep(600)


def fill_memory():
    held = bytearray(1 << 30)
    held[::4096] = b"x" * len(held[::4096])
    time.sleep(600)


def fail():
    raise RuntimeError("no kernel for Foo")


def refuse():
    raise UserError("Foo can't be held", hint="use Bar")


@pytest.fixture(scope="module")
def worker():
    with Worker(LIMITS) as found:
        yield found


def test_one_process_serves_several_orders(worker):
    assert worker.call(os.getpid, label="pid") == worker.call(os.getpid, label="pid") != os.getpid()
    assert worker.call(double, 21, label="double") == 42


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (crash, r"x fp32: the converter crashed with SIGSEGV"),
        (leave, r"x fp32: the converter ended its process \(exit code 3\)"),
        (fail, r"x fp32: the converter failed: RuntimeError: no kernel for Foo"),
    ],
)
def test_a_failure_is_an_error_in_words_and_the_next_order_works(worker, function, message):
    with pytest.raises(UserError, match=message) as caught:
        worker.call(function, label="x fp32")
    assert caught.value.exit_code == 1
    if function is crash:
        assert "about to fall over" in caught.value.hint
    assert worker.call(double, 1, label="double") == 2


def test_a_user_error_stays_one(worker):
    with pytest.raises(UserError, match="Foo can't be held") as caught:
        worker.call(refuse, label="x")
    assert caught.value.hint == "use Bar"
    assert caught.value.exit_code == 2


def test_a_hanging_converter_is_stopped():
    with Worker(Limits(seconds=0.5)) as hasty, pytest.raises(UserError, match=r"not finished after 0\.5 s.*stopped"):
        hasty.call(hang, label="x")


def test_a_greedy_converter_is_stopped():
    with Worker(Limits(memory_gib=0.5)) as small, pytest.raises(UserError, match=r"GiB of memory, more than its 0\.5"):
        small.call(fill_memory, label="x")


def test_what_cannot_travel_is_named():
    with Worker(LIMITS) as found, pytest.raises(UserError, match=r"can't be handed to another process.*generator"):
        found.call(double, (n for n in ()), label="x")


class Deadly(nn.Module):
    """Works here, and kills the process that takes it over."""

    def __init__(self):
        super().__init__()
        self.net = lively(make())

    def forward(self, image):
        return self.net(image)

    def __setstate__(self, state):
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_other_formats_go_on(tmp_path):
    source = module_source(Deadly().eval(), CONTRACT, label="deadly")
    seen = []
    with pytest.raises(ConversionError, match=r"1 of 3 artifacts could not be written") as caught:
        convert(
            source, [("coreml", "fp16"), ("onnx", "fp32"), ("tflite", "fp32")], tmp_path, limits=LIMITS, on_artifact=seen.append
        )
    assert "\n  coreml fp16: the converter crashed with SIGKILL" in caught.value.what
    assert caught.value.exit_code == 1
    assert "are in place" in caught.value.hint
    assert sorted(made.artifact.format for made in seen) == ["onnx", "tflite"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["onnx-fp32", "tflite-fp32"]


def test_the_users_own_network_travels(tmp_path, user_net):
    torch.manual_seed(0)
    module = lively(parse(f"{user_net}:make").build())
    made = convert(
        module_source(module, CONTRACT, label="own"), [("coreml", "fp32"), ("onnx", "fp32")], tmp_path, limits=LIMITS
    )
    assert [m.artifact.format for m in made] == ["coreml", "onnx"]
    assert all(m.ok for m in made)
    here = convert(module_source(module, CONTRACT, label="own"), [("onnx", "fp32")], tmp_path / "here")
    assert here[0].artifact.sha256 == made[1].artifact.sha256
