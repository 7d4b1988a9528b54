"""Fabrics between hosts: one part per file, each with what follows. A host is one network port.

* ``n_hosts``, ``oversubscription``, ``path_latency_s`` (of the longest path).
* ``links()``: a table with link (number), class, name ("from->to"), capacity_bytes_per_s, latency_s, alive; ``alive``:
  the last column as an array, or None if all are.
* ``switch_of(host)``: the first switch of a host; flows of a source to one switch are balanced together.
* ``widths(src, dst)`` -> int64 [flows, tiers]: how many equal-cost ways each switch on the way up chooses from, 1 where
  there is no choice, 0 if there is no path at all. Their product is the number of paths of the pair.
* ``path(src, dst, choice)`` -> int64 [flows, K]: the links of path number ``choice`` (mixed radix, first choice first),
  -1 where it has fewer than K.
"""
