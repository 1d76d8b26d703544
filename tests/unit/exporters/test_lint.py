"""One bad model for each thing that lint looks for."""

import json
import os
from pathlib import Path

import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from fitserve_contract.onnx_file import read_facts
from fitserve_exporters.cli import main
from fitserve_exporters.lint import Level, LintReport, lint, trial
from fitserve_exporters.lint.cuda import placements
from fitserve_exporters.lint.graphs import OnnxFile
from fitserve_service.session import Session, SessionError, SessionOptions

GOOD = """
<ir_version: 10, opset_import: ["" : 18]>
g (float[batch, 4] x) => (float[batch, 2] y) <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}> { y = MatMul (x, w) }
"""


def saved(folder: Path, model: onnx.ModelProto | str) -> Path:
    path = folder / "model.onnx"
    parsed = parser.parse_model(model) if isinstance(model, str) else model
    path.write_bytes(parsed.SerializeToString())
    return path


def found(report: LintReport, check: str) -> list[tuple[Level, str]]:
    return [(finding.level, finding.message) for finding in report.findings if finding.check == check]


def test_model_with_a_free_batch_can_be_served(tmp_path: Path) -> None:
    report = lint(saved(tmp_path, GOOD))
    assert report.can_be_served
    assert found(report, "batch") == [(Level.NOTE, "the first axis is free: tried with 1, 2 and 3 examples")]


def test_joining_is_told_as_the_server_decides_it(tmp_path: Path) -> None:
    [(level, message)] = found(lint(saved(tmp_path, GOOD)), "joining")
    assert (level, message.split(":")[0]) == (Level.NOTE, "joinable")
    (tmp_path / "model.onnx").write_bytes(builders.mean_over_batch())
    [(_, message)] = found(lint(tmp_path / "model.onnx"), "joining")
    assert message.startswith("not joinable: node 'mean' (ReduceMean over axis 0); each request runs alone")
    (tmp_path / "model.onnx").write_bytes(builders.fixed_shape())
    [(_, message)] = found(lint(tmp_path / "model.onnx"), "joining")
    assert "its first axis is fixed" in message


@pytest.mark.parametrize("content", [b"", b"no protobuf at all", b"\x08\x0a"])
def test_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    report = lint(path)
    assert not report.can_be_served
    assert found(report, "file")[0][0] is Level.ERROR


def test_truncated_file(tmp_path: Path) -> None:
    path = saved(tmp_path, GOOD)
    path.write_bytes(path.read_bytes()[:-7])
    assert not lint(path).can_be_served


def test_fixed_batch_names_the_input_and_that_no_node_needs_it(tmp_path: Path) -> None:
    report = lint(
        saved(tmp_path, GOOD.replace("float[batch, 4]", "float[5, 4]").replace("float[batch, 2]", "float[5, 2]"))
    )
    assert report.can_be_served
    [(level, message)] = found(report, "batch")
    assert level is Level.WARNING
    assert "'x' 5" in message
    assert "no node needs it" in message


def test_fixed_batch_names_the_node_that_hard_codes_it(tmp_path: Path) -> None:
    report = lint(
        saved(
            tmp_path,
            """
            <ir_version: 10, opset_import: ["" : 18]>
            g (float[4, 2, 3] x) => (float[4, 6] y) <int64[2] to = {4, 6}> {
                h = Relu (x)
                [the_culprit] y = Reshape (h, to)
            }
            """,
        )
    )
    assert report.can_be_served
    [(level, message)] = found(report, "batch")
    assert level is Level.WARNING
    assert "the_culprit" in message


def test_batch_declared_free_but_hard_coded_is_a_warning(tmp_path: Path) -> None:
    report = lint(
        saved(
            tmp_path,
            """
            <ir_version: 10, opset_import: ["" : 18]>
            g (float[batch, 2, 3] x) => (float[batch, 6] y) <int64[2] to = {1, 6}> { [culprit] y = Reshape (x, to) }
            """,
        )
    )
    assert report.can_be_served
    [(level, message)] = found(report, "batch")
    assert level is Level.WARNING
    assert "culprit" in message


