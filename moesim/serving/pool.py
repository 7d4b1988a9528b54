"""The KV memory of a group of devices: blocks of a fixed number of tokens, shared where requests begin alike.

``Pool`` counts blocks; ``PrefixPool`` knows them one by one, keeps those of finished requests until their room is
needed, and finds them again by what their tokens are (prefix caching as in vLLM, arXiv 2309.06180 section 4.4 and the
engine's hash of each full block with all before it).

>>> pool = Pool(capacity=4, block=16, n_requests=2)
>>> pool.grow(0, tokens=33), pool.free       # 33 tokens lie in three blocks
(True, 1)
>>> pool.grow(1, tokens=17), pool.free       # two are not there: nothing is taken
(False, 1)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from moesim.serving import loops


class Pool:
    """Counts blocks. ``held``: int64 [requests], the blocks of each."""

    def __init__(self, capacity: int, block: int, n_requests: int):
        self.capacity, self.block, self.free = capacity, block, capacity
        self.held = np.zeros(n_requests, np.int64)

    def blocks(self, tokens: int) -> int:
        """Return the blocks that hold *tokens*."""
        return -(-tokens // self.block)

    def found(self, request: int, target: int) -> int:
        """Return how many of the first tokens of *request*, which has *target*, are here from others: none."""
        return 0

    def take(self, request: int, found: int, tokens: int) -> bool:
        """Give *request*, which holds nothing, room for *tokens*, *found* of which are here; False: no room."""
        return self.grow(request, tokens)

    def grow(self, request: int, tokens: int) -> bool:
        """Give *request* room for *tokens* in all; False, and nothing is taken, if there are too few free blocks."""
        more = self.blocks(tokens) - int(self.held[request])
        if more > self.free:
            return False
        if more > 0:
            self._give(np.array([request]), np.array([more]))
        return True

    def grow_all(self, requests: np.ndarray, tokens: np.ndarray) -> bool:
        """Give each of *requests* room for its *tokens* in all, or none of them anything (False)."""
        short = loops.beyond(requests, tokens, self.held, self.block)
        if not len(short):
            return True
        requests = requests[short]
        more = -(-tokens[short] // self.block) - self.held[requests]
        if int(more.sum()) > self.free:
            return False
        self._give(requests, more)
        return True

    def _give(self, requests: np.ndarray, blocks: np.ndarray) -> None:
        """Give each of *requests* so many *blocks* more; they are there."""
        self.held[requests] += blocks
        self.free -= int(blocks.sum())

    def filled(self, requests: np.ndarray, tokens: np.ndarray) -> None:
        """Note that the first *tokens* of each of *requests* are computed, or will be in the step that is planned."""

    def release(self, request: int) -> None:
        """Take all blocks of *request* back."""
        self.free += int(self.held[request])
        self.held[request] = 0


class PrefixPool(Pool):
    """Knows every block; ``free`` counts those that no running request uses, kept ones among them.

    *hashes* of a request: one number per full block of its tokens (prompt and output), which says what they and all
    before them are. Blocks that nobody uses are forgotten in the order in which they were let go, a request's last
    blocks first.
    """

    def __init__(self, capacity: int, block: int, n_requests: int, hashes: Callable[[int], Sequence[int]]):
        super().__init__(capacity, block, n_requests)
        self._hashes = hashes
        self._of: dict[int, list[int]] = {}                # request -> its blocks
        self._users = [0] * capacity
        self._idle = OrderedDict.fromkeys(range(capacity))
        self._block_of: dict[int, int] = {}                # hash -> the block that holds it, the first one noted
        self._others_of: dict[int, list[int]] = {}         # hash -> further ones: computed at the same time
        self._hash_of: dict[int, int] = {}                 # block -> hash
        self._noted = np.zeros(n_requests, np.int64)       # full blocks of each request that are noted

    def found(self, request: int, target: int) -> int:
        """Return the tokens of *request* that are here: whole blocks, and never the last token of *target*."""
        count = 0
        for key in self._hashes(request)[: (target - 1) // self.block]:
            if key not in self._block_of:
                break
            count += 1
        return count * self.block

    def take(self, request: int, found: int, tokens: int) -> bool:
        """Give *request* room for *tokens*: the *found* ones where they are, new blocks for the others."""
        shared = [self._block_of[key] for key in self._hashes(request)[: found // self.block]]
        asleep = sum(self._users[block] == 0 for block in shared)
        if asleep + self.blocks(tokens) - len(shared) > self.free:
            return False
        for block in shared:
            if self._users[block] == 0:
                del self._idle[block]
                self.free -= 1
            self._users[block] += 1
        self._of[request], self._noted[request] = shared, len(shared)
        self.held[request] = len(shared)
        return self.grow(request, tokens)

    def _give(self, requests: np.ndarray, blocks: np.ndarray) -> None:
        """As ``Pool._give``; room is made by forgetting blocks."""
        super()._give(requests, blocks)
        for request, more in zip(requests.tolist(), blocks.tolist(), strict=True):
            mine = self._of.setdefault(request, [])
            for _ in range(more):
                block, _ = self._idle.popitem(last=False)
                if block in self._hash_of:
                    self._forget(block)
                self._users[block] = 1
                mine.append(block)

    def _note(self, block: int, key: int) -> None:
        """Note that *block* holds tokens whose hash is *key*."""
        if self._block_of.setdefault(key, block) != block:
            self._others_of.setdefault(key, []).append(block)
        self._hash_of[block] = key

    def _forget(self, block: int) -> None:
        """Forget what *block* holds."""
        key = self._hash_of.pop(block)
        others = self._others_of.get(key)
        if others is None:
            del self._block_of[key]
            return
        if self._block_of[key] == block:
            self._block_of[key] = others.pop(0)
        else:
            others.remove(block)
        if not others:
            del self._others_of[key]

    def filled(self, requests: np.ndarray, tokens: np.ndarray) -> None:
        """Note the full blocks of each of *requests*: whoever begins with the same tokens will find them."""
        new = loops.beyond(requests, tokens - (self.block - 1), self._noted, self.block)  # a whole block beyond
        if not len(new):
            return
        requests, full = requests[new], tokens[new] // self.block
        for request, first, end in zip(requests.tolist(), self._noted[requests].tolist(), full.tolist(), strict=True):
            for block, key in zip(self._of[request][first:end], self._hashes(request)[first:end], strict=False):
                self._note(block, key)
        self._noted[requests] = full

    def release(self, request: int) -> None:
        """As ``Pool.release``; what the blocks hold is kept until they are needed."""
        for block in reversed(self._of.pop(request, [])):
            self._users[block] -= 1
            if self._users[block] == 0:
                self._idle[block] = None
                self.free += 1
        self._noted[request] = 0
        self.held[request] = 0


def block_hashes(tokens: np.ndarray, block: int) -> list[int]:
    """Return one number per full *block* of *tokens* (int64 [n]): equal only if it and all tokens before are equal."""
    found, before, data, size = [], 0, tokens.tobytes(), block * tokens.itemsize
    for i in range(len(tokens) // block):
        before = hash((before, data[i * size : (i + 1) * size]))
        found.append(before)
    return found
