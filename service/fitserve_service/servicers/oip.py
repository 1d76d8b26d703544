"""inference.GRPCInferenceService: the Open Inference Protocol's own methods, unary and streaming inference."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from fitserve_oip import inference_pb2 as pb
from fitserve_service import codec, codec_oip
from fitserve_service.batcher import Priority
from fitserve_service.budget import Budget
from fitserve_service.bundles import Bundles
from fitserve_service.calls import Call, StreamCall, StreamMethod, UnaryCall, UnaryMethod
from fitserve_service.engine import Completed
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.intake import Answer, CallAnswer, Encode, Intake, Order, Target
from fitserve_service.messages import parse
from fitserve_service.request_ids import NamedCall, split_id
from fitserve_service.requests.message_spans import content_spans
from fitserve_service.runs import Prepared
from fitserve_service.served_version import ServedVersion
from fitserve_service.status import incident
from fitserve_service.templates import RequestTemplate, Templates, request_parts

SERVICE = "inference.GRPCInferenceService"

_INFER_CONTENTS: Final = (7,)
"""ModelInferRequest.raw_input_contents."""

_ID: Final = (3,)
"""ModelInferRequest.id."""

_ANSWER_CONTENTS: Final = (6,)
"""ModelInferResponse.raw_output_contents."""


class OipInferServicer:
    """Answers ModelInfer and ModelStreamInfer. Lives on the loop thread."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._templates = Templates(_infer_template)
        self._named = Templates(_nameless_template)
        self._bundles = Bundles("ModelInfer", intake)

    def unary(self) -> Mapping[str, UnaryMethod]:
        """Gives the methods by full name."""
        return {f"/{SERVICE}/ModelInfer": self.model_infer}

    def stream(self) -> Mapping[str, StreamMethod]:
        """Gives the streaming methods by full name."""
        return {f"/{SERVICE}/ModelStreamInfer": self.model_stream_infer}

    def model_infer(self, call: UnaryCall, message: bytes) -> None:
        """Runs one version on one batch."""
        begin_s = time.monotonic()
        template = self._templates.find(message)
        if template is not None:
            self._bundles.add(template, call, message, begin_s)
            return
        split = split_id(message)
        if split is not None and (template := self._named.find(split[0])) is not None:
            self._bundles.add(template, NamedCall(call, split[1]), split[0], begin_s)
            return
        budget, request = Budget(begin_s), parse(pb.ModelInferRequest, message)
        encode, answer = partial(_encode, request.id), CallAnswer(call, budget)
        call.on_cancel(self._intake.run(_order("ModelInfer", request, call, budget, encode, answer)))
        if request.raw_input_contents:
            templates, alike = (self._templates, message) if split is None else (self._named, split[0])
            templates.learn(alike, request.raw_input_contents[0])

    def model_stream_infer(self, call: StreamCall) -> _InferStream:
        """Runs each request of a stream; answers in their order, errors within the stream."""
        return _InferStream(self._intake, call)


class _InferStream:
    """One stream of requests. An answer waits for those before it."""

    def __init__(self, intake: Intake, call: StreamCall) -> None:
        self._intake = intake
        self._call = call
        self._slots: deque[_Slot] = deque()
        self._is_half_closed = False
        call.on_cancel(self._take_back)

    def on_message(self, message: bytes) -> None:
        """Runs the next request."""
        slot = _Slot()
        self._slots.append(slot)
        budget, request = Budget(time.monotonic()), pb.ModelInferRequest()
        try:
            request = parse(pb.ModelInferRequest, message)
            encode, answer = partial(_encode_streamed, request), partial(self._fill, slot, request)
            order = _order("ModelStreamInfer", request, self._call, budget, encode, answer)
            cancel = self._intake.run(order)
            if slot.answer is None:
                slot.cancel = cancel
        except ServiceError as error:
            self._fill(slot, request, error)
        except Exception as error:
            self._fill(slot, request, incident(self._call.method, error))

    def on_half_close(self) -> None:
        """Ends the stream once everything is answered."""
        self._is_half_closed = True
        self._send()

    def _fill(self, slot: _Slot, request: pb.ModelInferRequest, answer: Answer) -> None:
        slot.answer = _encode_error(request, answer) if isinstance(answer, ServiceError) else answer
        # Else a cycle, which keeps the request's inputs and its version until the collector comes by.
        slot.cancel = None
        self._send()

    def _send(self) -> None:
        while self._slots and (answer := self._slots[0].answer) is not None:
            self._slots.popleft()
            self._call.send(answer)
        if self._is_half_closed and not self._slots:
            self._call.finish()

    def _take_back(self) -> None:
        for slot in list(self._slots):
            if slot.cancel is not None:
                slot.cancel()


