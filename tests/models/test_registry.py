import pytest

from trimtab.models.errors import UserError, did_you_mean
from trimtab.models.registry import Registry


def registry():
    r = Registry("thing")
    r.register("alpha", "card a")(1)
    r.register("beta", "card b")(2)
    return r


def test_a_thing_is_found_with_its_card():
    assert registry().get("alpha") == 1
    assert registry().entry("beta").card == "card b"
    assert registry().names() == ["alpha", "beta"]
    assert "alpha" in registry()


def test_a_miss_answers_with_a_did_you_mean():
    with pytest.raises(UserError, match="unknown thing 'alpah'") as caught:
        registry().get("alpah")
    assert "did you mean 'alpha'?" in str(caught.value)


def test_a_far_miss_lists_what_is_known():
    assert did_you_mean("zzz", ["beta", "alpha"]) == "known: alpha, beta"


def test_a_duplicate_is_an_error():
    with pytest.raises(ValueError, match="'alpha' is registered twice"):
        registry().register("alpha", "again")(3)


def test_modules_are_imported_at_the_first_look_up_and_again_after_a_failure():
    r = Registry("thing", modules=("trimtab.no_such_module",))
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError):
            r.names()


@pytest.mark.parametrize("name", ["architectures", "tasks", "methods", "exporters", "runtimes", "devices"])
def test_every_registry_loads_and_every_entry_has_a_card(name):
    from trimtab.compress.method import methods
    from trimtab.devices.device import devices
    from trimtab.devices.runtime import runtimes
    from trimtab.export.exporter import exporters
    from trimtab.models.architectures import architectures
    from trimtab.models.tasks.task import tasks

    entries = list(
        {
            "architectures": architectures,
            "tasks": tasks,
            "methods": methods,
            "exporters": exporters,
            "runtimes": runtimes,
            "devices": devices,
        }[name]
    )
    assert entries
    assert all(entry.card is not None and entry.card.title for entry in entries)
