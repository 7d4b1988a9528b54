"""Fabrics between hosts: one part per file, each with the methods below and ``n_hosts``.

A host is one network port. ``links()`` is a table: link (number), class, name, capacity_bytes_per_s, latency_s.
``routes(balancing, seed)`` is a sparse matrix [n_hosts * n_hosts, links]: the share of the bytes from host i to host j
(row i * n_hosts + j) that crosses each link. ``path_latency_s`` is the latency of the longest path. For flows,
``crossing(src, dst)`` says which need a spine, and ``incidence(src, dst, flow, spine, share)`` which links all use.
"""
