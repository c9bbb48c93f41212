"""What the report and the page of profiles show of devices, the CSV files, and `trimtab compare` at the command line."""

import csv
import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from devices_kit import counted, device_profile, long_run, on, op_record
from report_kit import artifacts, digest, profile, record
from test_report_browser import CHROMIUM, WIDTHS, look

from trimtab.devices.measurement import Measurement, ProfileResult, Skipped
from trimtab.devices.records import Evaluated, OpRecord
from trimtab.models.errors import UserError
from trimtab.profile_export import MEASUREMENTS, OPERATIONS, write_csv, write_ops_csv
from trimtab.profile_page import merge, read_profiles, render_profiles, write_profile_page
from trimtab.report import render
from trimtab.report_ops import ops_views
from trimtab.report_sustained import sustained_views
from trimtab.report_text import significant

DOCS = Path(__file__).parents[2] / "docs" / "devices-report.md"
NASTY = "<script>alert('x')</script>"


def text_of(page):
    body = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    text = unescape(re.sub(r"<[^>]+>", " ", body)).replace("\u202f", " ").replace("\xa0", " ")
    return re.sub(r"\s+([.,;:)])", r"\1", re.sub(r"\s+", " ", text))


def part(page, begin, end):
    """The text from the heading or id `begin` to `end`."""
    return text_of("<b " + page[page.index(begin) : page.index(end)])


@pytest.fixture(scope="module")
def whole():
    """(profile, page)."""
    result = device_profile()
    return result, render_profiles([result])


def test_the_matrix_has_a_cell_for_every_artifact_on_every_device(whole):
    result, page = whole
    table = re.search(r'<caption id="matrix-c">.*?</table>', page, flags=re.DOTALL).group()
    header, *rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in table.split("<tr>")[1:]]
    assert header == ["Artifact", *result.devices]
    cells = {text_of(row[0]).strip(): [text_of(cell).strip() for cell in row[1:]] for row in rows}
    assert all(len(row) == len(result.devices) for row in cells.values())
    m = result.measurements[0]
    low, high = significant(m.median_low_ms), significant(m.median_high_ms)
    assert cells[m.label][0] == f"{significant(m.p50_ms)} ms onnxruntime · {low}–{high}"
    assert cells["compressed-tflite-int8"][1] == "wrong outputs litert · 9.3 dB where 25.0 dB are asked"
    assert cells["compressed-tflite-int8"][0] == "not asked for"
    assert cells["compressed-coreml-fp16"][0] == "not measured Core ML models run on Apple devices alone"
    assert cells["parent-tflite-fp32"][3] == "5 144 025 instructions litert · counted, not timed"


def test_wrong_outputs_that_were_timed_by_force_are_called_wrong_first():
    result = profile(artifacts())
    forced = result.measurements[0].model_copy(update={"outputs_ok": False})
    page = render_profiles([result.model_copy(update={"measurements": (forced, *result.measurements[1:])})])
    assert f"wrong outputs onnxruntime · timed all the same: {significant(forced.p50_ms)} ms" in text_of(page)


def test_emulated_times_are_nowhere_on_the_page(whole):
    result, page = whole
    board = [m for m in result.measurements if m.conditions.emulated]
    assert len(board) == 4
    text = text_of(page)
    assert "Emulated: these milliseconds are no device's latency." in text
    assert "emulated: no latency litert · outputs as golden" in text
    known = {significant(v) for m in result.measurements if not m.conditions.emulated for v in (m.p50_ms, m.p90_ms, m.p99_ms)}
    shown = unescape(page).replace("\u202f", " ")
    for m in board:
        for value in (m.p50_ms, m.p90_ms, m.p99_ms, m.median_low_ms):
            assert significant(value) in known or f"{significant(value)} ms" not in shown
            assert significant(value) in known or f">{significant(value)}<" not in shown
    assert 'aria-label="Distributions of latency on litert 2.3.0 on emulated board' not in page


def test_devices_and_runtimes_are_told_apart(whole):
    _, page = whole
    titles = re.findall(r"<h3>(.*?)</h3>", page)
    for title in ("litert 2.3.0 on local", "litert 2.3.0 on pixel", "litert 2.3.0 on emulated board"):
        assert titles.count(title) == 1
    facts = re.findall(r"Conditions of the litert 2.3.0 on pixel measurements</summary>.*?</dl>", page, flags=re.DOTALL)
    assert "the CPU of pixel" in facts[0]
    assert "Example CPU" not in facts[0]


