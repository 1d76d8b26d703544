"""What is printed stays one line and moves nothing, whatever a file's names hold."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_contract.printable import printable


@given(st.text())
def test_nothing_that_controls_a_terminal_is_left(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in shown)
    shown.encode()


@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
def test_what_can_be_read_stays_as_it_is(text: str) -> None:
    assert printable(f"{text} {text}") == f"{text} {text}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\nb", "a\\nb"), ("\x1b[2J", "\\x1b[2J"), ("\u202eexe", "\\u202eexe"), ("\udc80", "\\udc80"), ("\x9b", "\\x9b")],
)
def test_what_is_escaped_can_be_told(text: str, shown: str) -> None:
    assert printable(text) == shown
