"""Calls and answers as messages."""

import numpy as np
import pytest

from fitserve.control.v1 import control_pb2
from fitserve.inference.v1 import inference_pb2
from fitserve.types.v1 import tensor_pb2
from fitserve_client import messages, sums_messages
from fitserve_client.errors import InternalError, InvalidArgumentError
from fitserve_client.models import ModelVersion, Selector, VersionDetails, details_of, version_of
from fitserve_contract.manifest import Manifest, TensorSpec
from fitserve_contract.scoring import score
from fitserve_contract.tasks import Scores, Task, TaskKind


def _details(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = (), task: Task | None = None) -> VersionDetails:
    version = ModelVersion(2, "READY", "", True, "CPUExecutionProvider", (), "", 8, 1.0)
    return VersionDetails("m", version, inputs, outputs, task)


IMAGE = TensorSpec("image", "FP32", ("B", 2))
MASK = TensorSpec("mask", "INT64", ("B", 2))
SCALE = TensorSpec("scale", "FP32", (), is_optional=True)


def test_a_selector_says_a_version_a_label_or_neither():
    assert Selector("m").to_proto() == tensor_pb2.ModelSpec(name="m")
    assert Selector("m", 3).to_proto() == tensor_pb2.ModelSpec(name="m", version=3)
    assert Selector("m", 0).to_proto().WhichOneof("selector") == "version"
    assert Selector("m", label="canary").to_proto() == tensor_pb2.ModelSpec(name="m", label="canary")
    with pytest.raises(InvalidArgumentError, match="expected a version or a label, got both 3 and 'canary'"):
        Selector("m", 3, "canary")


def test_paths_are_those_of_the_services():
    calls = [
        messages.predict_call(Selector("m"), [], []),
        messages.evaluate_call(Selector("m"), [], tensor_pb2.Tensor()),
        messages.list_models_call(),
        messages.get_model_call("m"),
        messages.get_version_call(Selector("m")),
        messages.load_call("m"),
        messages.unload_call("m"),
    ]
    control = "/fitserve.control.v1.ModelControlService/"
    assert [call.path for call in calls] == [
        "/fitserve.inference.v1.InferenceService/Predict",
        "/fitserve.inference.v1.InferenceService/Evaluate",
        *(control + name for name in ("ListModels", "GetModel", "GetModelVersion", "LoadModel", "UnloadModel")),
    ]
    assert [call.is_retryable for call in calls] == [True] * 5 + [False] * 2


def test_an_array_alone_goes_to_the_one_required_input():
    assert messages.named_inputs(_details(IMAGE, SCALE), [[1, 2]]) == {"image": [[1, 2]]}
    assert messages.named_inputs(_details(SCALE), 5) == {"scale": 5}
    assert messages.named_inputs(_details(IMAGE, MASK), {"mask": 1, "image": 2}) == {"mask": 1, "image": 2}


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (np.zeros(2), r"model 'm' version 2: expected a mapping with 'image', 'mask', got one ndarray"),
        ({"imgae": 1}, r"model 'm' version 2: expected 'image', 'mask', got 'imgae'"),
    ],
)
def test_inputs_that_cannot_be_named_are_refused(inputs, text):
    with pytest.raises(InvalidArgumentError, match=text):
        messages.named_inputs(_details(IMAGE, MASK), inputs)


def test_a_model_without_inputs_says_so():
    with pytest.raises(InvalidArgumentError, match="expected no inputs, got 'x'"):
        messages.named_inputs(_details(), {"x": 1})
    assert messages.named_inputs(_details(), {}) == {}


def test_inputs_are_cast_to_the_signature():
    tensors = messages.input_tensors(_details(IMAGE, MASK), {"image": np.eye(2), "mask": [[1, 0]]})
    assert [(t.name, t.datatype, list(t.shape)) for t in tensors] == [
        ("image", "FP32", [2, 2]),
        ("mask", "INT64", [1, 2]),
    ]
    assert tensors[0].content == np.eye(2, dtype=np.float32).tobytes()


def test_labels_are_what_the_task_takes():
    output = TensorSpec("y", "FP32", ("B", 2))
    one_of_n = _details(IMAGE, task=Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, ("a", "b")))
    any_of_n = _details(IMAGE, task=Task(TaskKind.MULTI_LABEL, "y", Scores.PROBABILITIES, ("a", "b")))
    values = _details(IMAGE, outputs=(output,), task=Task(TaskKind.REGRESSION, "y", Scores.VALUES))
    assert messages.cast_labels(one_of_n, np.array([1, 0], np.uint8))[0] == "INT64"
    assert messages.cast_labels(any_of_n, [[0, 1]])[1].tolist() == [[False, True]]
    assert messages.cast_labels(values, [[0.5, 1]])[1].dtype == np.float32
    assert messages.cast_labels(_details(IMAGE), np.array([1], np.int8))[0] == "INT8"
    with pytest.raises(InvalidArgumentError, match=r"labels: expected BOOL values 0\.\.1, got 2"):
        messages.cast_labels(any_of_n, [[0, 2]])


