"""report.html: one page per run that stands alone, and an index of all runs below a folder.

Curves are inline SVG, pictures are inline PNG; the page asks nothing of the network. Shapes: N examples, C classes.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor

from fitserve_contract.tasks import TaskKind
from fitserve_training import rundir
from fitserve_training.answers import Answers
from fitserve_training.data.dataset import DataSet
from fitserve_training.html import inline_svg, number, page, pairs, section, table
from fitserve_training.recipe import Finish, Recipe

_WORST_COUNT = 24
_LARGEST_CONFUSION = 40
_MOST_VALUES = 8
_MARKS = ("[CLS]", "[SEP]", "[PAD]")


def write_report(recipe: Recipe, finish: Finish, outputs: Tensor, folder: Path) -> Path:
    """Writes the page of a run from what its folder holds and from the outputs for the held-out examples, (N, …)."""
    summary, environment = (_read(folder / name) for name in (rundir.SUMMARY, rundir.ENVIRONMENT))
    held_out = finish.data.held_out
    answers = Answers(recipe.objective.kind, outputs, held_out.targets)
    title = f"{recipe.name} on {finish.data.name}"
    body = [
        f"<h1>{escape(title)}</h1><p>{escape(finish.data.source)} · {escape(summary['device'])} · "
        f"{escape(environment['started_at'])}</p>",
        _tiles(summary),
        section("Published figures", _bands(summary)) if summary["published"] else "",
        section("Curves", f'<div class="pictures">{"".join(_pictures(folder))}</div>'),
        section(*_scores(answers, finish.data)),
        section("Classes", _classes(summary["classes"])) if summary.get("classes") else "",
        section("Worst held-out examples", _worst(answers, finish.data)),
        '<div class="columns"><div>',
        section("Settings", pairs(finish.config.to_flat())),
        "</div><div>",
        section("Environment", pairs(environment)),
        section("Data", pairs(summary["data"])),
        "</div></div>",
    ]
    path = folder / rundir.REPORT
    path.write_text(page(title, body), encoding="utf-8")
    return path


def write_index(runs: Path) -> Path:
    """Writes `runs`/index.html, which links the report of every finished run in `runs`, at most two folders deep."""
    reports = sorted({*runs.glob(f"*/{rundir.REPORT}"), *runs.glob(f"*/*/{rundir.REPORT}")})
    rows = "".join(_index_row(path, runs) for path in reports if rundir.is_finished(path.parent))
    names = ("run", "recipe", "data", "epochs", "result", "published", "")
    head = "".join(f"<th>{name}</th>" for name in names)
    body = f'<h1>Runs</h1><div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    path = runs / "index.html"
    path.write_text(page("Runs", [body]), encoding="utf-8")
    return path


def _index_row(report: Path, runs: Path) -> str:
    summary = _read(report.parent / rundir.SUMMARY)
    shown = [f"{key.removeprefix('test_').replace('_', ' ')} {number(value)}" for key, value in _test_metrics(summary)]
    inside = [band["is_inside"] for band in summary["published"]]
    verdict = "no published band" if not inside else "inside" if all(inside) else "outside"
    place = report.relative_to(runs)
    cells = (summary["recipe"], summary["data"]["name"], str(summary["epoch"]), ", ".join(shown), verdict)
    link = f'<td><a href="{escape(quote(str(place)))}">{escape(str(place.parent))}</a></td>'
    pictures = "".join(
        f' <a href="{escape(quote(str(path.relative_to(runs))))}">{escape(path.stem)}</a>'
        for path in sorted(report.parent.glob("*.svg"))
    )
    return f"<tr>{link}{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}<td>{pictures}</td></tr>\n"


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _test_metrics(summary: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in summary.items() if key.startswith("test_") and isinstance(value, float)]


def _tiles(summary: dict[str, Any]) -> str:
    keys = [key for key in summary if key.startswith(("train_", "val_", "test_"))]
    values = {key.replace("_", " "): summary[key] for key in keys if summary[key] is not None}
    values |= {"parameters": f"{summary['parameter_count']:,}", "epochs": summary["epoch"], "seed": summary["seed"]}
    if summary["examples_per_s"]:
        values["examples/s"] = float(f"{summary['examples_per_s']:.3g}")
    tiles = (f'<div class="tile"><b>{escape(number(v))}</b><span>{escape(k)}</span></div>' for k, v in values.items())
    learned = summary["parameters"]
    return f'<div class="tiles">{"".join(tiles)}</div>' + (section("Learned", pairs(learned)) if learned else "")


def _bands(summary: dict[str, Any]) -> str:
    rows = (
        (
            band["metric"].replace("_", " "),
            f"{number(band['low'])} to {number(band['high'])}",
            band["value"],
            "inside" if band["is_inside"] else "OUTSIDE",
        )
        for band in summary["published"]
    )
    return table(("figure", "published", "this run", ""), rows)


def _pictures(folder: Path) -> Iterator[str]:
    for place, path in enumerate(sorted(folder.glob("*.svg"))):
        yield f"<figure>{inline_svg(path.read_text(encoding='utf-8'), f'p{place}')}</figure>"


def _scores(answers: Answers, data: DataSet) -> tuple[str, str]:
    if answers.kind is TaskKind.CLASSIFICATION:
        return "Confusion matrix", _confusion(answers, data.class_names)
    if answers.kind is TaskKind.MULTI_LABEL:
        return "Labels", _per_label(answers.per_label(), data.class_names)
    return "", ""


def _confusion(answers: Answers, names: tuple[str, ...]) -> str:
    if len(names) > _LARGEST_CONFUSION:
        return f"<p>{len(names)} classes: too many to show.</p>"
    counts = answers.confusion()
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = []
    for true, row in enumerate(counts):
        cells = "".join(
            f'<td{" class=right" if true == predicted else ""} style="background:rgba(37,99,168,'
            f'{0.75 * count / max(1, sum(row)):.2f})">{count or ""}</td>'
            for predicted, count in enumerate(row)
        )
        rows.append(f"<tr><th>{escape(names[true])}</th>{cells}</tr>")
    what = "<p>Rows: true class. Columns: predicted class. Held-out examples.</p>"
    grid = f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'{what}<div class="scroll"><table class="confusion">{grid}</table></div>'


def _classes(classes: list[dict[str, Any]]) -> str:
    """Shows the figures of each class; of many those with the lowest recall."""
    shown = classes
    if len(classes) > _LARGEST_CONFUSION:
        known = [each for each in classes if each["recall"] is not None]
        shown = sorted(known, key=lambda each: float(each["recall"]))[:_LARGEST_CONFUSION]
    keys = ("example_count", "predicted_count", "recall", "precision", "f1")
    rows = ((each["name"], *("–" if each[key] is None else each[key] for key in keys)) for each in shown)
    hidden = len(classes) - len(shown)
    note = (
        f"<p>{hidden} more classes, of higher recall or without examples: summary.json has all.</p>" if hidden else ""
    )
    return table(("class", "true", "predicted", "recall", "precision", "F1"), rows) + note


def _per_label(counts: list[tuple[int, int, int]], names: tuple[str, ...]) -> str:
    rows = (
        (
            name,
            true,
            predicted,
            right / predicted if predicted else 0.0,
            right / true if true else 0.0,
            2 * right / (predicted + true) if predicted + true else 0.0,
        )
        for name, (right, predicted, true) in zip(names, counts, strict=True)
    )
    return table(("label", "true", "predicted", "precision", "recall", "F1"), rows)


def _worst(answers: Answers, data: DataSet) -> str:
    places = answers.worst(_WORST_COUNT)
    losses = answers.losses()
    inputs = data.held_out.subset(torch.tensor(places, dtype=torch.int64)).whole().inputs
    if answers.kind is not TaskKind.REGRESSION and _is_image(inputs[0]):
        figures = (
            f"<figure>{_picture(image)}<figcaption>{escape(_verdict(answers, data, i))}<br>"
            f"loss {losses[i]:.3g}, example {i}</figcaption></figure>"
            for i, image in zip(places, inputs[0], strict=True)
        )
        return f'<div class="worst">{"".join(figures)}</div>'
    rows = (
        (i, _example_text([x[row] for x in inputs], data), _verdict(answers, data, i), losses[i].item())
        for row, i in enumerate(places)
    )
    return table(("example", "input", "answer", "loss"), rows)


def _is_image(inputs: Tensor) -> bool:
    return inputs.ndim == 4 and inputs.shape[1] in (1, 3) and min(inputs.shape[2:]) > 1


def _picture(image_CHW: Tensor) -> str:
    """Makes an image element of values in 0..1."""
    from PIL import Image

    pixels = (image_CHW.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _verdict(answers: Answers, data: DataSet, place: int) -> str:
    output, target = answers.outputs[place], answers.targets[place]
    if answers.kind is TaskKind.CLASSIFICATION:
        predicted, share = int(output.argmax()), output.softmax(0).max().item()
        if predicted == int(target):
            return f"{data.class_names[predicted]}, right ({share:.0%})"
        return f"{data.class_names[int(target)]}, taken for {data.class_names[predicted]} ({share:.0%})"
    if answers.kind is TaskKind.MULTI_LABEL:
        true, said = (_names(each, data.class_names) for each in (target.bool(), output >= 0))
        return f"{true}; predicted: {said}"
    return f"{_values(target)}; predicted: {_values(output)}"


def _names(is_there: Tensor, names: tuple[str, ...]) -> str:
    return ", ".join(names[int(i)] for i in is_there.nonzero().flatten()) or "none"


def _example_text(inputs: Sequence[Tensor], data: DataSet) -> str:
    if "tokenizer.json" in data.files and not inputs[0].is_floating_point():
        return _sentence(data.files["tokenizer.json"], inputs[0][inputs[1].bool()])
    return "; ".join(map(_values, inputs))


def _sentence(tokenizer_json: bytes, ids: Tensor) -> str:
    """Joins word pieces again; a tokenizer need not say how, and its marks are nothing that anybody wrote."""
    from tokenizers import Tokenizer, decoders

    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    pieces = [str(tokenizer.id_to_token(number)) for number in ids.tolist()]
    return str(decoders.WordPiece().decode([piece for piece in pieces if piece not in _MARKS]))


def _values(tensor: Tensor) -> str:
    values = tensor.flatten().tolist()
    shown = ", ".join(f"{value:.5g}" for value in values[:_MOST_VALUES])
    return shown + (f", … ({len(values)} values)" if len(values) > _MOST_VALUES else "")
