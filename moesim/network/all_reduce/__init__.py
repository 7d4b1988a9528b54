"""How a group adds up its vectors: one part per file.

Each has ``rounds(n, per_node) -> (reduce half, gather half)``, two lists of ``Round`` among members 0 .. n - 1, of
which ``per_node`` neighbours share a node. An all-reduce is the first half followed by the second. What every part
keeps:

* one member alone has nothing to do: two empty lists;
* a round never sends from a member to itself, and no pair twice;
* only a round with ``launch`` is a kernel of its own; the others continue one, unless they come first;
* ``ValueError`` with a remedy for sizes of group that the algorithm cannot do.

``halves_alone`` says whether the halves are also a reduce-scatter and an all-gather. Those of ``tree`` are a reduce and
a broadcast of the whole vector, and ``nvls`` has one half for both.

Every member has to send and to receive at least 2 (n - 1) / n of a vector, unless a switch adds for it:

>>> import numpy as np
>>> from moesim import registry
>>> for name in ("ring", "halving_doubling", "direct", "tree", "nvls"):
...     first, second = registry.make("all_reduce", name).rounds(8, per_node=8)
...     sent = sum(r.repeat * np.bincount(r.src, r.share, minlength=8) for r in first + second)
...     steps = sum(r.repeat * r.latencies for r in first + second)
...     print(name, sent.max(), steps)
ring 1.75 14
halving_doubling 1.75 6
direct 1.75 2
tree 1.75 14
nvls 1.125 2
"""
