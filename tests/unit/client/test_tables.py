"""Tables for people."""

from hypothesis import given
from hypothesis import strategies as st

from fitserve_client.tables import cut, display_width, table
from fitserve_contract.printable import printable

CELLS = st.text(max_size=20)
ROWS = st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=5)


def test_columns_are_aligned_and_numbers_to_the_right():
    assert table(("name", "count"), [("a", "5"), ("long name", "1,234")]) == [
        "name       count",
        "a              5",
        "long name  1,234",
    ]


@given(ROWS, st.integers(28, 60))
def test_no_line_is_wider_than_the_terminal(rows, width):
    lines = table(("one", "two", "three"), rows, width)
    assert len(lines) == len(rows) + 1
    assert all(display_width(line) <= width for line in lines)


@given(CELLS, st.integers(1, 30))
def test_cutting_keeps_what_fits(text, width):
    shown = cut(text, width)
    assert display_width(shown) <= width or shown == text
    assert shown == text or (shown.endswith("…") and text.startswith(shown[:-1]))


@given(CELLS)
def test_nothing_that_moves_the_cursor_is_printed(text):
    assert printable(text).isprintable()


def test_wide_characters_take_two_cells():
    assert display_width("靴 boot") == 7
    assert display_width("e\N{COMBINING ACUTE ACCENT}") == 1
    assert table(("a", "b"), [("靴", "x"), ("abcd", "y")]) == ["a     b", "靴    x", "abcd  y"]


def test_a_table_without_a_terminal_is_not_cut():
    assert table(("reason",), [("x" * 500,)])[1] == "x" * 500
