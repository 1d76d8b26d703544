"""Rules of operators on texts that need to know how a text ends: to join two, and to split one.

A text is split into as many parts as the longest row of the batch has, so that rows change each other's shape. Where
each is known to end with so many delimiters, and no more are split at, every row has the same number of parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from fitserve_contract.joinability.calls import Call, Rules, broadcast
from fitserve_contract.joinability.rules_elementwise import value_like
from fitserve_contract.joinability.values import INT64, Value, typed

_MOST_PARTS: Final = 64


def string_concat(call: Call) -> Sequence[Value]:
    """Rule of StringConcat: element by element; the result ends as the second text does."""
    first, second = call.tensor(0), call.tensor(1)
    return [replace(broadcast(call, [first, second]), ending=second.ending)]


def string_split(call: Call) -> Sequence[Value]:
    """Rule of StringSplit at a delimiter of one character, at most as often as each text ends with it."""
    value, shape = call.tensor(0), call.shape(0)
    delimiter, most = call.text("delimiter", "").encode(), call.integer("maxsplit", 0)
    ending = len(value.ending) - len(value.ending.rstrip(delimiter)) if len(delimiter) == 1 else 0
    if not 0 < most <= min(ending, _MOST_PARTS):
        raise call.refusal("is as wide as the longest row")
    return [value_like(value, [*shape, most + 1]), typed(value_like(value, shape), INT64)]


RULES: Rules = {"StringConcat": string_concat, "StringSplit": string_split}
