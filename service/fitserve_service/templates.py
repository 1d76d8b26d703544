"""Messages that differ in the contents of their tensors alone: read once by protobuf, then by where the contents lie.

A reader of protobuf takes a message field by field, and skips the payload of a bytes field as a whole. So two messages
of one length that agree in every byte outside the contents of their tensors are read alike but for these contents: what
protobuf made of the first one holds for the second, and no field of it need be looked at. The same holds for writing.
protobuf stays the only one who says what a message means; here is only remembered where it found what.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary, ref

import numpy as np

from fitserve_contract.datatypes import BOOL, BYTES, NUMPY_DTYPES
from fitserve_contract.tensor_bytes import RAW_BOOL, Array, element_count
from fitserve_service.intake import Target
from fitserve_service.requests.answer_size import check_expected
from fitserve_service.requests.contents import LARGE_BYTES
from fitserve_service.requests.message_spans import Path, Span, content_spans, skeleton
from fitserve_service.runs import Completed, Kind, Prepared
from fitserve_service.served_version import ServedVersion
from fitserve_service.signature import Signature, Tensor

Write: TypeAlias = Callable[[ServedVersion, Completed], bytes]

_MAX_SKELETON_BYTES: Final = 4096
_LARGE_BYTES: Final = 1 << 16
_MAX_LENGTHS: Final = 256
_MAX_ALIKE: Final = 4
_MAX_SEEN: Final = 1024
_SEEN_BYTES: Final = 32
_MAX_REWRITES: Final = 8


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a request.

    Args:
        name: Of the input.
        datatype: OIP spelling, no BYTES.
        shape: Size of each axis; at least one element.
        span: Where its contents lie in the message.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    span: Span


class RequestTemplate:
    """What all requests have in common that differ from one in their contents alone.

    What depends on the version that answers is kept for each loaded instance: a version that was unloaded and loaded
    again has the same name and number, and perhaps another signature.

    Args:
        message: The one that protobuf has read.
        target: Which version it names.
        outputs: Names of the outputs wanted.
        parts: Its tensors, in its order.
        write: Writes the answer to such a request with protobuf.
        answer_path: Where the contents lie in such an answer.

    Attributes:
        target: Which version such requests name.
        segments: What lies outside the contents: offset and bytes.
    """

    __slots__ = (
        "_answer_path",
        "_by_served",
        "_known",
        "_outputs",
        "_parts",
        "_served",
        "_write",
        "segments",
        "target",
    )

    def __init__(
        self,
        message: bytes,
        target: Target,
        outputs: Sequence[str],
        parts: Sequence[Part],
        write: Write,
        answer_path: Path,
    ) -> None:
        self.target = target
        self._outputs = tuple(outputs)
        self._parts = [(part.name, _Place(part)) for part in parts]
        self.segments = skeleton(message, [part.span for part in parts])
        self._write = write
        self._answer_path = answer_path
        self._by_served: WeakKeyDictionary[ServedVersion, _Known] = WeakKeyDictionary()
        # Of the instance that answered last: most often it answers next, and a look-up would cost more than the rest.
        self._served: Callable[[], ServedVersion | None] = _nobody
        self._known = _Known()

    def fits(self, message: bytes) -> bool:
        """Tells whether a message of the same length is one of these."""
        # A generator would cost more than the comparison itself.
        for offset, segment in self.segments:  # noqa: SIM110
            if not message.startswith(segment, offset):
                return False
        return True

    def prepare(self, message: bytes, served: ServedVersion) -> Prepared:
        """Reads the tensors in place and checks them against the version, once for all requests of this kind.

        Raises:
            ServiceError: they do not fit the version's signature.
        """
        inputs = {name: place.tensor(message) for name, place in self._parts}
        known = self._known if self._served() is served else self._known_of(served)
        if known.signature is served.signature and known.kind is not None:
            return Prepared(inputs, known.kind)
        prepared = Prepared.check(served.signature, inputs, self._outputs)
        check_expected(served.signature, inputs, prepared.kind.output_names)
        known.signature, known.kind = served.signature, prepared.kind
        return prepared

    def kind_of(self, served: ServedVersion) -> Kind | None:
        """Returns what such requests have in common; None where this instance has not answered one yet."""
        known = self._known if self._served() is served else self._known_of(served)
        return known.kind if known.answer is not None and known.signature is served.signature else None

    def join(self, messages: Sequence[bytes]) -> dict[str, Tensor]:
        """Reads such requests' tensors, their rows one after the other: as `prepare` and `joining.join` would."""
        return {name: place.joined(messages) for name, place in self._parts}

    def encode_all(self, served: ServedVersion, outputs: Mapping[str, Tensor], count: int) -> list[bytes] | None:
        """Writes the answers to requests that ran together.

        Args:
            served: Who answers.
            outputs: The rows of all of them, one request's after the other's.
            count: How many there are.

        Returns:
            What `encode` would write for each; None where that is not known.
        """
        known = self._known if self._served() is served else self._known_of(served)
        return known.answer.deal(outputs, count) if known.answer is not None else None

    def encode(self, served: ServedVersion, completed: Completed) -> bytes:
        """Writes the answer to such a request: the bytes that protobuf would write."""
        if any(datatype == BYTES for datatype, _ in completed.outputs.values()):
            # There is nothing to remember, and texts may be written beside the loop, where this object does not live.
            return self._write(served, completed)
        known = self._known if self._served() is served else self._known_of(served)
        if known.answer is not None and (filled := known.answer.fill(completed)) is not None:
            return filled
        message = self._write(served, completed)
        if known.rewrite_count < _MAX_REWRITES:
            # Where the shapes of the answers change from one to the next, there is nothing to remember.
            known.rewrite_count += 1
            known.answer = _AnswerTemplate.of(message, self._answer_path, completed)
        return message

    def _known_of(self, served: ServedVersion) -> _Known:
        """Looks up what is known of an instance, and takes it for the one that answers next."""
        known = self._by_served.get(served)
        if known is None:
            known = self._by_served[served] = _Known()
        self._served, self._known = ref(served), known
        return known


