"""Request routers: one part per file, each with ``choose(free_tokens, requests) -> group``."""