def test_output_that_does_not_follow_the_batch_names_the_node(tmp_path: Path) -> None:
    report = lint(
        saved(
            tmp_path,
            """
            <ir_version: 10, opset_import: ["" : 18]>
            g (float[batch, 3] x) => (float[1, 3] y) <int64[1] axes = {0}> {
                a = Relu (x)
                [mean_over_all] b = ReduceMean <keepdims = 1> (a, axes)
                y = Relu (b)
            }
            """,
        )
    )
    assert report.can_be_served
    [(level, message)] = found(report, "batch")
    assert level is Level.WARNING
    assert "'mean_over_all' (ReduceMean)" in message


def test_model_without_axes_runs_alone(tmp_path: Path) -> None:
    report = lint(
        saved(tmp_path, '<ir_version: 10, opset_import: ["" : 18]> g (float x) => (float y) { y = Relu (x) }')
    )
    assert report.can_be_served
    assert found(report, "batch")[0][0] is Level.NOTE


@pytest.mark.parametrize(
    ("domain", "name"), [("", "NoSuchOperator"), ("com.microsoft", "NoSuchOperator"), ("my.domain", "Relu")]
)
def test_operator_that_the_runtime_lacks(tmp_path: Path, domain: str, name: str) -> None:
    model = parser.parse_model(GOOD)
    model.graph.node[0].op_type, model.graph.node[0].domain, model.graph.node[0].name = name, domain, "here"
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    report = lint(saved(tmp_path, model))
    assert not report.can_be_served
    [(level, message)] = found(report, "operators")
    assert level is Level.ERROR
    assert name in message
    assert "'here'" in message


def test_operator_that_is_newer_than_the_opset(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 13]> g (float[b, 4] x) => (float[b, 4] y) { y = Gelu (x) }'
    report = lint(saved(tmp_path, text))
    assert "expected opset 20 or later, got 13" in found(report, "operators")[0][1]


