"""How bytes between two leaves spread over the spines: one part per file.

Each has ``spine_shares(topology, src, dst, seed) -> float64 [pairs, spines]``: the share of the bytes from host
``src`` to host ``dst`` (arrays, in different leaves) that crosses each spine; rows sum to 1.
"""
