"""Which text begins most like another one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from potatod.front.prefixes import Prefixes, common

TEXTS = st.lists(st.lists(st.integers(0, 2), max_size=8), max_size=12)
TEXT = st.lists(st.integers(0, 2), max_size=8)


def slowly(one: list[int], other: list[int]) -> int:
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


@given(TEXT, TEXT)
def test_common_counts_the_tokens_that_are_the_same_from_the_start(one: list[int], other: list[int]) -> None:
    assert common(one, other) == slowly(one, other)


@given(TEXTS, TEXT, st.data())
def test_the_nearest_come_first_and_all_that_begin_alike_come(texts: list[list[int]], wanted: list[int], data: st.DataObject) -> None:
    prefixes = Prefixes()
    known = {}
    for id, text in enumerate(texts):
        prefixes.add(id, text)
        known[id] = text
    for id in data.draw(st.sets(st.sampled_from(sorted(known)))) if known else ():
        prefixes.discard(id)
        del known[id]
    found = list(prefixes.nearest(wanted))
    assert [shared for _, shared in found] == sorted((shared for _, shared in found), reverse=True)
    assert dict(found) == {id: slowly(text, wanted) for id, text in known.items() if slowly(text, wanted)}
    assert sorted(prefixes.within(wanted)) == [id for id, text in known.items() if text and wanted[: len(text)] == text]
    assert len(prefixes) == len(known)