def test_a_run_on_two_devices_claims_the_speed_up_of_each():
    result = merge([profile(artifacts()), on(profile(artifacts()), "pixel", factor=6.0)])
    text = text_of(render(record(profile=result, steps=())))
    assert "On onnxruntime 1.32.0 (local, fp32) the median goes from" in text
    assert "On onnxruntime 1.32.0 (pixel, fp32) the median goes from" in text
    assert "Speed-up, onnxruntime on pixel" in text


def test_the_waterfall_has_ten_operations_and_the_rest_and_says_what_it_is(whole):
    result, page = whole
    view = ops_views(result.ops, {("parent-tflite-fp32", "pixel", "litert"): 3.73})[0]
    assert [row.name for row in view.rows[-2:]] == [result.ops[0].top()[-1][0].name, "other"]
    assert len(view.rows) == 11
    assert sum(row.share for row in view.rows) == pytest.approx(1)
    assert view.rows[-1].kind == "4 operations"
    assert (
        "Together 4.40 ms an inference under the profiler (mean of 50 inferences), where the median without it is 3.73 ms"
        in view.caption
    )
    assert "profiling costs time" in view.caption
    assert view.caption.endswith("Times of fused operations are of the whole group.")
    assert f"{view.rows[0].name} {100 * view.rows[0].share:.1f}\xa0%" in view.plot
    assert "5 144 025 instructions an inference, counted under emulation; no time" in text_of(page)


def test_few_operations_have_no_other():
    record = op_record("net", "pixel", "litert")
    few = record.model_copy(update={"ops": record.ops[:3]})
    assert [row.name for row in ops_views([few], {})[0].rows] == [op.name for op in few.ops]


def test_where_operations_ran_is_told_with_their_number_and_share(whole):
    result, page = whole
    table = part(page, 'id="placement-c"', "Nothing is known of the operations")
    (gpu, gpu_share), (xnn, xnn_share) = result.ops[0].placement().values()
    assert f"pixel litert GPU {gpu} {100 * gpu_share:.1f} time" in table
    assert f"pixel litert XNNPACK {xnn} {100 * xnn_share:.1f} time" in table


def test_what_has_no_operations_says_why(whole):
    text = text_of(whole[1])
    assert "parent-tflite-fp32 on local, onnxruntime: its profiler was not built in" in text
    assert "parent-tflite-fp32 on emulated board, litert: timed under emulation" in text
    idle = OpRecord(label="net", device="local", runtime="mnn")
    page = render_profiles([profile(artifacts()).model_copy(update={"ops": (idle,)})])
    assert "net on local, mnn: the runtime's profiler told no time" in text_of(page)


def test_throttling_is_marked_and_a_steady_run_is_not():
    hot, steady = sustained_views([long_run("net", "pixel", "litert", hot=True), long_run("net", "b", "litert", hot=False)])
    assert hot.verdict.startswith("throttled: the last fifth of the run takes 1.3")
    assert ">throttled</text>" in hot.plot
    assert "temperature (°C)" in hot.plot
    assert "temperature (°C): 34 to 48." in hot.plot
    assert steady.verdict.startswith("not throttled")
    assert "throttled</text>" not in steady.plot


def test_a_short_run_a_cut_one_and_an_emulated_one_claim_nothing():
    short = long_run("net", "pixel", "litert", hot=True, windows=6, warmth=False).model_copy(update={"partial": True})
    fake = long_run("net", "board", "litert", hot=True).model_copy(update={"emulated": True})
    cut, emulated = sustained_views([short, fake])
    assert cut.verdict == "too short to tell: 6 windows, where ten are needed"
    assert cut.throttled is None
    assert cut.note == "Ran 60.0 s of 10 min 00 s, ended early. The device tells neither its temperature nor its clock."
    assert emulated.plot is None
    assert "emulated" in emulated.verdict


def test_the_clock_is_shown_where_no_temperature_is_known():
    run = long_run("net", "pixel", "litert", hot=True, warmth=False)
    points = tuple(p.model_copy(update={"clock_mhz": 2000.0 - i}) for i, p in enumerate(run.points))
    assert "clock (MHz)" in sustained_views([run.model_copy(update={"points": points})])[0].plot


