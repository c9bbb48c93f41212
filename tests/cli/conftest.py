"""What tests of the command line start from."""

import pytest

from trimtab.app import main


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Runs a command in a folder of its own: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        code = main([str(a) for a in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
