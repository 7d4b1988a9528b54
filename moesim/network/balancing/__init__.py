"""How the bytes of flows spread over the paths of a fabric: one part per file.

Each has ``paths(ends, seed) -> Choice``: which share of each flow goes by which path (``moesim.network.ends``); shares
of a flow sum to 1. The closed form of ``Network`` asks for all pairs of devices, ``run_flows`` for its flows.

``sent`` says what the shares of one flow are: "apart", pieces that are flows of their own, with their share as weight,
so that a flow keeps one share of a port; "together", one flow over several paths at once, packet by packet, as fast as
the slowest lets it be; "in_turn", pieces one after the other. ``sees_load``: the choice depends on what is under way.
``deals``: a flow's paths depend on the other flows that start with it.
"""