def test_metrics_on_the_device_stand_beside_this_computers(whole):
    table = part(whole[1], 'id="metrics-c"', "Over few samples")
    assert "pixel litert accuracy 0.9280 500 0.9300 −0.0020 local, litert, 500 samples fashion-mnist" in table
    assert "local litert accuracy 0.9300 500 – – – fashion-mnist" in table


def test_metrics_on_the_device_stand_beside_the_networks_own_in_a_run():
    result = profile(artifacts())
    told = Evaluated(
        label="compressed-tflite-fp32",
        device="pixel",
        runtime="litert",
        data="d",
        samples=50,
        metrics={"accuracy": 0.9},
        seconds=1.0,
    )
    page = render(record(profile=result.model_copy(update={"evaluated": (told,)}), steps=()))
    table = part(page, 'id="metrics-c"', "Over few samples")
    assert "accuracy 0.9000 50 0.9231 −0.0231 the network itself, 10 000 samples d" in table


def test_counts_are_instructions_with_their_ratio():
    rows = (counted("a", "fp32", 1000, 1000), counted("b", "int8", 500, 510), counted("c", "fp32", 7, core="cortex-a53"))
    page = render_profiles([profile(artifacts()).model_copy(update={"counts": rows})])
    table = part(page, 'id="counts-c"', '<section id="files"')
    assert "a tflite fp32 cortex-a76 litert 2.3.0 1 000 1.000 2, all equal as golden" in table
    assert "b tflite int8 cortex-a76 litert 2.3.0 510 0.510 2, 500 to 510 as golden" in table
    assert "c tflite fp32 cortex-a53 litert 2.3.0 7 1.000 counted once as golden" in table
    assert "ms" not in table.split()


def test_every_plot_has_a_text_in_its_place(whole):
    plots = re.findall(r"<svg[^>]*>", whole[1])
    assert len(plots) == 4 + 6 + 2 + 2  # ridges but for the emulated board, forests, waterfalls, long runs
    for plot in plots:
        assert 'role="img"' in plot
        assert len(re.search(r'aria-label="([^"]*)"', plot).group(1)) > 40


def test_a_profile_with_nothing_in_it_still_makes_a_page():
    nothing = ProfileResult(trimtab="0.1.0", devices=("pixel",), preset="quick", seed=0, budget_s=1.0, partial=True)
    text = text_of(render_profiles([nothing]))
    assert "Nothing was measured on pixel." in text
    assert "The measurement was interrupted" in text


def test_foreign_names_are_escaped():
    result = device_profile()
    rows = tuple(m.model_copy(update={"label": NASTY}) for m in result.measurements)
    ops = tuple(o.model_copy(update={"device": NASTY}) for o in result.ops)
    page = render_profiles([result.model_copy(update={"measurements": rows, "ops": ops, "devices": (NASTY,)})], names=[NASTY])
    assert "<script" not in page


# several files


def test_files_of_different_devices_make_one_table():
    here, phone = profile(artifacts()), on(profile(artifacts()), "pixel", factor=6.0)
    both = merge([here, phone])
    assert both.devices == ("local", "pixel")
    assert [m.label for m in both.measurements] == [m.label for m in (*here.measurements, *phone.measurements)]
    assert both.aa == (*here.aa, *phone.aa)


def test_the_same_artifact_measured_twice_stays_two_rows_with_their_files():
    result = profile(artifacts())
    both = merge([result, result], names=["old.json", "new.json"])
    assert {m.label for m in both.measurements} == {
        f"{m.label} ({n}.json)" for m in result.measurements for n in ("old", "new")
    }
    labels = {m.label for m in both.measurements}
    assert all({c.a, c.b} <= labels for c in both.comparisons)
    assert both.warnings[0].startswith("old.json: ")
    page = render_profiles([result, result], names=["old.json", "new.json"])
    assert "parent-onnx-fp32 (old.json)" in page
    assert "parent-onnx-fp32 (new.json) against itself (A/A)" in text_of(page)


def test_one_label_for_different_files_is_told_apart_on_different_devices_too():
    here, phone = profile(artifacts()), on(profile(artifacts()), "pixel")
    other = phone.measurements[0].model_copy(update={"sha256": digest("other")})
    phone = phone.model_copy(update={"measurements": (other, *phone.measurements[1:])})
    labels = [m.label for m in merge([here, phone], names=["a", "b"]).measurements]
    assert labels.count("parent-onnx-fp32 (a)") == labels.count("parent-onnx-fp32 (b)") == 1
    assert labels.count("parent-tflite-fp32") == 2