def test_contributed_operator_of_the_runtime_is_known(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1]>
    g (float[b, 4] x) => (float[b, 4] y) { y = com.microsoft.Gelu (x) }
    """
    assert lint(saved(tmp_path, text)).can_be_served


@pytest.mark.parametrize(("key", "value"), [("ir", 99), ("opset", 99)])
def test_versions_that_the_runtime_does_not_read(tmp_path: Path, key: str, value: int) -> None:
    model = parser.parse_model(GOOD)
    if key == "ir":
        model.ir_version = value
    else:
        model.opset_import[0].version = value
    report = lint(saved(tmp_path, model))
    assert not report.can_be_served
    [(level, message)] = found(report, "opset")
    assert level is Level.ERROR
    assert f"got {value}" in message


def test_opset_older_than_guaranteed_is_a_warning(tmp_path: Path) -> None:
    report = lint(
        saved(tmp_path, '<ir_version: 3, opset_import: ["" : 6]> g (float[b, 4] x) => (float[b, 4] y) { y = Relu (x) }')
    )
    assert report.can_be_served
    assert found(report, "opset")[0][0] is Level.WARNING


def with_external_weights(folder: Path, location: str, *, offset: str = "0", length: str = "32") -> Path:
    model = parser.parse_model(GOOD)
    tensor = model.graph.initializer[0]
    for field in ("float_data", "raw_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    return saved(folder, model)


def test_external_data_beside_the_model_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(np.ones(8, np.float32).tobytes())
    report = lint(with_external_weights(tmp_path, "weights.bin"))
    assert report.can_be_served, report
    [(level, message)] = found(report, "external_data")
    assert level is Level.WARNING
    assert "weights.bin" in message


@pytest.mark.parametrize("location", ["missing.bin", "../outside.bin", "/etc/passwd", "link.bin", "twice.bin", ""])
def test_external_data_elsewhere_is_an_error(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "version"
    folder.mkdir()
    outside = tmp_path / "outside.bin"
    outside.write_bytes(np.ones(8, np.float32).tobytes())
    (folder / "link.bin").symlink_to(outside)
    os.link(outside, folder / "twice.bin")
    report = lint(with_external_weights(folder, location))
    assert not report.can_be_served
    assert found(report, "external_data")[0][0] is Level.ERROR


@pytest.mark.parametrize(("offset", "length"), [("8", "32"), ("-8", "8"), ("0", str(2**50))])
def test_external_data_beyond_its_file_is_an_error(tmp_path: Path, offset: str, length: str) -> None:
    (tmp_path / "weights.bin").write_bytes(np.ones(8, np.float32).tobytes())
    report = lint(with_external_weights(tmp_path, "weights.bin", offset=offset, length=length))
    assert [level for level, _ in found(report, "external_data")] == [Level.ERROR]


@pytest.mark.parametrize(("value", "level"), [(np.nan, Level.ERROR), (np.inf, Level.WARNING), (-np.inf, Level.WARNING)])
def test_weights_that_are_no_numbers(tmp_path: Path, value: float, level: Level) -> None:
    model = parser.parse_model(GOOD)
    weights = np.ones((4, 2), np.float32)
    weights[1, 1] = value
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    report = lint(saved(tmp_path, model))
    assert report.can_be_served == (level is not Level.ERROR)
    [(seen, message)] = found(report, "weights")
    assert seen is level
    assert "'w'" in message
    assert "1 of 8" in message


def test_nan_in_a_constant_node_is_found(tmp_path: Path) -> None:
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> g (float[b] x) => (float[b] y) { c = Identity (x) y = Add (x, c) }'
    )
    constant = numpy_helper.from_array(np.array([np.nan], np.float32))
    model.graph.node[0].CopyFrom(helper.make_node("Constant", [], ["c"], value=constant))
    assert not lint(saved(tmp_path, model)).can_be_served


def test_input_that_nothing_reads(tmp_path: Path) -> None:
    report = lint(saved(tmp_path, GOOD.replace("float[batch, 4] x)", "float[batch, 4] x, float[batch] spare)")))
    assert report.can_be_served
    [(level, message)] = found(report, "inputs")
    assert level is Level.WARNING
    assert "'spare'" in message


def test_input_that_only_a_branch_reads_is_used(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 18]>
    g (bool flag, float[batch, 4] a, float[batch, 4] b) => (float[batch, 4] y) {
        y = If (flag) <then_branch = t () => (float[batch, 4] p) { p = Relu (a) },
                       else_branch = e () => (float[batch, 4] q) { q = Relu (b) }>
    }
    """
    report = lint(saved(tmp_path, text))
    assert found(report, "inputs") == []
    assert report.can_be_served, report


IDENTITY = '<ir_version: 8, opset_import: ["" : 18]> g (float[N, 3, {0}, {0}] x) => (float y) {{ y = Relu (x) }}'


@pytest.mark.parametrize("axis", ["?", "None", "", "-1"])
def test_axes_without_a_name_are_free(tmp_path: Path, axis: str) -> None:
    model = parser.parse_model(IDENTITY.format("S"))
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = axis
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert lint(saved(tmp_path, model)).can_be_served


@pytest.mark.parametrize("index", [0, 1])
def test_a_size_below_zero_is_a_free_axis(tmp_path: Path, index: int) -> None:
    model = parser.parse_model(GOOD.replace("4] x", "K] x"))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[index].dim_value = -1
    model.graph.node[0].CopyFrom(helper.make_node("Relu", ["x"], ["y"]))
    report = lint(saved(tmp_path, model))
    assert report.can_be_served, report
    assert [level for level, _ in found(report, "batch")] == [Level.NOTE], report


ONE_MORE = [builders.value("f", ("B",))], [builders.value("r", ("B",))], [helper.make_node("Relu", ["f"], ["r"])]
SEQUENCE = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))


def cast_model(datatype: int, *, what: str, is_alone: bool) -> bytes:
    """A Cast from or to a datatype, with or without a second output that is served."""
    source, target = (datatype, TensorProto.FLOAT) if what == "input" else (TensorProto.FLOAT, datatype)
    inputs, outputs = [builders.value("x", ("B",), source)], [builders.value("y", ("B",), target)]
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=target)]
    if not is_alone:
        inputs, outputs, nodes = inputs + ONE_MORE[0], outputs + ONE_MORE[1], nodes + ONE_MORE[2]
    return builders.model(nodes, inputs, outputs)


