"""The parts of the model card that carry figures: accuracy with its interval, verification, latency."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from fitserve_contract.manifest import Manifest
from fitserve_exporters.card_html import Child, Markup, facts, mapping, section, shown, table, tag

_SHARES: Final = ("accuracy", "exact_match")
"""Figures that are a share of the examples, and have a Wilson interval beside them."""

_WRITTEN: Final = {
    "exact_match": "exact match",
    "balanced_accuracy": "balanced accuracy",
    "mean_loss": "mean loss",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "mse": "mean squared error",
    "mae": "mean absolute error",
    "r_squared": "R²",
}

_MOST_CLASSES: Final = 40
"""So many classes are shown, of more those with the lowest recall."""

_TORCH: Final = "torch, eager"


def headline(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Gives the few figures that belong at the top: name and value."""
    providers = _providers(manifest)
    for provider, figures in list(providers.items())[:1]:
        metrics = mapping(mapping(figures).get("metrics"))
        share = next((name for name in _SHARES if name in metrics), None)
        if share:
            between = _interval(metrics, share)
            yield f"{_WRITTEN.get(share, share)}{f', 95 %: {between}' if between else ''}", _percent(metrics[share])
        elif metrics.get("r_squared") is not None:
            yield "R² on held-out data", shown(metrics["r_squared"])
        yield "verified on", provider.removesuffix("ExecutionProvider")
    latency = _latency(manifest)
    for rows in list(latency.values())[:1]:
        for row in rows[:1]:
            yield f"p50 at batch size {shown(row.get('batch_size'))}, in process", _milliseconds(row.get("p50_ms"))
    if manifest.onnx.get("parameter_count") is not None:
        yield "parameters", shown(manifest.onnx["parameter_count"])


def accuracy_section(manifest: Manifest) -> Markup | None:
    """Shows what torch and ONNX Runtime scored on the full held-out set; None where nothing was scored."""
    verification = manifest.verification
    side = _TORCH if "torch" in _reference(manifest) else "the reference"
    sides = {side: mapping(verification.get("torch")), **_providers(manifest)}
    metrics = {side: found for side, figures in sides.items() if (found := mapping(mapping(figures).get("metrics")))}
    if not metrics:
        return None
    names = [name for name in next(iter(metrics.values())) if not name.endswith(("_count", "_interval_95", "recalls"))]
    rows = [
        (_WRITTEN.get(name, name), side, _value(found, name), _counted(found, name), _interval(found, name) or "–")
        for name in names
        for side, found in metrics.items()
    ]
    about = f"On the full held-out set: {_data(manifest)}."
    head = ("", "by", "value", "count", "95 % interval (Wilson)")
    return section("Accuracy", tag("p", about, class_="note"), table(head, rows), _recalls(manifest, metrics))


def _recalls(manifest: Manifest, metrics: Mapping[str, Mapping[str, Any]]) -> Markup | None:
    """Shows the recall of each class by side; of many those that the first side finds least."""
    recalls = {side: found["recalls"] for side, found in metrics.items() if isinstance(found.get("recalls"), list)}
    names = manifest.task.class_names if manifest.task else ()
    if not recalls or any(len(values) != len(names) for values in recalls.values()):
        return None
    rows = [(name, *(_recall(values[index]) for values in recalls.values())) for index, name in enumerate(names)]
    first = next(iter(recalls.values()))
    if len(rows) > _MOST_CLASSES:
        known = [index for index, recall in enumerate(first) if isinstance(recall, int | float)]
        rows = [rows[index] for index in sorted(known, key=lambda index: float(first[index]))[:_MOST_CLASSES]]
    hidden = len(names) - len(rows)
    note = f"Recall of each class{f'; {hidden:,} more are in manifest.json' if hidden else ''}."
    return tag("div", tag("p", note, class_="note"), table(("class", *recalls), rows))


def _recall(value: Any) -> str:
    return "no examples" if value is None else _percent(value)


def verification_section(manifest: Manifest) -> Markup | None:
    """Shows ONNX Runtime against torch for each output and batch size; None where there are no figures."""
    providers = _providers(manifest)
    if not providers:
        return None
    tolerance = mapping(manifest.verification.get("tolerance"))
    rule = (
        f"Allowed: {shown(tolerance.get('formula'))}; here factor {shown(tolerance.get('factor'))}, "
        f"rtol {shown(tolerance.get('rtol'))}, atol {shown(tolerance.get('atol'))}. Masks and infinities: within 4 "
        "units in the last place of torch's. Integers and booleans: the same."
    )
    parts: list[Child] = [
        tag("p", f"ONNX Runtime against {_reference(manifest)}, on the same held-out examples. ", rule),
        tag("p", f"Why: {shown(tolerance.get('reason'))}.", class_="note"),
        tag("p", f"Data: {_data(manifest)}.", class_="note"),
    ]
    if manifest.verification.get("float64_gap"):
        parts.append(tag("p", f"No float64 reference: {shown(manifest.verification['float64_gap'])}", class_="note"))
    parts += [tag("p", text, class_="note") for text in (*_rows_text(manifest), *_sizes_texts(manifest))]
    for provider, figures in providers.items():
        parts += [tag("h3", provider), _agreement(mapping(figures)), _differences(mapping(figures))]
    return section("Verification", parts)


def _reference(manifest: Manifest) -> str:
    """Names what ONNX Runtime was held against; versions of before have no such name."""
    return shown(manifest.verification.get("reference") or "eager torch, as trained and in float64")


