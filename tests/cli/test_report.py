import itertools
import json
import math
import re
import subprocess
import sys
from html import unescape

import numpy as np
import pytest
from report_kit import artifacts, gated_step, history, model, parity, profile, record, routed_step, steps

from trimtab.models.errors import UserError
from trimtab.record import RunRecord
from trimtab.report import load_record, render, write_report
from trimtab.report_text import fixed, plain, seconds, si, signed, significant, size

NASTY = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def whole():
    """(the record, its page, the page's text without tags and with plain spaces)."""
    run = record()
    page = render(run)
    return run, page, text_of(page)


def text_of(page):
    body = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    text = unescape(re.sub(r"<[^>]+>", " ", body)).replace("\u202f", " ")
    return re.sub(r"\s+([.,;:)])", r"\1", re.sub(r"\s+", " ", text)).replace("( ", "(")


def light(**changes):
    """The record without its costly plots."""
    return record(**({"profile": None, "steps": ()} | changes))


def section(page, name):
    return text_of(re.search(rf'<section id="{name}".*?</section>', page, flags=re.DOTALL).group())


def swap(entry, **changes):
    return entry.model_copy(update={"artifact": entry.artifact.model_copy(update=changes)})


def test_the_summary_says_the_records_own_figures(whole):
    run, _, text = whole
    before, after = (m.metrics["accuracy"] for m in run.models)
    error = 100 * math.sqrt(before * (1 - before) / 10_000 + after * (1 - after) / 10_000)
    assert f"{100 * before:.2f} % to {100 * after:.2f} %" in text
    assert f"a change of −{100 * (before - after):.2f} points (standard error {error:.2f} points)" in text
    assert f"(MAC ratio {run.models[0].macs / run.models[1].macs:.2f})" in text
    assert f"(ratio {run.models[0].params / run.models[1].params:.2f})" in text
    assert f"onnx fp32 1.09 MB → 568 kB ({1_092_000 / 567_840:.2f}× smaller)" in text
    assert "5 of 6 artifacts proven to compute the same function; 1 rejected (compressed-tflite-fp16)." in text


def test_the_speed_up_is_the_one_of_the_samples(whole):
    run, page, text = whole
    a, b = (np.asarray(m.samples_ns) for m in run.profile.measurements[:2])
    # The statistic anew: median over ten sittings of the median over their rounds of log ratios.
    speedup = math.exp(np.median([np.median(part) for part in np.split(np.log(a / b), 10)]))
    told = run.profile.comparisons[0]
    assert told.speedup == pytest.approx(speedup, rel=1e-12)  # the same floats in the same order but for one subtraction
    assert (
        f"speed-up {speedup:.2f}× (95 % CI {told.low:.2f}–{told.high:.2f}; noise floor ±{100 * told.noise_floor:.1f} %)" in text
    )
    latency = section(page, "latency")
    for percent in (50, 90, 99):
        assert f" {significant(np.percentile(a, percent) / 1e6)} " in latency
    assert f" {speedup:.3f} {told.low:.3f}–{told.high:.3f} " in latency


def test_a_difference_within_noise_is_not_called_a_speed_up(whole):
    run, _, text = whole
    assert not run.profile.comparisons[1].significant
    sentence = re.search(r"On litert.*?noise floor", text).group()
    assert "no proven difference" in sentence
    assert "speed-up" not in sentence


def test_emulated_milliseconds_never_make_a_speed_up():
    text = text_of(render(record(profile=profile(artifacts(), emulated=True))))
    assert "No speed-up is claimed" in text
    assert "hardware that is not emulated" in text
    assert "Emulated: these milliseconds are no device's latency." in text
    assert "Ratio under emulation" in text
    assert "speed-up 1" not in text.lower()


def test_few_rounds_give_no_interval():
    page = render(record(profile=profile(artifacts(), rounds=7)))
    assert "too few sittings for an interval" in text_of(page)
    assert "With fewer than 100 rounds p99 lies near the slowest sample." in text_of(page)
    assert "no proven difference" in text_of(page)


