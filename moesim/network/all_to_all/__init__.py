"""How an all-to-all gets everything to its destination: one part per file.

Each has ``stages(messages, per_node) -> list[Stage]``: pure numpy over a leading batch, no seconds, no bandwidths.
Stages run one after the other unless a stage says ``with_before``. What every part keeps:

* what ``messages.copies`` sends from i to j starts in i and ends in j (``coordinated``: in the whole group of j);
* stages are linear in the messages and keep their type (``coordinated`` divides, so it returns floats);
* the diagonal of a stage is what stays in its device; nobody is charged for it;
* ``ValueError`` with a remedy when the messages do not fit nodes of ``per_node`` neighbouring devices.

A part may say what has to be counted for it: ``needs_nodes = True`` asks for ``messages.node_copies``, ``per_expert =
True`` for copies of a token once per expert (a scenario then has ``parallelism.deduplicate: false``).

Parts that align rails (``pxn``, ``2dh``, ``hierarchical``, ``bilevel``, ``node_limited``) cross nodes only between
devices of equal position: N - 1 messages per device instead of D - m, and as many bytes in all as ``flat``
(``node_limited``: fewer). Which device's port carries them differs.

>>> import numpy as np
>>> from moesim import registry
>>> from moesim.network.stages import Messages
>>> one_each = Messages(np.ones((8, 8), np.int32))
>>> for name in ("flat", "2dh"):
...     far = registry.make("all_to_all", name).stages(one_each, per_node=4)[-1].traffic[0, 4:]
...     print(name, far.sum(), (far > 0).sum())
flat 4 4
2dh 4 1
"""
