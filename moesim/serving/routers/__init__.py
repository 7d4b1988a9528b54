"""Request routers: one part per file, each with ``choose(request, groups, turn) -> number of a group``.

``request`` has just arrived, ``turn`` have been routed before.
"""
