"""Bytes to messages: the one parser of everything that callers send, so that no two can disagree over it.

Nothing is parsed before it is counted: a message that is small on the wire may be large in memory.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from fitserve_contract.tensor_bytes import MAX_RANK
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.rpc.wire_fields import select
from fitserve_service.rpc.wire_scan import (
    COST_BYTES,
    DEFAULT_MAX_ELEMENTS,
    ELEMENT_COST,
    AxesError,
    GroupError,
    Layout,
    MalformedError,
    Scan,
    TooManyFieldsError,
    scan,
    typed_cost,
)

MAX_FRAME_BYTES: Final = 1 << 20
"""Names, shapes and parameters of one message, all but the contents of its tensors."""

MAX_FIELDS: Final = 1 << 14
"""Fields of one message with its tensors: some 3,000 inputs."""

MAX_NAMING_BYTES: Final = 1 << 16
"""The fields of one message that name its models, where nothing else of it is read yet."""

MAX_LIGHT_FIELDS: Final = 1 << 9
MAX_LIGHT_BYTES: Final = 1 << 14
"""What is read element by element at once, within a millisecond."""

MessageT = TypeVar("MessageT", bound=Message)

LAYOUTS: Final = {
    "inference.ModelInferRequest": Layout(frozenset({5}), 5, raw=7, is_typed=True, names=frozenset({6})),
    "fitserve.inference.v1.PredictRequest": Layout(frozenset({2}), 4),
    "fitserve.inference.v1.EvaluateRequest": Layout(frozenset({2, 3}), 4),
    "fitserve.inference.v1.CompareVersionsRequest": Layout(frozenset({3, 4}), 4),
}
"""Where the messages with tensors hold their contents; any other message is all frame."""


def parse(kind: type[MessageT], message: bytes, max_elements: int = DEFAULT_MAX_ELEMENTS) -> MessageT:
    """Counts a message, then reads it; fields that it does not know are ignored.

    Args:
        kind: Class of the message.
        message: Its bytes.
        max_elements: Elements of typed contents, as of `--max-elements`.

    Raises:
        ServiceError: TOO_LARGE; more fields, elements or bytes outside of contents than are taken.
            MALFORMED_MESSAGE.
    """
    check_counts(kind, message, max_elements)
    return parse_counted(kind, message)


def check_counts(kind: type[MessageT], message: bytes, max_elements: int = DEFAULT_MAX_ELEMENTS) -> None:
    """Counts a message; arguments and errors as of `parse`."""
    layout = LAYOUTS.get(kind.DESCRIPTOR.full_name)
    if layout is None:
        _check_frame(len(message))
    else:
        _check(message, layout, max_elements)


def parse_counted(kind: type[MessageT], message: bytes) -> MessageT:
    """Reads a message of our own, or one that `is_light` has counted.

    Raises:
        ServiceError: MALFORMED_MESSAGE.
    """
    try:
        return kind.FromString(message)
    except DecodeError:
        raise _malformed(kind.DESCRIPTOR.full_name, message) from None


def parse_fields(kind: type[MessageT], message: bytes, numbers: Set[int]) -> MessageT:
    """Reads some of a message's top-level fields as `parse` would, without a look into the others.

    Takes time by the number of top-level fields, within some milliseconds, whatever their sizes are.

    Args:
        kind: Class of the message.
        message: Its bytes.
        numbers: Of the fields; none shares a oneof with a field that is left out.

    Raises:
        ServiceError: TOO_LARGE; more fields, or more bytes in these fields, than are taken. MALFORMED_MESSAGE; no
            parser takes it, or it holds a group.
    """
    try:
        selected = select(message, numbers, MAX_FIELDS)
    except GroupError:
        raise _grouped() from None
    except TooManyFieldsError:
        raise _too_many_fields() from None
    except MalformedError:
        raise _malformed(kind.DESCRIPTOR.full_name, message) from None
    if len(selected) > MAX_NAMING_BYTES:
        text = f"message: expected at most {MAX_NAMING_BYTES} bytes that name models, got {len(selected)}"
        raise ServiceError(Reason.TOO_LARGE, f"{text}; shorten the names")
    return parse_counted(kind, selected)


def is_light(layout: Layout, message: bytes) -> bool:
    """Tells, within a millisecond, whether a message takes no longer to read; then it is counted, too.

    Raises:
        ServiceError: TOO_LARGE; its frame.
    """
    found = _scan(message, layout, MAX_LIGHT_FIELDS)
    if found is None or found.text_bytes + found.typed_bytes > MAX_LIGHT_BYTES:
        return False
    _check_frame(found.frame_bytes)
    return True


def too_many_elements(what: str, max_elements: int, found: int) -> ServiceError:
    """Returns the error for more elements than are taken.

    Args:
        what: Where they are: `input 'text'`.
        max_elements: As of `--max-elements`.
        found: How many there are at least.
    """
    text = f"{what}: expected at most {max_elements} elements (the server's --max-elements), got {found} or more"
    rule = "128 bytes of text count as one more, or 64 where it is not ASCII, 16 numbers of typed contents as one"
    cure = "send several requests, or numbers in raw contents, which are not counted"
    return ServiceError(Reason.TOO_LARGE, f"{text}; {rule}; {cure}")


def _check(message: bytes, layout: Layout, max_elements: int) -> None:
    found = _scan(message, layout, MAX_FIELDS)
    if found is None:
        raise _too_many_fields()
    _check_frame(found.frame_bytes)
    # Elements of text cost more than their bytes do; their number is counted when they are read.
    cost, most = found.text_bytes // COST_BYTES, max_elements * ELEMENT_COST
    if cost > most:
        raise too_many_elements("message", max_elements, cost // ELEMENT_COST)
    for start, end in found.typed:
        cost += typed_cost(message, start, end, most - cost)
        if cost > most:
            raise too_many_elements("message", max_elements, cost // ELEMENT_COST)


def _scan(message: bytes, layout: Layout, most_fields: int) -> Scan | None:
    try:
        return scan(message, layout, most_fields)
    except GroupError:
        raise _grouped() from None
    except MalformedError:
        name = next(name for name, known in LAYOUTS.items() if known == layout)
        raise _malformed(name, message) from None
    except AxesError:
        text = f"tensor: expected at most {MAX_RANK} axes, got more; reshape it, and the model's input"
        raise ServiceError(Reason.INVALID_INPUT, text) from None


def _grouped() -> ServiceError:
    text = "message: expected the fields of this protocol alone, got a group (wire type 3 or 4)"
    return ServiceError(Reason.MALFORMED_MESSAGE, text)


def _too_many_fields() -> ServiceError:
    text = f"message: expected at most {MAX_FIELDS} fields beside the elements of its tensors, got more"
    return ServiceError(Reason.TOO_LARGE, f"{text}; name fewer inputs, outputs and parameters")


def _malformed(name: str, message: bytes) -> ServiceError:
    text = f"message: expected {name}, got {len(message)} bytes that are none"
    return ServiceError(Reason.MALFORMED_MESSAGE, text)


def _check_frame(size: int) -> None:
    if size > MAX_FRAME_BYTES:
        text = f"message: expected at most {MAX_FRAME_BYTES} bytes beside the contents of tensors, got {size}"
        raise ServiceError(Reason.TOO_LARGE, f"{text}; shorten names and parameters")
