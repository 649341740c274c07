"""Whose KV the worker keeps, block by block, within one budget. Pure: the worker stores, the ledger counts, by the rules of potatod.kv_layout.

    running sequence ──over──▶ kept (least recently used first out) ──room is needed──▶ dropped
           │                     │
           └─── a new sequence that begins alike goes on from it: fork ───┘

Blocks that several sequences share are counted once, and live as long as one of them does. What the worker is to do comes out as ``orders``, in the
order in which it must be done.
"""

from __future__ import annotations

import builtins
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from potatod.kv_layout import BLOCK, KvLayout, blocks, first_kept, first_read
from potatod.messages import Cut, Drop, Fork

from .prefixes import Prefixes

#: Kept texts that are looked at for one to go on from.
_TRIED: Final = 16


@dataclass(slots=True)
class _Block:
    bytes: int
    #: sequences that refer to it, and how many of them run
    uses: int = 0
    runs: int = 0


@dataclass(slots=True)
class _Held:
    """What the worker keeps of one sequence."""

    #: tokens whose KV there is, and tokens that were there before the last ones were appended
    length: int = 0
    before: int = 0
    #: for each group of layers: its blocks, by their place in the sequence
    chains: list[dict[int, _Block]] = field(default_factory=list)
    running: bool = True
    #: see Scheduler: what is computed for a short text is no beginning of a long one
    kind: bool = False