def test_without_a_profile_the_latency_section_says_why():
    page = render(record(profile=None))
    assert "Not measured: this run has no profile." in section(page, "latency")
    assert "No speed-up is claimed: latency was not measured in this run." in section(page, "summary")
    assert "No latency axis" in section(page, "tradeoff")


def test_what_was_not_measured_is_listed_with_its_reason(whole):
    latency = section(whole[1], "latency")
    assert "compressed-coreml-fp16: Core ML models run on Apple devices alone" in latency
    assert "compressed-tflite-fp16: failed its parity check: its speed would mean nothing" in latency


def test_one_reason_for_many_is_said_once():
    runs = profile(artifacts())
    twice = runs.skipped[0].model_copy(update={"label": "parent-coreml-fp16", "runtime": "coreml"})
    told = section(render(record(profile=runs.model_copy(update={"skipped": (*runs.skipped, twice)}), steps=())), "latency")
    assert "compressed-coreml-fp16, parent-coreml-fp16 on coreml: Core ML models run on Apple devices alone" in told


def test_a_rejected_artifact_is_marked_in_words_and_with_its_reason(whole):
    _, page, _ = whole
    row = re.search(r'<tr class="rejected">.*?</tr>', page, flags=re.DOTALL).group()
    assert "compressed-tflite-fp16" in row
    assert "✗ rejected" in text_of(row)
    assert "✓" not in row
    assert "stage3.2.conv2 overflows half precision on 3 of 64 inputs" in section(page, "parity")


def test_what_a_download_costs_stands_beside_the_size_and_a_dash_where_it_is_unknown():
    told = swap(artifacts()[0], deflated_bytes=123_400)
    page = section(render(light(artifacts=(told, artifacts()[1]), profile=None)), "parity")
    assert "Size (kB) Download (kB)" in page
    assert "1 092.0 123.4" in page
    assert "1 092.0 123.4" not in section(render(light(artifacts=artifacts()[:2], profile=None)), "parity")


def test_an_artifact_whose_parity_failed_is_never_called_proven():
    bad = swap(artifacts()[0], parity=parity(ok=False, db=12.0, evaluator="onnxruntime", reason="12.0 dB"))
    page = render(light(artifacts=(bad.model_copy(update={"status": "accepted"}),), profile=None))
    assert "0 of 1 artifact proven to compute the same function; 1 rejected" in text_of(page)


def test_bit_exact_parity_is_infinite_not_broken():
    exact = swap(artifacts()[0], parity=parity(db=math.inf, evaluator="onnxruntime"))
    assert " ∞ 60.0 0 " in section(render(light(artifacts=(exact,), profile=None)), "parity")


def test_the_layer_table_holds_both_networks(whole):
    run, page, _ = whole
    layers = section(page, "layers")
    for path in ("stage1.0.conv1", "stage3.2.conv2", "fc"):
        a, b = (next(layer for layer in m.layers if layer.path == path) for m in run.models)
        cells = [" ".join((" × ".join(map(str, x.output)), f"{x.macs:,}", f"{x.params:,}")) for x in (a, b)]
        kept = f"{100 * b.macs / a.macs:.1f}"
        assert f"{path} {a.kind} {cells[0]} {cells[1]} {kept}".replace(",", " ") in layers
    assert "relu" not in layers  # neither MACs nor params: not worth a row


def test_a_layer_that_is_gone_stays_in_the_table():
    parent, small = record().models
    gone = small.model_copy(update={"layers": tuple(layer for layer in small.layers if layer.path != "stage2.1.conv2")})
    assert re.search(r"stage2.1.conv2 Conv2d [\d× ]+ – – – 0.0 ", section(render(light(models=(parent, gone))), "layers"))


def test_steps_show_config_figures_and_curves(whole):
    _, page, _ = whole
    told = section(page, "steps")
    assert "1. structured 41.7 s" in told
    assert "2. distill 22 min 41 s" in told
    assert "target_macs 0.5" in told
    assert "macs_before 31 239 296" in told
    assert "conv1 and fc are kept" in told
    assert page.count('aria-label="train_loss by epoch: 0.5212 at epoch 1') == 1
    assert 'aria-label="val accuracy by epoch' in page


