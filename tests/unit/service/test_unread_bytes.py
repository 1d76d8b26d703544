"""The bound on answers that are not read, as a state machine: it holds, and only those who hold most are cut off."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fitserve_service.unread_bytes import UnreadBytes

MOST = 100


class UnreadMachine(RuleBasedStateMachine):
    """Calls on three connections get answers, take them, and are cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.unread = UnreadBytes(MOST)
        self.held: dict[int, tuple[str, int]] = {}
        self.latest = -1
        self.numbers = 0

    def cut(self, number: int) -> None:
        assert number != self.latest
        sums, connection = self.sums(), self.held[number][0]
        able = {where for each, (where, _) in self.held.items() if each != self.latest}
        assert sums[connection] > MOST / 2 or sums[connection] == max(sums[where] for where in able)
        mine = [each for each, (where, _) in self.held.items() if where == connection and each != self.latest]
        assert number == mine[0]
        del self.held[number]

    def sums(self) -> dict[str, int]:
        sums: dict[str, int] = defaultdict(int)
        for connection, size in self.held.values():
            sums[connection] += size
        return sums

    @rule(connection=st.sampled_from("abc"), size=st.integers(1, 120))
    def answer(self, connection: str, size: int) -> None:
        number = self.latest = self.numbers
        self.numbers += 1
        self.held[number] = (connection, size)
        assert self.unread.add(number, connection, size, lambda: self.cut(number))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), size=st.integers(1, 120))
    def answer_more(self, data: st.DataObject, size: int) -> None:
        number = self.latest = data.draw(st.sampled_from(sorted(self.held)))
        connection, before = self.held[number]
        if before + size > MOST / 2:
            assert not self.unread.add(number, connection, size, lambda: self.cut(number))
        else:
            # Its place among those that wait stays.
            self.held[number] = (connection, before + size)
            assert self.unread.add(number, connection, size, lambda: self.cut(number))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), size=st.integers(1, 120))
    def take(self, data: st.DataObject, size: int) -> None:
        number = data.draw(st.sampled_from(sorted(self.held)))
        connection, before = self.held.pop(number)
        self.unread.remove(number, connection, size)
        if before > size:
            # It moved: the others of its connection have waited longer.
            self.held[number] = (connection, before - size)

    @rule(number=st.integers(0, 50))
    def end(self, number: int) -> None:
        connection, _ = self.held.pop(number, ("a", 0))
        self.unread.remove(number, connection)

    @invariant()
    def bounds_hold(self) -> None:
        sums = self.sums()
        assert self.unread.total == sum(sums.values())
        assert self.unread.total <= MOST or len(self.held) == 1
        for connection, total in sums.items():
            assert total <= MOST / 2 or [where for where, _ in self.held.values()].count(connection) == 1
        assert set(self.unread._sizes) == set(sums) == set(self.unread._sums)
        assert set(self.unread._cuts) == set(self.held)


TestUnreadMachine = UnreadMachine.TestCase
TestUnreadMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_who_has_most_is_asked_first_and_small_holders_keep_theirs() -> None:
    cut: list[str] = []
    unread = UnreadBytes(100)
    for name, connection, size in (("small", "x", 10), ("big 1", "y", 25), ("big 2", "y", 25), ("other", "z", 45)):
        unread.add(name, connection, size, lambda name=name: cut.append(name))  # type: ignore[misc]
    assert cut == ["big 1"]
    assert not unread.has_room("y", 60)
    assert unread.has_room("y", 5)