@pytest.mark.parametrize(
    ("content", "level", "texts"),
    [
        (builders.scaled(), None, []),
        (builders.optional_tensor(), None, []),
        (builders.zipmap_like(), Level.WARNING, ["'probabilities'", "a sequence of maps", "{'zipmap': False}"]),
        (
            cast_model(TensorProto.FLOAT8E5M2, what="output", is_alone=False),
            Level.WARNING,
            ["'y'", "float8e5m2", "Cast"],
        ),
        (cast_model(TensorProto.FLOAT8E5M2, what="output", is_alone=True), Level.ERROR, ["'y'", "float8e5m2", "Cast"]),
        (cast_model(TensorProto.INT4, what="output", is_alone=False), Level.WARNING, ["'y'", "int4", "Cast"]),
        (cast_model(TensorProto.FLOAT8E4M3FN, what="input", is_alone=False), Level.ERROR, ["'x'", "float8e4m3fn"]),
        (builders.sequence_input(), Level.ERROR, ["'s'", "a sequence", "SplitToSequence"]),
        (
            builders.model(
                [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["w"], ["v"])],
                [builders.value("x", ("B",), TensorProto.BFLOAT16), builders.value("w", ("B",), TensorProto.STRING)],
                [builders.value("y", ("B",), TensorProto.BFLOAT16), builders.value("v", ("B",), TensorProto.STRING)],
            ),
            Level.ERROR,
            ["bfloat16", "string", "Cast"],
        ),
    ],
)
def test_lint_and_the_server_say_the_same_of_types(
    tmp_path: Path, content: bytes, level: Level | None, texts: list[str]
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    report = lint(path)
    findings = found(report, "types")
    assert {one for one, _ in findings} == ({level} if level else set()), report
    assert all(text in message for text in texts for _, message in findings), findings
    try:
        served: Session | None = Session(content, read_facts(content), SessionOptions("cpu"))
    except SessionError:
        served = None
    assert report.can_be_served == (served is not None), report
    assert served is None or len(served.unserved) == len(findings)


def test_types_that_the_runtime_has_no_kernel_for(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 18]> g (uint16[b, 4] x) => (uint16[b, 4] y) { y = Neg (x) }'
    report = lint(saved(tmp_path, text))
    assert not report.can_be_served


def test_command_gives_the_verdict_as_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, GOOD)
    assert main(["lint", str(path)]) == 0
    assert "can be served" in capsys.readouterr().out
    path.write_bytes(b"nothing")
    assert main(["lint", str(path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["can_be_served"] is False
    assert main(["lint", str(tmp_path / "absent.onnx")]) == 2
    assert "absent.onnx" in capsys.readouterr().err


def test_placements_name_the_provider_of_each_operator(tmp_path: Path) -> None:
    path = saved(tmp_path, GOOD)
    file = OnnxFile(onnx.ModelProto.FromString(path.read_bytes()), path)
    assert placements(file, "CPUExecutionProvider") == {("MatMul", "CPUExecutionProvider")}


def test_endless_model_is_stopped_and_not_vouched_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_LIMIT_S", 0.2)
    text = """
    <ir_version: 10, opset_import: ["" : 18]>
    g (float[batch] x) => (float[batch] y) <int64 most = {9223372036854775807}, bool yes = {1}> {
        y = Loop (most, yes, x) <body = b (int64 i, bool c, float[batch] v) => (bool c_out, float[batch] v_out) {
            c_out = Identity (c)
            v_out = Relu (v)
        }>
    }
    """
    [(level, message)] = found(lint(saved(tmp_path, text)), "batch")
    assert level is Level.WARNING
    assert "could not be tried" in message


def test_node_that_only_reads_a_shape_is_not_blamed_for_the_batch(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 18]>
    g (float[batch, 3] x) => (float[1, 3] y) <int64[1] axes = {0}> {
        [culprit] a = ReduceMean <keepdims = 1> (x, axes)
        b = Relu (a)
        [reader] s = Shape <start = 1> (x)
        y = Expand (b, s)
    }
    """
    assert "'culprit' (ReduceMean)" in found(lint(saved(tmp_path, text)), "batch")[0][1]