def test_what_one_file_measured_and_another_refused_at_the_same_place_is_not_one_row():
    here = profile(artifacts())
    wrong = Skipped(label="parent-onnx-fp32", runtime="onnxruntime", device="local", kind="wrong outputs", reason="5 dB")
    there = here.model_copy(update={"measurements": (), "comparisons": (), "aa": (), "ops": (), "skipped": (wrong,)})
    assert merge([here, there], names=["a", "b"]).skipped[-1].label == "parent-onnx-fp32 (b)"


def test_merging_nothing_or_one_file_twice_is_refused():
    with pytest.raises(UserError, match="no profile was given"):
        merge([])
    with pytest.raises(UserError, match="names of their own"):
        merge([profile(artifacts())] * 2, names=["a", "a"])


def test_profiles_are_read_and_named_by_their_files(tmp_path):
    result = profile(artifacts())
    (tmp_path / "x").mkdir()
    paths = [result.write_json(tmp_path / "a.json"), result.write_json(tmp_path / "x" / "a.json")]
    assert [s.name for s in read_profiles(paths[:1])] == ["a.json"]
    sources = read_profiles(paths)
    assert [s.name for s in sources] == [str(p) for p in paths]
    out = write_profile_page([s.profile for s in sources], tmp_path / "page.html", names=["a", "b"])
    assert out.read_text() == render_profiles([result, result], names=["a", "b"])


# in a browser


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH, so the page can't be looked at")
def test_the_page_fits_a_phone_and_no_text_of_a_plot_is_cut(tmp_path, whole):
    result, page = whole
    long = "a_name_without_any_place_to_break_" * 5
    ops = tuple(o.model_copy(update={"device": long, "note": long}) for o in result.ops)
    runs = tuple(s.model_copy(update={"label": long}) for s in result.sustained)
    wide = render_profiles(
        [result.model_copy(update={"ops": (*ops, *ops), "sustained": runs, "devices": (long,)})], names=[long]
    )
    for number, each in enumerate((page, wide)):
        folder = tmp_path / str(number)
        folder.mkdir()
        found, complaints = look(folder, each)
        assert complaints == []
        assert [m["width"] for m in found] == list(WIDTHS)
        for measured in found:
            assert measured["scroll"] <= measured["width"], measured
            assert measured["outside"] == [], measured
            assert measured["cut"] == []
            assert measured["overlaps"] == []
            assert measured["smallest"] >= 8.5  # CSS px on the narrowest screen
            assert measured["loaded"] == []


# CSV


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_csv_has_every_measurement_with_its_percentiles_and_conditions(tmp_path):
    result = device_profile()
    rows = rows_of(write_csv(result, tmp_path / "p.csv"))
    assert len(rows) == len(result.measurements)
    for row, m in zip(rows, result.measurements, strict=True):
        for percent in (50, 90, 99):
            assert float(row[f"p{percent}_ms"]) == np.percentile(m.samples_ns, percent) / 1e6
        assert float(row["median_low_ms"]) == m.median_low_ms
        assert row["device"] == m.conditions.device
        assert row["emulated"] == str(m.conditions.emulated).lower()
        assert row["temperature_before_c"] == ""  # the kit's machine does not tell
        assert float(row["clock_after_mhz"]) == 2794.5
        assert row["shapes"] == "image=1x1x28x28"
        assert row["affinity"] == "0 1"
        assert row["hints"] == "precision=float32 graph_optimisation=all"


def test_every_figure_and_condition_of_a_measurement_is_in_the_csv():
    m = device_profile().measurements[0]
    elsewhere = {"samples_ns", "inputs_ns", "block", "conditions"}  # raw samples are the JSON's; block has its unit in the name
    assert set(m.model_dump()) - elsewhere <= set(MEASUREMENTS)
    flat = {"before", "after", "cpu_quota", "affinity_reason"}  # as governor_before …, cpu_quota_cores; reasons are the JSON's
    assert set(m.conditions.model_dump()) - flat <= set(MEASUREMENTS)