@pytest.mark.parametrize(
    ("task", "scores", "labels"),
    [
        (
            Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, ("a", "b")),
            [[1.0, 2.0], [np.nan, 0.0], [1.0, 1.0]],
            [1, 0, 0],
        ),
        (Task(TaskKind.MULTI_LABEL, "y", Scores.PROBABILITIES, ("a", "b")), [[0.9, 0.2]], [[1, 1]]),
        (Task(TaskKind.REGRESSION, "y", Scores.VALUES), [1.5, np.inf], [1.0, -2.0]),
    ],
)
def test_sums_come_back_exactly(task, scores, labels):
    sums = score(task, np.array(scores), np.array(labels))
    message = inference_pb2.EvaluateResponse()
    part = getattr(message, task.kind.value)
    binned = [name for name in sums.__dataclass_fields__ if name.startswith("bin_")]
    for count, correct, total in zip(*(getattr(sums, name) for name in binned), strict=True):
        confidence = tensor_pb2.ExactSum(units=str(total.units), fraction_bits=total.fraction_bits)
        part.calibration_bins.add(example_count=count, correct_count=correct, confidence=confidence)
    for name in sums.__dataclass_fields__.keys() - set(binned):
        value = getattr(sums, name)
        if hasattr(value, "units"):
            getattr(part, name).CopyFrom(tensor_pb2.ExactSum(units=str(value.units), fraction_bits=value.fraction_bits))
        elif isinstance(value, tuple):
            getattr(part, name).extend(value)
        else:
            setattr(part, name, value)
    assert sums_messages.sums_of(message) == sums


def test_sums_that_cannot_be_read_are_the_servers_fault():
    with pytest.raises(InternalError, match="expected sums"):
        sums_messages.sums_of(inference_pb2.EvaluateResponse())
    broken = inference_pb2.EvaluateResponse(classification=inference_pb2.ClassificationSums(example_count=1))
    with pytest.raises(InternalError, match="expected an exact sum as an integer, got ''"):
        sums_messages.sums_of(broken)


def test_details_hold_shapes_and_the_task_of_the_manifest():
    task = Task(TaskKind.CLASSIFICATION, "y", Scores.LOGITS, ("a", "b"))
    manifest = Manifest("m", "2026-01-01T00:00:00Z", (), (), task)
    details = details_of(
        control_pb2.GetModelVersionResponse(
            model_name="m",
            version=control_pb2.ModelVersion(version=4, state=control_pb2.STATE_READY),
            inputs=[
                control_pb2.TensorSpec(name="a", datatype="FP32", shape=[-1, 3, -1], axis_names=["B", "", ""]),
                control_pb2.TensorSpec(name="b", datatype="INT64", has_dynamic_rank=True, is_optional=True),
                control_pb2.TensorSpec(name="c", datatype="FP32"),
            ],
            manifest_json=manifest.to_bytes().decode(),
        )
    )
    assert [spec.shape for spec in details.inputs] == [("B", 3, None), None, ()]
    assert [spec.is_optional for spec in details.inputs] == [False, True, False]
    assert (details.task, details.version.state) == (task, "READY")


def test_a_manifest_or_state_from_the_future_is_no_obstacle():
    details = details_of(control_pb2.GetModelVersionResponse(model_name="m", manifest_json='{"schema_version": 99}'))
    assert details.task is None
    future = control_pb2.ModelVersion.FromString(control_pb2.ModelVersion(version=1).SerializeToString() + b"\x10\x63")
    assert version_of(future).state == "99"


@pytest.mark.parametrize("key", ["ü", "a\n", "\x00"])
def test_a_routing_key_that_cannot_be_sent_is_refused(key):
    with pytest.raises(InvalidArgumentError, match="routing_key: expected printable ASCII, got"):
        messages.predict_call(Selector("m"), [], [], key)


def test_a_routing_key_goes_with_the_call():
    assert messages.predict_call(Selector("m"), [], [], "ann").metadata == (("fitserve-routing-key", "ann"),)
    assert messages.predict_call(Selector("m"), [], []).metadata == ()
