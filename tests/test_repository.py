"""What the repository promises about itself."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_tables_follow_from_the_committed_results():
    done = subprocess.run(
        [sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_verb_of_the_readme_exists():
    from trimtab.app import app, main

    main(["--version"])
    known = {c.name for c in app.registered_commands} | {g.name for g in app.registered_groups}
    named = set(re.findall(r"^    trimtab ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert named
    assert named <= known


def test_the_shipped_bundle_is_small_and_its_card_tells_its_own_figures():
    import json

    folder = ROOT / "cli" / "assets" / "bundles" / "fashion-mnist"
    assert (folder / "weights.safetensors").stat().st_size <= 2_000_000
    metrics = json.loads((folder / "bundle.json").read_text())["metrics"]
    assert f"{100 * metrics['accuracy']:.2f} %" in (folder / "CARD.md").read_text()


@pytest.mark.slow
def test_the_wheel_built_from_the_sdist_works_elsewhere(tmp_path):
    for step in (
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)],
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site")],
    ):
        extra = [str(next((tmp_path / "dist").glob("*.whl")))] if "pip" in step else []
        subprocess.run([*step, *extra], check=True, capture_output=True)
    code = (
        "import trimtab, pathlib; from trimtab.demo import shipped_bundle; from trimtab.recipes import find_recipe\n"
        "m = shipped_bundle('fashion-mnist').module(); find_recipe('half'); print(pathlib.Path(trimtab.__file__).parent)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(tmp_path / "site" / "trimtab")


def test_the_house_keeps_its_files_short():
    rooms = ("models", "compress", "export", "devices", "cli")
    long = {
        str(p.relative_to(ROOT)): n
        for room in rooms
        for p in (ROOT / room).rglob("*.py")
        if (n := len(p.read_text().splitlines())) > 500
    }
    assert not long
