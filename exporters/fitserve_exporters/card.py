"""The model card: one HTML page that says what a version is, what proves it and how to call it. Needs nothing else.

It is made from the manifest alone, so that the same manifest gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final

from fitserve_contract.manifest import Manifest, TensorSpec
from fitserve_exporters.card_calls import SERVER, client_code, grpcurl_code, triton_code
from fitserve_exporters.card_curves import curves_of, draw
from fitserve_exporters.card_html import Child, Markup, facts, joined, mapping, section, shown, table, tag
from fitserve_exporters.card_proof import accuracy_section, headline, latency_section, verification_section

_MAX_CLASSES: Final = 200
_TRAINING_FACTS: Final = {
    "recipe": "recipe",
    "parameter_count": "parameters",
    "seed": "seed",
    "device": "device",
    "commit": "commit",
    "torch_version": "torch",
}
_SHOWN_APART: Final = frozenset({"config", "data", "compile", "curves", "environment", "metrics", "parameters"})


def model_card(manifest: Manifest) -> bytes:
    """Writes the card of a version, UTF-8.

    Args:
        manifest: What the version says of itself. Any of its strings may hold anything: all are escaped.

    Raises:
        ValueError: a figure is NaN or infinite, which no manifest can hold.
    """
    manifest = Manifest.from_bytes(manifest.to_bytes())
    sections = [
        _call_section(manifest),
        _signature_section(manifest),
        accuracy_section(manifest),
        _curves_section(manifest),
        verification_section(manifest),
        latency_section(manifest),
        _training_section(manifest),
        _artifact_section(manifest),
    ]
    made_with = mapping(manifest.environment.get("packages")).get("fitserve", "")
    body = tag(
        "main",
        _header(manifest),
        sections,
        tag("footer", f"Written by fitserve {shown(made_with)} at {manifest.created_at} from manifest.json beside it."),
    )
    style = Markup((files("fitserve_exporters") / "card.css").read_text(encoding="utf-8"))
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{manifest.model} · model card"),
        tag("style", style),
    ]
    page = tag("html", tag("head", head), tag("body", body), lang="en")
    return f"<!doctype html>\n{page}\n".encode()


def _header(manifest: Manifest) -> Markup:
    return tag(
        "header",
        tag("p", "model card", class_="eyebrow"),
        tag("h1", manifest.model),
        tag("p", _subtitle(manifest), class_="subtitle"),
        tag(
            "ul", [tag("li", tag("b", value), tag("span", name)) for name, value in headline(manifest)], class_="tiles"
        ),
    )


def _subtitle(manifest: Manifest) -> str:
    task = manifest.task
    what = [task.kind.value.replace("_", " ")] if task else ["no task declared"]
    if task and task.class_names:
        what.append(f"{len(task.class_names):,} classes")
    if manifest.training.get("recipe"):
        what.append(f"recipe {shown(manifest.training['recipe'])}")
    return " · ".join([*what, f"published {manifest.created_at}"])


def _call_section(manifest: Manifest) -> Markup:
    code = {
        "Python, fitserve_client": client_code(manifest),
        "Python, tritonclient": triton_code(manifest),
        "Shell, grpcurl": grpcurl_code(manifest),
    }
    blocks = [
        tag("details", tag("summary", name), tag("pre", tag("code", lines)), **({"open": ""} if at == 0 else {}))
        for at, (name, lines) in enumerate(code.items())
    ]
    hint = (
        f"Against a server on {SERVER}. The inputs are zeros of the right shape: put your own in their place. A click "
        "selects a whole block. Unless a version or a label is named, the server answers with its stable version."
    )
    return section("Call it", tag("p", hint, class_="note"), blocks)


def _signature_section(manifest: Manifest) -> Markup:
    rows = [
        *[("input", tag("code", spec.name), spec.datatype, _shape(spec), _meaning(spec)) for spec in manifest.inputs],
        *[("output", tag("code", spec.name), spec.datatype, _shape(spec), _scored(manifest, spec))
          for spec in manifest.outputs],
    ]  # fmt: skip
    classes = manifest.task.class_names if manifest.task else ()
    return section("Signature", table(("", "name", "datatype", "shape", ""), rows), _classes(classes))


def _shape(spec: TensorSpec) -> str:
    if spec.shape is None:
        return "any rank"
    return "(" + ", ".join("?" if axis is None else str(axis) for axis in spec.shape) + ")"


def _meaning(spec: TensorSpec) -> str:
    return "; ".join(["may be left out"] * spec.is_optional + spec.range_texts())


def _scored(manifest: Manifest, spec: TensorSpec) -> str:
    task = manifest.task
    return task.scores.value if task and task.output == spec.name else ""


def _classes(names: Sequence[str]) -> Markup | None:
    if not names:
        return None
    listed = [tag("li", shown(name), value=index) for index, name in enumerate(names[:_MAX_CLASSES])]
    rest = tag("p", f"and {len(names) - _MAX_CLASSES:,} more", class_="note") if len(names) > _MAX_CLASSES else None
    return joined([tag("h3", "Classes"), tag("ol", listed, class_="classes", start=0), rest])


def _curves_section(manifest: Manifest) -> Markup | None:
    curves = curves_of(manifest.training)
    if not curves:
        return None
    return section("Curves", tag("div", [draw(metric, sides) for metric, sides in curves.items()], class_="figures"))


def _training_section(manifest: Manifest) -> Markup | None:
    training = manifest.training
    if not training:
        return None
    known = [(name, shown(training[key])) for key, name in _TRAINING_FACTS.items() if training.get(key) is not None]
    rest = [(key, shown(value)) for key, value in training.items() if key not in {*_TRAINING_FACTS, *_SHOWN_APART}]
    return section("How it was trained", facts([*known, *_compile_fact(training), *rest]), *_training_parts(training))


def _compile_fact(training: Mapping[str, Any]) -> list[tuple[str, Child]]:
    compiled = mapping(training.get("compile"))
    if not compiled:
        return [("torch.compile", shown(training["compile"]))] if training.get("compile") else []
    reason = f": {shown(compiled['reason'])}" if compiled.get("reason") else ""
    return [("torch.compile", f"{shown(compiled.get('used'))}{reason}")]


def _training_parts(training: Mapping[str, Any]) -> Iterator[Child]:
    for title, key in (("Data", "data"), ("Last values", "metrics"), ("Learned", "parameters"), ("Settings", "config")):
        values = mapping(training.get(key))
        if values:
            yield tag("h3", title)
            yield facts([(name.replace("_", " "), shown(value)) for name, value in values.items() if value != {}])


def _artifact_section(manifest: Manifest) -> Markup:
    onnx, environment = manifest.onnx, manifest.environment
    opsets = ", ".join(f"{domain} {shown(number)}" for domain, number in mapping(onnx.get("opset")).items())
    operators = ", ".join(f"{count}× {name}" for name, count in mapping(onnx.get("operators")).items())
    model: list[tuple[str, Child]] = [
        ("size", f"{shown(onnx.get('bytes'))} bytes"),
        ("parameters", shown(onnx.get("parameter_count"))),
        ("opset", opsets),
        ("IR version", shown(onnx.get("ir_version"))),
        ("joining", shown(onnx.get("joining"))),
        ("operators", operators),
    ]
    git = mapping(environment.get("git"))
    commit = f"{shown(git.get('commit'))}{', with changes' if git.get('has_changes') else ''}" if git else "–"
    made = [(name, shown(environment[name])) for name in ("python", "platform", "cpu", "gpus") if environment.get(name)]
    packages = [(name, shown(version)) for name, version in mapping(environment.get("packages")).items()]
    made_with = facts([*made, ("exporter's commit", commit), *packages])
    parts = [tag("h3", "model.onnx"), facts(model), _files(manifest), tag("h3", "Exported with"), made_with]
    return section("Artifact", parts)


def _files(manifest: Manifest) -> Child:
    rows = [
        (
            tag("code", name),
            shown(one.get("bytes")),
            _sampled(one),
            tag("code", shown(one.get("sha256")), class_="hash"),
        )
        for name, one in ((name, mapping(value)) for name, value in manifest.files.items())
    ]
    note = tag("p", "SHA256SUMS in the version's folder covers every file of it, this page too.", class_="note")
    return (
        [tag("h3", "Certificate files"), table(("file", "bytes", "examples", "sha256"), rows), note] if rows else None
    )


def _sampled(one: Mapping[str, Any]) -> str:
    return f"{shown(one.get('example_count'))} of {shown(one.get('sampled_from'))}"