def test_histories_of_another_make_are_left_out():
    odd = [None, [], {}, {"epochs": []}, {"epochs": [1, 2]}, {"epochs": [{"loss": "x"}, {"loss": math.nan}]}, "text", 3]
    many = tuple(steps()[1].model_copy(update={"figures": {"history": history}}) for history in odd)
    page = render(light(steps=many))
    assert "8. distill" in text_of(page)
    assert "-curve-" not in page


def test_a_bare_list_of_epochs_is_a_history_too():
    step = steps()[1].model_copy(update={"figures": {"history": history()["epochs"]}})
    assert 'aria-label="train_loss by epoch' in render(light(steps=(step,)))


def test_provenance_names_what_is_needed_to_do_it_again(whole):
    run, page, _ = whole
    told = section(page, "provenance")
    for fact in (
        run.command,
        run.created,
        run.data_id,
        run.models[0].bundle,
        run.models[1].bundle,
        "torch 2.13.0",
        "train 1 822.4 reused",
    ):
        assert fact in told
    for entry in run.artifacts:
        assert entry.artifact.sha256 in told


def test_every_foreign_name_is_escaped():
    parent, small = record().models
    parent = parent.model_copy(
        update={
            "architecture": NASTY,
            "layers": (parent.layers[1].model_copy(update={"path": NASTY, "kind": NASTY}), *parent.layers[2:]),
            "metrics": parent.metrics | {NASTY: 0.5},
        }
    )
    entry = artifacts()[0]
    contract = entry.artifact.contract.model_copy(update={"classes": (NASTY,)})
    entry = swap(entry, name=NASTY, ops={NASTY: 1}, warnings=(NASTY,), contract=contract)
    step = steps()[0].model_copy(
        update={"kind": NASTY, "config": {NASTY: NASTY}, "figures": {NASTY: [NASTY] * 9}, "notes": (NASTY,)}
    )
    run = light(
        title=NASTY,
        command=NASTY,
        data=NASTY,
        metric=NASTY,
        models=(parent, small),
        steps=(step,),
        artifacts=(entry,),
        host={NASTY: NASTY},
    )
    page = render(run)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_name_with_dollars_is_no_formula():
    parent, small = record().models
    first = parent.layers[1].model_copy(update={"path": r"block$\frac{1}{2}$"})
    assert r"block$\frac{1}{2}$" in render(light(models=(parent.model_copy(update={"layers": (first,)}), small)))


def test_the_page_asks_for_nothing_from_outside(whole):
    _, page, _ = whole
    assert not re.search(r"https?://|//[a-z]+\.|@import|<script|<link(?! rel=\"icon\" href=\"data:,\")|<iframe|<object", page)
    assert re.findall(r'\b(?:src|xlink:href|srcset)="', page) == []
    assert {h[0] for h in re.findall(r'href="([^"]*)"', page)} == {"#", "d"}
    assert "default-src 'none'" in page
    assert len(page.encode()) < 1_500_000


def test_ids_are_unique_and_every_reference_has_its_target(whole):
    _, page, _ = whole
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    aimed = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)|aria-labelledby="([^"]+)"', page)
    assert {next(filter(None, groups)) for groups in aimed} <= set(ids)


def test_plots_have_words_and_the_pages_colours(whole):
    _, page, _ = whole
    plots = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(plots) == 3 + 1 + 4 + 4  # three trade-offs, layers, two a runtime, four curves
    assert all(re.search(r'role="img"', plot) and len(re.search(r'aria-label="([^"]*)"', plot).group(1)) > 30 for plot in plots)
    assert not re.search(r"#0101[0-9a-f]{2}", page)  # stand-ins that were not replaced
    assert "font-family" not in "".join(plots)