class Templates:
    """The templates of one method, by length of the message. Lives on the loop thread.

    Their number is bounded, and none is made of a message that comes once: who sends a thousand kinds costs neither
    memory nor the others their templates' worth.

    Args:
        read: Makes the template of a message that comes again; None where it cannot have one.
    """

    def __init__(self, read: Callable[[bytes], RequestTemplate | None]) -> None:
        self._read = read
        self._by_length: dict[int, list[RequestTemplate]] = {}
        self._seen: set[tuple[int, bytes]] = set()

    def find(self, message: bytes) -> RequestTemplate | None:
        """Gives the template that a message fits; None where it is to be read by protobuf."""
        for template in self._by_length.get(len(message), ()):
            # As `fits` has it, without a call in between.
            for offset, segment in template.segments:
                if not message.startswith(segment, offset):
                    break
            else:
                return template
        return None

    def learn(self, message: bytes, contents: bytes) -> None:
        """Takes a message that protobuf has read and that was found good; when it has come twice, it is known.

        Args:
            message: As it came.
            contents: Of its first tensor: what stands before them decides whether another message is of its kind.
        """
        if len(message) >= LARGE_BYTES:
            # Its contents were lifted out, which costs what a template does.
            return
        begin = message.find(contents[:_SEEN_BYTES])
        kind = (len(message), message[: min(begin, _MAX_SKELETON_BYTES)])
        if kind not in self._seen:
            if len(self._seen) >= _MAX_SEEN:
                self._seen.clear()
            self._seen.add(kind)
            return
        self._seen.discard(kind)
        template = self._read(message)
        if template is None:
            return
        known = self._by_length.pop(len(message), [])
        if len(self._by_length) >= _MAX_LENGTHS:
            del self._by_length[next(iter(self._by_length))]
        self._by_length[len(message)] = [template, *known][:_MAX_ALIKE]


class _Place:
    """Where one tensor lies."""

    __slots__ = ("_count", "_datatype", "_dtype", "_end", "_is_aligned", "_is_bool", "_shape", "_start")

    def __init__(self, part: Part) -> None:
        self._datatype = part.datatype
        self._is_bool = part.datatype == BOOL
        self._dtype = RAW_BOOL if self._is_bool else NUMPY_DTYPES[part.datatype]
        self._shape = part.shape
        self._count = element_count(part.name, part.shape)
        self._start, self._end = part.span
        # The bytes of a Python object begin at a multiple of 16; a slice is an object of its own.
        self._is_aligned = self._start % self._dtype.itemsize == 0

    def tensor(self, message: bytes) -> Tensor:
        if self._is_aligned:
            array = np.frombuffer(message, self._dtype, self._count, self._start)
        else:
            array = np.frombuffer(message[self._start : self._end], self._dtype)
        return self._tensor(array, self._shape)

    def joined(self, messages: Sequence[bytes]) -> Tensor:
        start, end = self._start, self._end
        contents = b"".join([message[start:end] for message in messages])
        rows = self._shape[0] * len(messages)
        return self._tensor(np.frombuffer(contents, self._dtype), (rows, *self._shape[1:]))

    def _tensor(self, array: Array, shape: tuple[int, ...]) -> Tensor:
        return Tensor(self._datatype, (array != 0 if self._is_bool else array).reshape(shape))


