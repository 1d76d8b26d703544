"""Rules of sequences of tensors whose length the graph itself decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fitserve_contract.joinability.calls import Call, Rules, axis_of, refuse_rows
from fitserve_contract.joinability.rules_elementwise import value_like
from fitserve_contract.joinability.rules_layout import concat, unsqueezed
from fitserve_contract.joinability.values import Kind, Value

_MOST_PARTS = 1024


def _sequence(parts: Sequence[Value]) -> Value:
    return Value(Kind.SEQUENCE, parts=tuple(parts))


def _parts(call: Call) -> tuple[Value, ...]:
    parts = call.tensor(0).parts
    if parts is None:
        raise call.refusal("of no sequence that is known")
    return parts


def construct(call: Call) -> Sequence[Value]:
    """Rule of SequenceConstruct."""
    return [_sequence([value for value in call.inputs if value is not None])]


def split_to_sequence(call: Call) -> Sequence[Value]:
    """Rule of SplitToSequence: off the row axis, into parts of known sizes."""
    value, shape = call.tensor(0), call.shape(0)
    axis = axis_of(call, call.integer("axis", 0), len(shape))
    refuse_rows(call, value, axis)
    size, lengths = shape[axis], call.literals(1) if call.given(1) is not None else [1]
    if not isinstance(size, int) or not lengths or 0 in lengths:
        raise call.refusal("into parts of unknown sizes")
    if call.given(1) is None or call.tensor(1).shape == ():
        if lengths[0] < 0 or size // lengths[0] > _MOST_PARTS:
            raise call.refusal("into too many parts")
        lengths = [lengths[0]] * (size // lengths[0]) + ([size % lengths[0]] if size % lengths[0] else [])
    if len(lengths) > _MOST_PARTS:
        raise call.refusal("into too many parts")
    parts = [value_like(value, [*shape[:axis], length, *shape[axis + 1 :]]) for length in lengths]
    if call.given(1) is None and not call.integer("keepdims", 1):
        raise call.refusal("that drops the axis")
    return [_sequence(parts)]


def at(call: Call) -> Sequence[Value]:
    """Rule of SequenceAt: a known place."""
    place = call.literals(1)
    if place is None or len(place) != 1:
        raise call.refusal("at an unknown place")
    return [_parts(call)[place[0]]]


def concat_sequence(call: Call) -> Sequence[Value]:
    """Rule of ConcatFromSequence."""
    parts = [replace(part, elements=None) for part in _parts(call)]
    axis = call.integer("axis", 0)
    if call.integer("new_axis", 0):
        parts = [unsqueezed(call, part, [axis]) for part in parts]
    if any(part.kind not in (Kind.CONSTANT, Kind.ROWS) for part in parts):
        raise call.refusal("reads the number of rows")
    return concat(Call(call.node, call.version, list(parts), call.symbols, call.attributes))


RULES: Rules = {
    "ConcatFromSequence": concat_sequence,
    "SequenceAt": at,
    "SequenceConstruct": construct,
    "SplitToSequence": split_to_sequence,
}
