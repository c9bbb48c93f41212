"""devices.toml, what --on may say, and one profile at a time."""

from __future__ import annotations

import threading

import pytest

from trimtab.devices import held as module
from trimtab.devices.held import held
from trimtab.devices.known import add_device, config_path, known_devices, open_device, remove_device
from trimtab.export.manifest import UserError


def test_a_device_is_added_found_and_removed_and_comments_stay():
    path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('# the lab\n[bench]\nkind = "local"  # under the desk\n')
    assert add_device("fast", "local", {"cores": [0]}) == path
    assert known_devices() == {"bench": {"kind": "local"}, "fast": {"kind": "local", "cores": [0]}}
    device = open_device("fast")
    assert (device.name, device.cores) == ("fast", (0,))
    assert open_device("local").name == "local"
    with pytest.raises(UserError, match="has a device 'fast' already"):
        add_device("fast", "local", {})
    add_device("fast", "local", {}, force=True)
    assert known_devices()["fast"] == {"kind": "local"}
    remove_device("fast")
    assert "# the lab" in path.read_text()
    assert "# under the desk" in path.read_text()
    with pytest.raises(UserError, match="has no device 'fast'"):
        remove_device("fast")


@pytest.mark.parametrize("name", ["", "local", "-oProxyCommand=x", "a b", "a:b", "x" * 60, "../x"])
def test_names_that_cannot_be(name):
    with pytest.raises(UserError, match="is no name for a device"):
        add_device(name, "local", {})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"coers": [0]}, "a device of kind 'local' has no 'coers'"),
        ({"cores": "zero"}, "cores.*won't do"),
    ],
)
def test_fields_are_checked_before_anything_is_written(fields, said):
    with pytest.raises(UserError, match=said):
        add_device("board", "local", fields)
    assert not config_path().exists()


def test_a_kind_that_is_none():
    with pytest.raises(UserError, match="unknown device 'locl'") as caught:
        add_device("board", "locl", {})
    assert "'local'" in caught.value.hint
    with pytest.raises(UserError, match="'local:x': 'local' takes nothing after a colon"):
        open_device("local:x")


@pytest.mark.parametrize(
    ("text", "said"), [("[a\n", "can't be read"), ("[a]\nhost = 1\n", "has no kind"), ("a = 1\n", "has no kind")]
)
def test_a_damaged_file_is_named(text, said):
    config_path().parent.mkdir(parents=True, exist_ok=True)
    config_path().write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        open_device("local")
    assert str(config_path()) in caught.value.what


def test_settings_override_the_file_by_kind():
    add_device("bench", "local", {"cores": [0]})
    assert open_device("bench", {"local": {"cores": [0, 1]}}).cores == (0, 1)
    assert open_device("bench", {"browser": {"lan": True}}).cores == (0,)


def test_a_second_profile_waits_for_the_first():
    order, inside, may_end = [], threading.Event(), threading.Event()

    def first():
        with held("phone", say=order.append):
            inside.set()
            may_end.wait(30)
            order.append("first ends")

    worker = threading.Thread(target=first)
    worker.start()
    inside.wait(30)
    said = []

    def waiting(text):
        said.append(text)
        may_end.set()  # it has seen that the device is held

    with held("phone", say=waiting):
        order.append("second begins")
    worker.join()
    assert order == ["first ends", "second begins"]
    assert "another profile is running on phone: waiting" in said[0]


def test_waiting_ends_and_other_devices_are_free(monkeypatch):
    with held("phone", say=print), held("board", say=print):
        failed = []

        def second():
            try:
                with held("phone", say=lambda text: None, wait_s=0.1):
                    failed.append("got it")
            except UserError as error:
                failed.append(error.what)

        worker = threading.Thread(target=second)
        worker.start()
        worker.join()
    assert failed == ["another profile has been running on phone for 0 s"]
    assert module.WAIT_S > 60