def test_tables_can_be_read_aloud(whole):
    _, page, _ = whole
    for table in re.findall(r"<table>.*?</table>", page, flags=re.DOTALL):
        assert "<caption" in table
        assert all("scope=" in head for head in re.findall(r"<th\b[^>]*>", table))
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_equal_records_give_equal_pages(whole):
    run, page, _ = whole
    assert render(RunRecord.model_validate_json(run.model_dump_json())) == page


def test_one_network_alone_is_described_not_compared():
    page = render(light(models=(model("parent", 1.0, 0.9268),), artifacts=artifacts()[:1]))
    assert "Nothing was compressed, so there is nothing to compare." in text_of(page)
    assert "No step was run" in text_of(page)
    assert "MAC ratio</dt>" not in page


def test_another_metric_gets_no_binomial_error():
    networks = tuple(
        m.model_copy(update={"metrics": {"psnr_db": v}}) for m, v in zip(record().models, (31.5, 30.75), strict=True)
    )
    text = text_of(render(light(models=networks, metric="psnr_db")))
    assert "from 31.50 to 30.75, a change of −0.7500." in text
    assert "No standard error is given: psnr_db is not a share of independent hits." in text


def test_a_metric_nobody_has_is_said_to_be_missing():
    text = text_of(render(light(metric="auroc")))
    assert "no common figure for auroc" in text
    assert "Not drawn: no network of this run has a figure for auroc." in text


def test_a_deep_network_draws_its_costliest_layers_and_says_so():
    parent, small = record().models
    many = tuple(parent.layers[1].model_copy(update={"path": f"block{i}", "macs": 1000 + i}) for i in range(60))
    page = render(light(models=(parent.model_copy(update={"layers": many}), small.model_copy(update={"layers": many}))))
    plot = re.search(r'<figure class="tall">.*?</figure>', page, flags=re.DOTALL).group()
    assert "12 cheaper ones are in the table only" in plot
    assert ">block12<" in plot
    assert ">block11<" not in plot
    assert "block11" in section(page, "layers")


def test_an_empty_record_still_makes_a_page():
    bare = model("parent", 1.0, 0.9).model_copy(update={"layers": (), "metrics": {}, "macs": 0, "params": 0})
    text = text_of(render(light(models=(bare, bare.model_copy(update={"name": "compressed"})), artifacts=())))
    assert "Nothing was exported in this run, so no artifact is proven." in text
    assert "The record lists no layer with MACs." in text


def test_a_report_is_written_into_a_folder_or_to_a_file(tmp_path, whole):
    run, page, _ = whole
    assert write_report(run, tmp_path) == tmp_path / "report.html"
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    assert write_report(run, tmp_path / "other.html").read_text(encoding="utf-8") == page


def test_a_record_is_read_from_its_folder_or_file(tmp_path, whole):
    (tmp_path / "run.json").write_text(whole[0].model_dump_json())
    assert load_record(tmp_path) == load_record(tmp_path / "run.json") == whole[0]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a run's folder: it holds no run\.json") as caught:
        load_record(tmp_path)
    assert "finished run" in caught.value.hint
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_record(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format_version": 1, "tit', "is not valid JSON"),
        ("[1, 2]", "format_version None, this trimtab reads 1"),
        ('{"format_version": 2}', "format_version 2, this trimtab reads 1"),
        ('{"format_version": 1, "title": "x"}', "created: Field required"),
    ],
)
def test_a_damaged_record_is_refused_with_its_reason(tmp_path, content, message):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_record(tmp_path)
    assert "run.json" in str(caught.value)
    assert caught.value.hint


