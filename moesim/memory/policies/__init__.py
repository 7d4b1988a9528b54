"""Cache policies: one part per file, ``rule(job) -> Rule``.

A rule's score is one compiled function (``moesim.memory.terms.score``): of the keys that may go, the one that is worth
least goes first. Modules that start with an underscore are shared by several.
"""