def _rows_text(manifest: Manifest) -> Iterator[str]:
    rows = mapping(manifest.verification.get("rows"))
    if not rows:
        return
    if rows.get("seen_to_depend"):
        yield f"Rows depend on each other: {shown(rows['seen_to_depend'])}. Requests are never joined."
        return
    tried = f"{shown(rows.get('probe_count'))} rows beside each other and {shown(rows.get('hostile_count'))} hostile"
    proved = "proved independent by the graph" if rows.get("is_proved_by_graph") else shown(rows.get("unproved"))
    yield f"Rows: {proved}; {tried} neighbours, in torch and in ONNX Runtime: none was seen to depend on another."


def _sizes_texts(manifest: Manifest) -> Iterator[str]:
    sizes = manifest.verification.get("sizes")
    for size in map(mapping, sizes if isinstance(sizes, list) else []):
        verified = size.get("verified")
        run = ", ".join(map(shown, verified)) if isinstance(verified, list) else "–"
        note = f"; the bound: {shown(size['note'])}" if size.get("note") else ""
        yield f"Axis '{shown(size.get('axis'))}' was run at sizes {run}{note}."


def latency_section(manifest: Manifest) -> Markup | None:
    """Shows how long a batch took where that was measured; None elsewhere."""
    rows = [
        (
            provider,
            shown(row.get("batch_size")),
            _milliseconds(row.get("p50_ms")),
            _milliseconds(row.get("p99_ms")),
            shown(row.get("run_count")),
        )
        for provider, measured in _latency(manifest).items()
        for row in measured
    ]
    if not rows:
        return None
    cpu, count = manifest.environment.get("cpu"), manifest.environment.get("cpu_count")
    about = (
        f"ONNX Runtime in process while it was exported ({shown(cpu)}, {shown(count)} cores; its default threads): "
        "without gRPC. fitserve-bench measures the server."
    )
    head = ("provider", "batch size", "p50", "p99", "runs")
    return section("Latency", tag("p", about, class_="note"), table(head, rows))


def _providers(manifest: Manifest) -> Mapping[str, Any]:
    return mapping(manifest.verification.get("providers"))


def _latency(manifest: Manifest) -> dict[str, list[Mapping[str, Any]]]:
    written = mapping(manifest.verification.get("latency"))
    return {
        str(provider): [mapping(row) for row in rows] for provider, rows in written.items() if isinstance(rows, list)
    }


def _data(manifest: Manifest) -> str:
    data = mapping(manifest.verification.get("data"))
    return f"{shown(data.get('source'))}, {shown(data.get('example_count'))} examples"


def _agreement(figures: Mapping[str, Any]) -> Markup | None:
    agreement = mapping(figures.get("agreement"))
    if not agreement:
        return None
    pairs: list[tuple[str, Child]] = [
        (
            "answers the same as torch's",
            f"{shown(agreement.get('same_count'))} of {shown(agreement.get('example_count'))}",
        ),
        ("ties within the tolerance", shown(agreement.get("tie_count"))),
        ("of these answered differently", shown(agreement.get("tie_difference_count"))),
        ("other differences", shown(agreement.get("difference_count"))),
    ]
    return facts(pairs)


def _differences(figures: Mapping[str, Any]) -> Markup:
    head = (
        "output",
        "batch size",
        "examples",
        "max |diff|",
        "mean |diff|",
        "max ULPs",
        "onnxruntime − float64",
        "torch − float64",
        "nearest to its bound",
        "allowed there",
        "",
    )
    batches = figures.get("batches")
    rows = [
        _difference_row(str(name), mapping(batch), mapping(output))
        for batch in (batches if isinstance(batches, list) else [])
        for name, output in mapping(mapping(batch).get("outputs")).items()
    ]
    return table(head, rows)


def _difference_row(name: str, batch: Mapping[str, Any], output: Mapping[str, Any]) -> list[Child]:
    return [
        tag("code", name),
        shown(batch.get("batch_size")),
        shown(batch.get("example_count")),
        _small(output.get("max_abs_diff")),
        _small(output.get("mean_abs_diff")),
        shown(output.get("max_ulps")),
        _small(output.get("ort_max_error")),
        _small(output.get("torch_max_error")),
        _small(output.get("worst_error")),
        _small(output.get("worst_tolerance")),
        _verdict(output),
    ]


def _verdict(output: Mapping[str, Any]) -> Markup:
    if output.get("beyond_count") == 0 and output.get("sentinel_mismatch_count") == 0:
        return tag("span", "within", class_="chip good")
    return tag("span", "beyond", class_="chip bad")


def _value(metrics: Mapping[str, Any], name: str) -> str:
    return _percent(metrics[name]) if name in _SHARES else shown(metrics.get(name))


def _counted(metrics: Mapping[str, Any], name: str) -> str:
    count = metrics.get("correct_count" if name == "accuracy" else f"{name}_count")
    return "–" if count is None else f"{shown(count)} of {shown(metrics.get('example_count'))}"


def _interval(metrics: Mapping[str, Any], name: str) -> str:
    interval = metrics.get(f"{name}_interval_95")
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        return ""
    return f"{_percent(interval[0])} to {_percent(interval[1])}"


def _percent(value: Any) -> str:
    return f"{value:.2%}".replace("%", " %") if isinstance(value, int | float) else shown(value)


def _milliseconds(value: Any) -> str:
    if not isinstance(value, int | float):
        return "–"
    return f"{value:.3g} ms" if value >= 0.1 else f"{value * 1e3:.3g} µs"


def _small(value: Any) -> str:
    return f"{value:.2e}" if isinstance(value, int | float) else shown(value)
