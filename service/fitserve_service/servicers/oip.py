"""inference.GRPCInferenceService: the Open Inference Protocol's own methods, unary and streaming inference."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, TypeAlias

from fitserve_oip import inference_pb2 as pb
from fitserve_service import codec, codec_oip
from fitserve_service.batcher import Priority
from fitserve_service.budget import Budget
from fitserve_service.bundles import Bundles
from fitserve_service.calls import Call, StreamCall, StreamMethod, UnaryCall, UnaryMethod
from fitserve_service.codec import ElementRoom
from fitserve_service.engine import Completed
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.intake import Answer, CallAnswer, Encode, Intake, Order, Target
from fitserve_service.messages import parse
from fitserve_service.request_ids import NamedCall, split_id
from fitserve_service.requests.answer_size import check_expected
from fitserve_service.requests.contents import Contents
from fitserve_service.requests.message_reader import MessageReader
from fitserve_service.requests.message_spans import content_spans
from fitserve_service.rpc.wire_scan import DEFAULT_MAX_ELEMENTS
from fitserve_service.runs import Prepared
from fitserve_service.served_version import ServedVersion
from fitserve_service.signature import Tensor
from fitserve_service.status import fail_with, incident
from fitserve_service.templates import RequestTemplate, Templates, request_parts

SERVICE = "inference.GRPCInferenceService"

_INFER_CONTENTS: Final = (7,)
"""ModelInferRequest.raw_input_contents."""

_ID: Final = (3,)
"""ModelInferRequest.id."""

_ANSWER_CONTENTS: Final = (6,)
"""ModelInferResponse.raw_output_contents."""

_STREAMED: Final = 2
"""ModelStreamInferResponse.infer_response."""


_Decoded: TypeAlias = tuple[dict[str, Tensor], list[str]]
"""A request's inputs, and the outputs that it names."""

_Reader: TypeAlias = MessageReader[pb.ModelInferRequest, _Decoded]


class OipInferServicer:
    """Answers ModelInfer and ModelStreamInfer. Lives on the loop thread.

    Args:
        intake: Runs the requests.
        max_elements: As of `--max-elements`.
    """

    def __init__(self, intake: Intake, max_elements: int = DEFAULT_MAX_ELEMENTS) -> None:
        self._intake = intake
        decode = partial(_decode, max_elements)
        self._reader: _Reader = MessageReader(pb.ModelInferRequest, decode, max_elements, intake.codec, intake.keep)
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
        cancel = self._reader.read(
            message, partial(self._run, call, begin_s, message), partial(fail_with, call), call.origin
        )
        if cancel is not None:
            call.on_cancel(cancel)

    def _run(
        self,
        call: UnaryCall,
        begin_s: float,
        message: bytes,
        request: pb.ModelInferRequest,
        decoded: Callable[[], _Decoded],
    ) -> None:
        budget = Budget(begin_s)
        encode, answer = partial(_encode, request.id), CallAnswer(call, budget)
        call.on_cancel(self._intake.run(_order("ModelInfer", request, decoded, call, budget, encode, answer)))
        if request.raw_input_contents:
            split = split_id(message)
            templates, alike = (self._templates, message) if split is None else (self._named, split[0])
            templates.learn(alike, request.raw_input_contents[0])

    def model_stream_infer(self, call: StreamCall) -> _InferStream:
        """Runs each request of a stream; answers in their order, errors within the stream."""
        return _InferStream(self._intake, self._reader, call)


class _InferStream:
    """One stream of requests. An answer waits for those before it."""

    def __init__(self, intake: Intake, reader: _Reader, call: StreamCall) -> None:
        self._intake = intake
        self._reader = reader
        self._call = call
        self._slots: deque[_Slot] = deque()
        self._is_half_closed = False
        call.on_cancel(self._take_back)

    def on_message(self, message: bytes) -> None:
        """Runs the next request."""
        slot = _Slot()
        self._slots.append(slot)
        fail = partial(self._fail, slot, pb.ModelInferRequest())
        try:
            cancel = self._reader.read(
                message, partial(self._run, slot, Budget(time.monotonic())), fail, self._call.origin
            )
        except ServiceError as error:
            fail(error)
        else:
            if cancel is not None:
                slot.cancel = cancel

    def _run(self, slot: _Slot, budget: Budget, request: pb.ModelInferRequest, decoded: Callable[[], _Decoded]) -> None:
        try:
            encode, answer = partial(_encode_streamed, request), partial(self._fill, slot, request)
            cancel = self._intake.run(_order("ModelStreamInfer", request, decoded, self._call, budget, encode, answer))
            if slot.answer is None:
                slot.cancel = cancel
        except Exception as error:
            self._fail(slot, request, error)

    def _fail(self, slot: _Slot, request: pb.ModelInferRequest, error: Exception) -> None:
        known = error if isinstance(error, ServiceError) else incident(self._call.method, error)
        self._fill(slot, request, known)

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
    decoded: Callable[[], _Decoded],
    call: Call,
    budget: Budget,
    encode: Encode,
    on_answer: Callable[[Answer], None],
) -> Order:
    def prepare(served: ServedVersion) -> Prepared:
        prepared = Prepared.check(served.signature, *decoded())
        check_expected(served.signature, prepared.inputs, prepared.kind.output_names)
        return prepared

    target, deadline_s = target_of(request.model_name, request.model_version), _deadline_s(request, call.deadline_s)
    metadata, priority = call.metadata, Priority.PREDICT
    return Order(method, target, prepare, encode, on_answer, deadline_s, priority, metadata, budget)


def _decode(max_elements: int, request: pb.ModelInferRequest, contents: Contents) -> _Decoded:
    names = codec_oip.output_names(request)
    return codec_oip.decode_inputs(request, ElementRoom(max_elements), contents), names


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
    return b"".join(codec_oip.encode_response(served, request_id, completed))


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
    is_marked_final = _asks_for_final(request)
    pieces = codec_oip.encode_response(served, request.id, completed, is_marked_final=is_marked_final)
    return b"".join((codec.field_head(_STREAMED, sum(map(len, pieces))), *pieces))


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