class _Slot:
    """The place of one request's answer in its stream."""

    __slots__ = ("answer", "cancel")

    def __init__(self) -> None:
        self.answer: bytes | None = None
        self.cancel: Callable[[], None] | None = None


def target_of(model: str, version: str) -> Target:
    """Reads which version a request names.

    Raises:
        ServiceError: INVALID_VERSION; no decimal number of at least 1, and not empty.
    """
    if not version:
        return Target(model)
    is_number = version.isascii() and version.isdecimal() and len(version) <= 19
    if not is_number or int(version) < 1:
        text = f"version: expected a number of at least 1 or nothing, got '{version[: codec.MAX_NAME_CHARS]}'"
        raise ServiceError(Reason.INVALID_VERSION, text)
    return Target(model, version=int(version))


def _order(
    method: str,
    request: pb.ModelInferRequest,
    call: Call,
    budget: Budget,
    encode: Encode,
    on_answer: Callable[[Answer], None],
) -> Order:
    def prepare(served: ServedVersion) -> Prepared:
        names = codec_oip.output_names(request)
        return Prepared.check(served.signature, codec_oip.decode_inputs(request), names)

    target, deadline_s = target_of(request.model_name, request.model_version), _deadline_s(request, call.deadline_s)
    metadata, priority = call.metadata, Priority.PREDICT
    return Order(method, target, prepare, encode, on_answer, deadline_s, priority, metadata, budget)


def _infer_template(message: bytes) -> RequestTemplate | None:
    request = parse(pb.ModelInferRequest, message)
    # A request's `timeout` counts from when it came.
    if request.parameters:
        return None
    names = codec_oip.output_names(request)
    parts = request_parts(message, _INFER_CONTENTS, codec_oip.decode_inputs(request))
    if parts is None:
        return None
    target = target_of(request.model_name, request.model_version)
    return RequestTemplate(message, target, names, parts, partial(_encode, request.id), _ANSWER_CONTENTS)


def _nameless_template(message: bytes) -> RequestTemplate | None:
    """Makes the template of a message whose id was taken off; None where it has another id field.

    Of a field that comes twice the last one counts, also where it is empty: the id that was taken off is not the
    request's then.
    """
    return _infer_template(message) if content_spans(message, _ID) == [] else None


def _encode(request_id: str, served: ServedVersion, completed: Completed) -> bytes:
    return codec_oip.encode_response(served, request_id, completed).SerializeToString()


def _deadline_s(request: pb.ModelInferRequest, deadline_s: float | None) -> float | None:
    """The caller's deadline, or an earlier one by the request's `timeout` (microseconds that it may queue)."""
    if "timeout" not in request.parameters:
        return deadline_s
    timeout_us = request.parameters["timeout"].int64_param
    if timeout_us <= 0:
        return deadline_s
    queue_deadline_s = time.monotonic() + timeout_us / 1e6
    return queue_deadline_s if deadline_s is None else min(deadline_s, queue_deadline_s)


def _encode_streamed(request: pb.ModelInferRequest, served: ServedVersion, completed: Completed) -> bytes:
    response = codec_oip.encode_response(served, request.id, completed)
    if _asks_for_final(request):
        response.parameters["triton_final_response"].bool_param = True
    return pb.ModelStreamInferResponse(infer_response=response).SerializeToString()


def _encode_error(request: pb.ModelInferRequest, error: ServiceError) -> bytes:
    response = pb.ModelStreamInferResponse(error_message=error.message)
    response.infer_response.model_name = request.model_name
    response.infer_response.id = request.id
    if _asks_for_final(request):
        response.infer_response.parameters["triton_final_response"].bool_param = True
    return response.SerializeToString()


def _asks_for_final(request: pb.ModelInferRequest) -> bool:
    """Asks for the mark of the last response to a request; here the one response is the last."""
    name = "triton_enable_empty_final_response"
    return name in request.parameters and request.parameters[name].bool_param
