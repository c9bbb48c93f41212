"""docs/result-json.md against the schema: its example is read, and its tables list every field and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from trimtab.devices.measurement import AAPair, Comparison, Conditions, Measurement, ProfileResult, Skipped
from trimtab.devices.records import Evaluated, InstructionCount, OpRecord, Sustained
from trimtab.export.manifest import UserError

PAGE = Path(__file__).parents[2] / "docs" / "result-json.md"
TABLES = {
    "The file": ProfileResult,
    "`measurements`": Measurement,
    "`conditions`": Conditions,
    "`comparisons`": Comparison,
    "`aa`": AAPair,
    "`ops`": OpRecord,
    "`sustained`": Sustained,
    "`evaluated`": Evaluated,
    "`counts`": InstructionCount,
    "`skipped`": Skipped,
}


def _example() -> dict:
    return json.loads(re.search(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL).group(1))


def test_the_example_is_read(tmp_path):
    path = tmp_path / "iphone.json"
    path.write_text(json.dumps(_example()))
    result = ProfileResult.read_json(path)
    (measured,) = result.measurements
    assert measured.p50_ms == pytest.approx(0.81065)  # the median of its samples
    assert measured.median_precision is None  # two sittings give no interval
    assert result.write_json(tmp_path / "again.json")
    assert ProfileResult.read_json(tmp_path / "again.json") == result


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"p50_ms": 0.5}, "p50_ms 0.5 does not follow from the samples"),
        ({"sittings": [4, 3]}, "do not make 8 samples"),
        ({"mood": "good"}, "Extra inputs are not permitted"),
    ],
)
def test_what_contradicts_the_page_is_refused(tmp_path, change, said):
    example = _example()
    example["measurements"][0].update(change)
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(example))
    with pytest.raises(UserError, match=said):
        ProfileResult.read_json(path)


@pytest.mark.parametrize("title", TABLES)
def test_the_tables_list_every_field_and_which_may_be_left_out(title):
    section = re.search(
        rf"^### {re.escape(title)}.*?(?=^### |\Z)", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ).group()
    rows = re.findall(r"^\| `(\w+)` \|.*\|(.*)\|$", section, re.MULTILINE)
    told = {name: not left_out.strip() for name, left_out in rows}
    fields = TABLES[title].model_fields
    assert told == {name: field.is_required() for name, field in fields.items()}
    assert [name for name, _ in rows] == list(fields)
