"""Ways to choose experts by what is resident: one part per file, ``swap(top_k) -> Swap | None``.

A swap's order is one compiled function (``moesim.memory.swapping.pick``): of the candidates of a token, best first, it
says which are used.
"""
