"""Which tokens run together: one part per file, ``passes(trace, seed) -> Passes``.

A request asks once per pass, its tokens in order. What a part does with prompts, it says. Modules that start with an
underscore are shared by several.
"""