def test_a_field_of_the_wrong_type_is_named(tmp_path, whole):
    data = json.loads(whole[0].model_dump_json())
    data["models"][1]["macs"] = "many"
    (tmp_path / "run.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"models\.1\.macs: Input should be a valid integer"):
        load_record(tmp_path)


def test_a_report_needs_no_torch():
    code = "import sys, trimtab.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (si(31_239_296), "31.2\u00a0M"),
        (si(999_600), "1.00\u00a0M"),
        (si(640), "640"),
        (significant(0.00012345), "0.000123"),
        (significant(3.1e-8, 2), "3.1e−8"),
        (significant(math.inf), "∞"),
        (significant(math.nan), "–"),
        (fixed(-0.001), "0.00"),
        (fixed(1234567.5, 1), "1\u202f234\u202f567.5"),
        (signed(0.004), "0.00"),
        (signed(0.37), "+0.37"),
        (signed(-0.37), "−0.37"),
        (size(999), "999\u00a0B"),
        (size(296_512), "297\u00a0kB"),
        (seconds(0.4217), "0.422 s"),
        (seconds(1361), "22 min 41 s"),
        (seconds(7500), "2 h 05 min"),
        (plain(True), "yes"),
        (plain({"N": 1, "H": 32}), "N = 1, H = 32"),
        (plain([0.1, None]), "0.1, –"),
    ],
)
def test_numbers_are_written_for_readers(made, expected):
    assert made == expected


# ---------------------------------------------------------------- networks that adapt to their input


@pytest.fixture(scope="module")
def adaptive():
    """The page of a run with gates and branches."""
    parent, small = record().models
    return render(
        light(steps=(gated_step(), routed_step()), models=(parent, small.model_copy(update={"macs_worst": 44_700_000})))
    )


def test_gates_that_do_not_look_are_called_static(adaptive):
    text = section(adaptive, "dynamic")
    assert "1 of 2 gates do not look at their input" in text
    rows = {
        cells[0]: cells for cells in (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in adaptive.split("<tr")) if cells
    }
    verdict = {path: text_of(rows[path][1]).strip() for path in ("conv1", "conv2")}
    assert verdict == {"conv1": "dynamic", "conv2": "static"}
    assert "MACs saved, estimated 40.0 % MACs saved, realised 36.0 %" in text.replace("\u00a0", " ")
    assert "stem.depthwise a depthwise convolution that no gated one feeds" in text


def test_the_class_map_has_a_cell_for_every_pair(adaptive):
    figures = gated_step().figures["diversity"]["classes"]
    (plot,) = re.findall(r"<svg[^>]*off the diagonal.*?</svg>", adaptive, flags=re.DOTALL)
    numbers = re.findall(r">(\d+)</text>", plot)
    assert sorted(map(int, numbers)) == sorted(round(100 * value) for row in figures for value in row)
    apart = [value for i, row in enumerate(figures) for j, value in enumerate(row) if i != j]
    assert f"between {min(apart):.2f} and {max(apart):.2f}" in plot
    many = render(light(steps=(gated_step(samples=200, classes=50),)))
    assert "The heat map of 50 classes is not drawn" in text_of(many)


def test_branches_are_shown_with_the_way_between_them(adaptive):
    text = section(adaptive, "dynamic")
    assert "expected 11.6 M, at most 44.7 M" in text.replace("\u00a0", " ")
    assert "Thresholds 0.9761, 0.8127" in text
    assert "chosen: 93.70 % at 37.0 %" in adaptive
    assert "61.3" in text
    assert "0.898" in text
    assert "on average over test samples, 44.7 M at most" in text_of(adaptive).replace("\u00a0", " ")


def test_a_run_without_gates_has_no_such_part(whole):
    assert 'id="dynamic"' not in whole[1]
    assert "#dynamic" not in whole[1]


def test_the_spread_over_inputs_is_the_one_of_the_samples():
    exported = artifacts()
    timed = profile(exported, rounds=60)
    times = tuple(float(1e5 * k) for k in range(1, 65))
    first = timed.measurements[0].model_copy(update={"inputs_ns": times})
    page = text_of(render(light(profile=timed.model_copy(update={"measurements": (first, *timed.measurements[1:])}))))
    wanted = f"over 64 real inputs, one by one, the median is 3.25 ms and p99 {np.percentile(times, 99) / 1e6:.2f} ms"
    assert page.count("takes as long as its input asks") == 1
    assert wanted in page.replace("\u00a0", " ")