def test_the_csv_of_operations_has_a_row_each(tmp_path):
    result = device_profile()
    rows = rows_of(write_ops_csv(result, tmp_path / "ops.csv"))
    assert len(rows) == sum(len(o.ops) for o in result.ops)
    first = [row for row in rows if row["device"] == "pixel"]
    assert [row["position"] for row in first] == [str(i) for i in range(1, 15)]
    assert sum(float(row["share"]) for row in first) == pytest.approx(1)
    assert {row["unit"] for row in rows} == {"ns", "instructions"}


def test_a_name_is_no_formula_in_a_spreadsheet(tmp_path):
    result = profile(artifacts())
    bad = result.measurements[0].model_copy(update={"label": '=HYPERLINK("x")', "sqnr_db": -3.5})
    row = rows_of(write_csv(result.model_copy(update={"measurements": (bad,)}), tmp_path / "p.csv"))[0]
    assert row["label"] == '\'=HYPERLINK("x")'
    assert row["sqnr_db"] == "-3.5"


@pytest.mark.parametrize(("name", "columns"), [("measurements", MEASUREMENTS), ("operations", OPERATIONS)])
def test_the_documentation_lists_the_columns_as_they_are(name, columns):
    told = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", DOCS.read_text(), flags=re.DOTALL).group(1)
    wanted = "".join(f"| `{column}` | {what} |\n" for column, (what, _) in columns.items())
    assert told == "| column | what it holds |\n|---|---|\n" + wanted


# trimtab compare


@pytest.fixture
def two(tmp_path):
    """(old, new): a network of 2 ms, and 20 % slower."""
    old = profile(artifacts())
    slow = [
        m.model_copy(update={"samples_ns": tuple(1.2 * s for s in m.samples_ns)}) if m.runtime == "onnxruntime" else m
        for m in old.measurements
    ]
    new = old.model_copy(update={"measurements": tuple(Measurement.model_validate(m.model_dump()) for m in slow)})
    return old.write_json(tmp_path / "old.json"), new.write_json(tmp_path / "new.json")


def test_compare_fails_on_a_proven_slow_down_and_passes_below_the_limit(cli, two):
    code, said, _ = cli("compare", *two)
    assert code == 1
    assert "too slow: parent-onnx-fp32 on local, onnxruntime: +20.0% (allowed 0.0%)" in said
    assert "not proven" in said
    assert cli("compare", *two, "--max-slowdown", "15%")[0] == 1
    assert cli("compare", *two, "--max-slowdown", "0.25")[0] == 0
    assert cli("compare", two[0], two[0])[0] == 0
    assert cli("compare", two[1], two[0])[0] == 0  # faster is no failure


def test_compare_tells_machines(cli, two):
    code, said, _ = cli("compare", *two, "--json")
    told = json.loads(said)
    assert code == 1
    assert told["failed"]
    assert [change["significant"] for change in told["changes"]] == [True, True, False, False]
    assert told["changes"][0]["ratio"] == pytest.approx(1.2)


def test_compare_refuses_unequal_conditions_until_forced(cli, two):
    data = json.loads(two[1].read_text())
    for m in data["measurements"]:
        m["conditions"]["threads"] = 4
    two[1].write_text(json.dumps(data))
    code, _, complaint = cli("compare", *two)
    assert code == 2
    assert "threads: 1 → 4" in complaint
    code, said, _ = cli("compare", *two, "--force", "--max-slowdown", "30%")
    assert code == 0
    assert "warning: conditions differ: threads: 1 → 4" in said


def test_compare_fails_when_something_is_no_longer_measured(cli, two):
    data = json.loads(two[0].read_text())
    data["measurements"] = data["measurements"][1:]
    less = two[0].with_name("less.json")
    less.write_text(json.dumps(data))
    code, said, _ = cli("compare", two[0], less)
    assert code == 1
    assert "not in the later profile: parent-onnx-fp32 on local, onnxruntime: that profile does not mention it" in said
    assert cli("compare", two[0], less, "--allow-missing")[0] == 0
    assert cli("compare", less, two[0])[0] == 0


@pytest.mark.parametrize("limit", ["x", "-5%", "nan", "2000%"])
def test_a_limit_that_is_no_share_is_refused(cli, two, limit):
    code, _, complaint = cli("compare", *two, f"--max-slowdown={limit}")
    assert code == 2
    assert limit in complaint
