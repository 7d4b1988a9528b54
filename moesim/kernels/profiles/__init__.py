"""Layer profiles: one part per file, each with ``read(tp) -> LayerProfile``."""
