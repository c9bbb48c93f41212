"""The report's export part: audits, layers kept in float, verdicts by metric, and what could not be written."""

from html import unescape

import report_kit

from trimtab.export.artifact import Audit, MetricGate, Ranked, Reverts, RevertTrial, Unplaced
from trimtab.record import FailedRecord
from trimtab.report import render

REVERTS = Reverts(
    metric="accuracy",
    samples=2000,
    reference=0.93,
    max_drop=0.005,
    ranking=tuple(Ranked(node=f"/l{i}/<Conv>", op="Conv", sqnr_db=20.0 + i) for i in range(4)),
    trials=(
        RevertTrial(kept=(), metric=0.90, drop=0.03),
        RevertTrial(kept=("/l0/<Conv>",), metric=0.92, drop=0.01),
        RevertTrial(kept=("/l0/<Conv>", "/l1/<Conv>"), metric=0.928, drop=0.002),
    ),
    runtime="onnxruntime",
    latency=1.234,
    latency_low=1.2,
    latency_high=1.3,
    over_fp32=1.71,
)


def changed(**update):
    record = report_kit.record()
    first, *others = record.artifacts
    artifact = first.artifact.model_copy(update=update)
    return record.model_copy(update={"artifacts": (first.model_copy(update={"artifact": artifact}), *others)})


def page(record):
    return " ".join(unescape(render(record)).split())


def test_audits_say_what_was_moved_and_what_delegates_leave():
    left = {"XNNPACK": (Unplaced(op="TOPK_V2", count=2, reason="no kernel"),), "NNAPI": ()}
    html = page(changed(audit=Audit(transposes=3, casts=1, islands={"SOFTMAX": 2}, delegates=left)))
    assert "What the converters did unasked" in html
    assert "2 SOFTMAX" in html
    assert "<strong>XNNPACK</strong> 2 TOPK_V2: no kernel" in html
    assert "<strong>NNAPI</strong> takes everything" in html


def test_layers_in_float_come_with_losses_and_price():
    html = render(changed(reverts=REVERTS, kept_float=("/l0/<Conv>", "/l1/<Conv>")))
    assert "&lt;Conv&gt;" in html  # names are the user's, and escaped
    text = " ".join(unescape(html).split())
    assert (
        "it loses 3.00 points of accuracy on 2 000 validation samples, with 2 in float 0.20; 0.50 are allowed (3 tries)" in text
    )
    assert "Price: 1.23× the time of all integers and 1.71× as fast as fp32 on onnxruntime." in text
    assert text.index("/l0/<Conv>") < text.index("/l1/<Conv>")
    assert "/l3/<Conv>" not in text


def test_nothing_kept_costs_nothing():
    html = page(changed(reverts=REVERTS.model_copy(update={"trials": REVERTS.trials[:1], "latency": None}), kept_float=()))
    assert "with 0 in float 3.00" in html
    assert "Price: none: nothing was kept." in html


def test_a_verdict_by_metric_says_so():
    parity = report_kit.record().artifacts[0].artifact.parity
    gate = MetricGate(name="accuracy", samples=100, reference=0.9, artifact=0.895, drop=0.005, allowed=0.01)
    html = page(changed(parity=parity.model_copy(update={"metric": gate, "reason": "judged by the metric: accuracy 0.8950"})))
    assert "Judged by the metric" in html
    assert "judged by the metric: accuracy 0.8950" in html


def test_what_was_not_written_is_there_with_its_reason():
    failed = (FailedRecord(model="parent", format="coreml", precision="fp16", reason="the converter crashed with SIGSEGV"),)
    html = page(report_kit.record().model_copy(update={"failed": failed}))
    assert "1 artifact could not be written at all" in html
    assert "the converter crashed with SIGSEGV" in html
    nothing = page(report_kit.record().model_copy(update={"failed": failed, "artifacts": (), "profile": None}))
    assert "the converter crashed with SIGSEGV" in nothing


def test_a_run_without_any_of_it_has_no_such_parts():
    html = page(report_kit.record())
    for heading in ("What the converters did unasked", "kept in float", "Judged by the metric", "Not written"):
        assert heading not in html