class Ledger:
    def __init__(self, layout: KvLayout, budget_bytes: int) -> None:
        self._layout = layout
        self._budget = budget_bytes
        self._held: dict[int, _Held] = {}
        #: sequences that are over, least recently used first
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._prefixes = {False: Prefixes(), True: Prefixes()}
        self._orders: list[Drop | Fork | Cut] = []
        #: bytes that are taken once the orders are done, and those of them that running sequences refer to
        self.used_bytes = 0
        self.running_bytes = 0

    @property
    def budget_bytes(self) -> int:
        return self._budget

    @property
    def forks(self) -> bool:
        """Whether a sequence's KV can be shared, and cut."""
        return self._layout.forks

    @property
    def kept(self) -> int:
        """Sequences that are over and can be gone on from."""
        return len(self._kept)

    def orders(self) -> tuple[Drop | Fork | Cut, ...]:
        """For the worker, before the next sweep. Each is returned once."""
        orders, self._orders = tuple(self._orders), []
        return orders

    # what fits

    def fits(self, tokens: int, shared: int, beside: int, chunk: int = 0, without: Collection[int] = ()) -> bool:
        """Whether a sequence may start that has so many tokens, of which running ones hold ``shared`` and ``chunk`` are computed at a time, and leaves
        ``beside`` bytes to who runs already; ``without``: if these did not run."""
        whole = blocks(shared - shared % BLOCK) if self.forks else 0
        of_all = sum(group.bytes_per_token for group in self._layout.groups if group.window is None)
        need = self._layout.bytes_of(tokens, chunk) - whole * BLOCK * of_all
        return self.running_bytes - self._only_of(without) + need + beside <= self._budget

    def _only_of(self, ids: Collection[int]) -> int:
        """Bytes that running sequences hold and none but these."""
        seen: dict[int, tuple[_Block, int]] = {}
        for chain in (chain for id in ids if id in self._held for chain in self._held[id].chains):
            for block in chain.values():
                seen[builtins.id(block)] = block, seen.get(builtins.id(block), (block, 0))[1] + 1
        states = self._layout.state_bytes * sum(id in self._held for id in ids)
        return states + sum(block.bytes for block, times in seen.values() if times == block.runs)

    def growth(self, start: int, end: int, chunk: int) -> int:
        """Bytes more, at most, of a sequence that grows so far, and a block in every layer."""
        return self._layout.growth(start, end, chunk) + self.block_bytes

    @property
    def block_bytes(self) -> int:
        """A block in every layer."""
        return self._layout.bytes_per_token * BLOCK

    def grow(self, id: int, start: int, end: int, kind: bool = False) -> bool:
        """Makes room for the KV of tokens ``start`` … ``end`` of this sequence, if need be by dropping kept ones. False where there is none: then
        nothing has changed. ``kind``: as in :meth:`match`.
        """
        held = self._held.get(id)
        new = held is None
        if held is None:
            held = _Held(chains=[{} for _ in self._layout.groups], kind=kind)
        assert start == held.length, "a sequence grows behind what it has"
        groups = list(zip(self._layout.groups, held.chains, strict=True))
        behind = [(chain, index) for group, chain in groups for index in chain if index < first_kept(group.window, start)]
        need = self._layout.state_bytes if new else 0
        need += sum((blocks(end) - blocks(start)) * group.bytes_per_token * BLOCK for group in self._layout.groups)
        of_running = need - sum(chain[index].bytes for chain, index in behind if chain[index].runs == 1)
        if self.running_bytes + of_running > self._budget:
            return False
        for chain, index in behind:
            self._release(chain.pop(index), running=True)
        while self.used_bytes + need > self._budget:
            self.forget(next(iter(self._kept)))
        if new:
            self._held[id] = held
            self.used_bytes += self._layout.state_bytes
            self.running_bytes += self._layout.state_bytes
        for group, chain in groups:
            for index in range(blocks(start), blocks(end)):
                chain[index] = _Block(group.bytes_per_token * BLOCK)
                self._refer(chain[index], running=True)
        held.before, held.length = start, end
        return True

    def cut(self, id: int, length: int, branch: int | None = None) -> None:
        """Of this sequence, which runs, only the first ``length`` tokens count: at least those before it grew last. ``branch``: as in Cut."""
        held = self._held[id]
        if length == held.length and branch is None:
            return
        assert held.running and held.before <= length <= held.length
        for chain in held.chains:
            for index in [index for index in chain if index >= blocks(length)]:
                self._release(chain.pop(index), running=True)
        held.length = length
        self._orders.append(Cut(id, length, branch))

    # beginning like another one

    def match(self, tokens: Sequence[int], kind: bool = False) -> tuple[int, int] | None:
        """A kept sequence, and how many of its tokens ``tokens`` begins with; at least one is left to compute. ``kind``: only what was kept as that."""
        if not self._layout.forks:
            return None
        for tried, (id, shared) in enumerate(self._prefixes[kind].nearest(tokens)):
            length = min(shared, len(tokens) - 1)
            if length > 0 and self.forkable(id, length):
                return id, length
            if tried >= _TRIED:
                return None
        return None

    def forkable(self, id: int, length: int) -> bool:
        """Whether another sequence may go on behind the first ``length`` tokens of this one."""
        held = self._held.get(id)
        return held is not None and self.forks and length <= held.length and self._reaches(held, length)

    def _reaches(self, held: _Held, length: int) -> bool:
        """Whether what is there is enough to go on behind ``length`` tokens."""
        groups = [(group, chain) for group, chain in zip(self._layout.groups, held.chains, strict=True) if not group.of_draft]
        return all(index in chain for group, chain in groups for index in range(first_read(group.window, length), blocks(length)))

    def fork(self, id: int, of: int, length: int) -> bool:
        """The new sequence ``id`` begins with the first ``length`` tokens of ``of``; False where there is no room for the part of a block that is
        copied."""
        source = self._held[of]
        if of in self._kept:
            self._kept.move_to_end(of)
        copied = self.block_bytes if length % BLOCK else 0
        while self.used_bytes + copied > self._budget:
            oldest = next(iter(self._kept), of)
            if oldest == of:
                return False
            self.forget(oldest)
        held = _Held(length, length, kind=source.kind)
        for group, chain in zip(self._layout.groups, source.chains, strict=True):
            taken = {index: chain[index] for index in range(first_kept(group.window, length), length // BLOCK) if index in chain}
            if length % BLOCK:
                taken[length // BLOCK] = _Block(group.bytes_per_token * BLOCK)
            for block in taken.values():
                self._refer(block, running=True)
            held.chains.append(taken)
        self._held[id] = held
        self._orders.append(Fork(id, of, length))
        return True

    # going

    def keep(self, id: int, tokens: Sequence[int]) -> None:
        """The sequence with these tokens is over, or set aside: others may go on from what there is of it until room is needed."""
        held = self._held.get(id)
        if held is None:
            return
        if not self._layout.forks or not tokens:
            self.forget(id)
            return
        assert held.running and len(tokens) == held.length
        held.running = False
        for chain in held.chains:
            for block in chain.values():
                block.runs -= 1
                self.running_bytes -= block.bytes if block.runs == 0 else 0
        prefixes = self._prefixes[held.kind]
        for shorter in list(prefixes.within(tokens)):
            if self._reaches(held, self._held[shorter].length):
                self.forget(shorter)  # whoever would go on from it can go on from this one
        prefixes.add(id, tokens)
        self._kept[id] = None

    def revive(self, id: int) -> int:
        """A sequence that was set aside runs again; returns the tokens of it that are still there."""
        if id not in self._kept:
            return 0
        held = self._held[id]
        del self._kept[id]
        self._prefixes[held.kind].discard(id)
        held.running = True
        for chain in held.chains:
            for block in chain.values():
                self.running_bytes += block.bytes if block.runs == 0 else 0
                block.runs += 1
        return held.length

    def forget(self, id: int) -> None:
        """The worker is to drop it."""
        if id in self._held:
            self.lost(id)
            self._orders.append(Drop(id))

    def forget_kept(self) -> bool:
        """All that are over; whether there was any."""
        kept = list(self._kept)
        for id in kept:
            self.forget(id)
        return bool(kept)

    def lost(self, id: int) -> None:
        """The worker has dropped it by itself."""
        held = self._held.pop(id, None)
        if held is None:
            return
        for chain in held.chains:
            for block in chain.values():
                self._release(block, running=held.running)
        self.used_bytes -= self._layout.state_bytes
        if held.running:
            self.running_bytes -= self._layout.state_bytes
        else:
            del self._kept[id]
            self._prefixes[held.kind].discard(id)

    def reset(self) -> None:
        """The engine is gone, and all KV with it."""
        self.__init__(self._layout, self._budget)  # type: ignore[misc]

    def _refer(self, block: _Block, running: bool) -> None:
        self.used_bytes += block.bytes if block.uses == 0 else 0
        block.uses += 1
        if running:
            self.running_bytes += block.bytes if block.runs == 0 else 0
            block.runs += 1

    def _release(self, block: _Block, running: bool) -> None:
        block.uses -= 1
        self.used_bytes -= block.bytes if block.uses == 0 else 0
        if running:
            block.runs -= 1
            self.running_bytes -= block.bytes if block.runs == 0 else 0
