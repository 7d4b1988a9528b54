"""What becomes of missed experts: one part per file, ``decide(missed) -> Fate``, with arrays of a whole step.

Beside its parameters a part says, as class variables or properties,

* ``needs``: what it looks at or uses, of ``host`` (a processor there), ``ranks``, ``weights``, ``seconds``
  (``moesim.memory.missed``);
* ``fetches``: whether it copies anything; caches of a part that does not stay as they begin;
* ``whole``: whether all that is missed comes and stays, as caches decide. Else what does not come is not asked of a
  cache.
"""
