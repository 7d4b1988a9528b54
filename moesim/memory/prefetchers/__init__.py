"""Prefetchers: one part per file, ``forecast(job) -> Forecast | None``: which experts are expected of every event.

Without a machine there is no time: what is expected of an event is there when it begins, if the cache has room. What a
prefetcher cannot know then, it must not say. Modules that start with an underscore are shared by several.
"""
