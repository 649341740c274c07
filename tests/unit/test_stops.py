"""Stop strings over a stream: as if the whole text were looked at, one character after the other."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from potatod.front.stops import Stops

_texts = st.text("abc", max_size=30)
_stops = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)


def _naive(text: str, stops: list[str]) -> tuple[str, bool]:
    """By definition: the first stop to be complete ends the text; of several at one place the longest."""
    for end in range(len(text) + 1):
        complete = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(complete)], True
    return text, False


def _cut(text: str, sizes: list[int]) -> list[str]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(text[at : at + size])
        at += size
    return [*pieces, text[at:]]


@given(_texts, _stops, st.lists(st.integers(0, 6)))
@example("abcd", ["abcd", "c"], [])
@example("aab", ["ab", "aab"], [1, 1])
def test_what_passes_is_the_text_before_the_first_stop_however_it_is_cut(text: str, stop_strings: list[str], sizes: list[int]) -> None:
    stops = Stops(stop_strings)
    shown = "".join(stops.push(piece) for piece in _cut(text, sizes)) + stops.flush()
    assert (shown, stops.found) == _naive(text, stop_strings)


@given(_texts, _stops)
def test_only_what_may_become_a_stop_is_held_back(text: str, stop_strings: list[str]) -> None:
    stops, shown = Stops(stop_strings), ""
    for at, character in enumerate(text):
        shown += stops.push(character)
        if stops.found:
            break
        held = text[len(shown) : at + 1]
        assert not held or any(stop.startswith(held) for stop in stop_strings)


def test_nothing_passes_after_a_stop() -> None:
    stops = Stops(["END"])
    assert (stops.push("one END two"), stops.push("three"), stops.flush()) == ("one ", "", "")


def test_without_stops_everything_passes_at_once() -> None:
    stops = Stops([])
    assert (stops.push("a"), stops.flush(), stops.found) == ("a", "", False)
