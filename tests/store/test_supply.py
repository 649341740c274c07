"""Which files of a source are needed when, which may go, and how much disk that takes: decided without a disk."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from potatod.store.supply import MOST_FILES, Work, next_file, ordered, peak, wanted

FILES = [Path(f"model-{n}") for n in range(5)]


def work(size: int, *files: int) -> Work:
    return Work(size, frozenset(FILES[n] for n in files), lambda: None)


works_of_files = st.lists(st.builds(lambda size, files: work(size, *files), st.integers(0, 50), st.sets(st.integers(0, 4), max_size=3)), max_size=8)
sizes_of_files = st.lists(st.integers(1, 100), min_size=5, max_size=5).map(lambda sizes: dict(zip(FILES, sizes, strict=True)))


def test_layers_in_the_order_of_the_alphabet_are_made_in_that_of_their_files():
    """layers.0, layers.1, layers.10, layers.11, layers.2: as some checkpoints have them."""
    layers = [work(1, 0), work(1, 0), work(1, 3), work(1, 1, 2), work(1, 1)]
    assert [sorted(path.name for path in each.files)[-1][-1] for each in ordered(layers)] == ["0", "0", "1", "2", "3"]


def test_works_of_no_files_stay_in_their_order():
    works = [work(size) for size in (3, 1, 2)]
    assert ordered(works) == works


def test_the_next_file_is_fetched_while_there_is_place_for_one_more():
    works = [work(1, 0), work(1, 0, 1), work(1, 2)]
    assert next_file(works, {FILES[0]}) == FILES[1]
    assert next_file(works, {FILES[0], FILES[1]}) is None
    assert next_file(works[:1], {FILES[0]}) is None


def test_the_peak_is_the_folder_and_two_files_where_shards_lie_behind_each_other():
    works, sizes = [work(100, n) for n in range(5)], dict.fromkeys(FILES, 100)
    assert peak(works, sizes, (), {}) == 500 + 100  # the last one is made of the last file
    assert peak([work(10, n) for n in range(5)], sizes, (), {}) == 200 + 4 * 10
    assert peak(works, sizes, FILES, {}) == 100, "a source that goes makes room for what is made of it"
    assert peak(works, sizes, FILES, {}, goes=False) == 500
    assert peak(works[:1], sizes, (), {FILES[0]: 30}) == 100 + 70, "what has come of a file is on the disk already"


@given(works_of_files, sizes_of_files)
def test_no_moment_of_a_run_takes_more_than_the_peak_and_few_files_are_there(works, sizes):
    """As fetched.py does it: files come for a shard and one ahead, and go when no other needs them."""
    works = ordered(works)
    expected, there, made = peak(works, sizes, (), {}), set(), 0
    for at, each in enumerate(works):
        there |= each.files
        assert made + sum(map(sizes.__getitem__, there)) <= expected
        if (ahead := next_file(works[at + 1 :], there)) is not None:
            there.add(ahead)
            assert len(there) <= MOST_FILES
        made += each.size_bytes
        assert made + sum(map(sizes.__getitem__, there)) <= expected
        there &= wanted(works[at + 1 :])
    assert not there and made <= expected
    assert expected <= sum(sizes[path] for path in wanted(works)) + made