class _Known:
    """What a template knows of one loaded instance of a version; it keeps nothing of it loaded."""

    __slots__ = ("answer", "kind", "rewrite_count", "signature")

    def __init__(self) -> None:
        self.signature: Signature | None = None
        self.kind: Kind | None = None
        """What requests have in common by that signature: it may change where requests are no longer joined."""
        self.answer: _AnswerTemplate | None = None
        self.rewrite_count = 0


def _nobody() -> None:
    """Stands for the reference to an instance before the first has answered."""


class _AnswerTemplate:
    """An answer of one loaded instance but for the contents of its tensors."""

    __slots__ = ("_kinds", "_segments")

    def __init__(self, completed: Completed, segments: Sequence[bytes]) -> None:
        arrays = [tensor.array for tensor in completed.outputs.values()]
        self._kinds = [(array.shape, array.dtype, array.nbytes < _LARGE_BYTES) for array in arrays]
        self._segments = segments

    @classmethod
    def of(cls, message: bytes, path: Path, completed: Completed) -> _AnswerTemplate | None:
        """Makes the template of an answer; None where it cannot have one."""
        tensors = list(completed.outputs.values())
        if any(tensor.datatype == BYTES or tensor.array.dtype != NUMPY_DTYPES[tensor.datatype] for tensor in tensors):
            return None
        spans = content_spans(message, path)
        if spans is None or not _are_contents(message, spans, tensors) or not all(t.array.size for t in tensors):
            return None
        segments = [segment for _, segment in skeleton(message, spans, has_empty=True)]
        return cls(completed, segments) if _is_small(segments) else None

    def deal(self, outputs: Mapping[str, Tensor], count: int) -> list[bytes] | None:
        """Writes as many answers as requests ran together; None where they are of another kind."""
        contents = []
        for (shape, dtype, is_small), tensor in zip(self._kinds, outputs.values(), strict=True):
            array = tensor.array
            if not is_small or not shape or array.dtype != dtype or array.shape != (shape[0] * count, *shape[1:]):
                return None
            rows = array.tobytes()
            size = len(rows) // count
            contents.append([rows[begin : begin + size] for begin in range(0, len(rows), size)])
        if len(contents) == 1:
            first, last = self._segments
            return [first + content + last for content in contents[0]]
        return [_interleaved(self._segments, pieces) for pieces in zip(*contents, strict=True)]

    def fill(self, completed: Completed) -> bytes | None:
        """Puts contents in; None where the answer is of another kind."""
        contents: list[Any] = []
        for (shape, dtype, is_small), tensor in zip(self._kinds, completed.outputs.values(), strict=True):
            array = tensor.array
            if array.shape != shape or (array.dtype is not dtype and array.dtype != dtype):
                return None
            # A large one is copied once, by the join.
            contents.append(array.tobytes() if is_small or not array.flags.c_contiguous else array)
        if len(contents) == 1:
            return b"".join((self._segments[0], contents[0], self._segments[1]))
        return _interleaved(self._segments, contents)


def _interleaved(segments: Sequence[bytes], contents: Sequence[Any]) -> bytes:
    pieces = [piece for pair in zip(segments, contents, strict=False) for piece in pair]
    return b"".join((*pieces, segments[-1]))


def request_parts(message: bytes, path: Path, inputs: Mapping[str, Tensor]) -> list[Part] | None:
    """Finds a request's tensors in its message.

    Args:
        message: As it came.
        path: Where the contents lie.
        inputs: What was read from it, in its order.

    Returns:
        None where it can have no template: a tensor is BYTES or empty, or does not come as contents of its own.
    """
    tensors = inputs.values()
    if any(tensor.datatype == BYTES or not tensor.array.size for tensor in tensors):
        return None
    spans = content_spans(message, path)
    if spans is None or not _are_contents(message, spans, list(tensors)):
        return None
    if not _is_small([segment for _, segment in skeleton(message, spans)]):
        return None
    return [
        Part(name, tensor.datatype, tensor.array.shape, span)
        for (name, tensor), span in zip(inputs.items(), spans, strict=True)
    ]


def _are_contents(message: bytes, spans: Sequence[Span], tensors: Sequence[Tensor]) -> bool:
    """Tells whether the spans hold the tensors' bytes; compared in parts, for a copy of a large one costs as much."""
    if len(spans) != len(tensors):
        return False
    for (start, end), tensor in zip(spans, tensors, strict=True):
        flat = np.ascontiguousarray(tensor.array).reshape(-1).view(np.uint8)
        if flat.size != end - start:
            return False
        for begin in range(0, flat.size, _LARGE_BYTES):
            if not message.startswith(flat[begin : begin + _LARGE_BYTES].tobytes(), start + begin):
                return False
    return True


def _is_small(segments: Sequence[bytes]) -> bool:
    return sum(map(len, segments)) <= _MAX_SKELETON_BYTES
