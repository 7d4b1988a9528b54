"""How bytes between two leaves spread over the spines: one part per file.

Each has ``spine_shares(topology, src, dst, seed, batch=0) -> float64 [flows, spines]``: the share of the bytes from
host ``src`` to host ``dst`` (arrays, in different leaves) that crosses each spine; rows sum to 1. The closed form of
``Network`` asks for all pairs of hosts, ``run_flows`` for its flows; ``batch`` (a number, or one per flow) tells which
flows are balanced together: those that start at the same time.

``per_packet`` says what the shares of one flow are. True: one flow over several spines at once, as fast as the slowest
lets it be. False: pieces, each a flow of its own whose weight is its share, so that a flow keeps one share of a port.
"""
