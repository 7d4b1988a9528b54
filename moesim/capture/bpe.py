"""A byte-pair encoding small enough to read: learn merges from text, encode, decode.

The method is that of arXiv:1508.07909, section 3.2, on UTF-8 bytes, with words cut by one regular expression first.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

Pair = tuple[int, int]

# A word is one of: letters with the blank before them, up to three digits, punctuation, white space.
WORD = re.compile(r" ?[^\W\d]+| ?\d{1,3}| ?[^\w\s]+|\s+")


@dataclass(frozen=True)
class BytePairEncoding:
    """Token ids 0..255 are bytes, 256 + i is the i-th merge, and the last id ends a document."""

    merges: tuple[Pair, ...]
    _cache: dict[str, list[int]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def end(self) -> int:
        """Return the id that separates documents."""
        return 256 + len(self.merges)

    @property
    def vocabulary(self) -> int:
        """Return the number of token ids."""
        return self.end + 1

    @classmethod
    def learn(cls, texts: Iterable[str], vocabulary: int) -> BytePairEncoding:
        """Learn merges until *vocabulary* ids exist, the most frequent pair first, ties to the larger ids."""
        if vocabulary < 257:
            raise ValueError(f"BytePairEncoding.learn: vocabulary {vocabulary} cannot hold 256 bytes; use 257 or more")
        counted = Counter(word for text in texts for word in WORD.findall(text))
        words = [list(word.encode()) for word in counted]
        weight = list(counted.values())
        pairs: Counter[Pair] = Counter()
        holders: dict[Pair, set[int]] = defaultdict(set)
        for index, symbols in enumerate(words):
            for pair in pairwise(symbols):
                pairs[pair] += weight[index]
                holders[pair].add(index)
        merges: list[Pair] = []
        while len(merges) < vocabulary - 257:
            best = max(pairs, key=lambda pair: (pairs[pair], pair), default=None)
            if best is None or pairs[best] < 2:
                raise ValueError(
                    f"BytePairEncoding.learn: the text has only {len(merges)} repeated pairs; "
                    f"give more text or a vocabulary of at most {257 + len(merges)}"
                )
            for index in holders.pop(best):
                old, new = words[index], merge(words[index], best, 256 + len(merges))
                for pair in pairwise(old):
                    pairs[pair] -= weight[index]
                for pair in pairwise(new):
                    pairs[pair] += weight[index]
                    holders[pair].add(index)
                words[index] = new
            del pairs[best]
            merges.append(best)
        return cls(tuple(merges))

    def encode(self, text: str) -> list[int]:
        """Return the token ids of *text* (without the end id)."""
        rank = {pair: index for index, pair in enumerate(self.merges)}
        ids: list[int] = []
        for word in WORD.findall(text):
            if word not in self._cache:
                self._cache[word] = _encode_word(word, rank)
            ids += self._cache[word]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of *ids*; bytes that are no UTF-8 and the end id show as U+FFFD."""
        table = [bytes([value]) for value in range(256)]
        for left, right in self.merges:
            table.append(table[left] + table[right])
        table.append("\ufffd".encode())
        return b"".join(table[token] for token in ids).decode(errors="replace")


def merge(symbols: list[int], pair: Pair, new: int) -> list[int]:
    """Replace every *pair* in *symbols* by *new*, from the left."""
    result: list[int] = []
    for symbol in symbols:
        # A merged symbol never equals pair[0], so a pair cannot overlap with the one just replaced.
        if result and (result[-1], symbol) == pair:
            result[-1] = new
        else:
            result.append(symbol)
    return result


def _encode_word(word: str, rank: dict[Pair, int]) -> list[int]:
    symbols = list(word.encode())
    while len(symbols) > 1:
        best = min(pairwise(symbols), key=lambda pair: rank.get(pair, len(rank)))
        if best not in rank:
            break
        symbols = merge(symbols, best, 256 + rank[best])
    return symbols
