"""Copies between host and device: pinned and pageable, both directions, several streams. On a CPU plain memcpy.

Sizes include one expert of public models. A CPU has no link to cross; its rows are marked:

>>> from moesim.measure.target import Target
>>> points = HostCopy().points(Target("cpu", "a CPU", "fp32", 8e9, 64e6, 2, 20e9, 8e9))
>>> {(p.op, p.impl) for p in points}
{('copy', 'host_memcpy')}
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from moesim.measure import timing
from moesim.measure.point import Point, Timing, Work
from moesim.measure.target import Target
from moesim.registry import part

if TYPE_CHECKING:
    from moesim.measure.runner import Bench

# One expert in bf16: Qwen3-30B, gpt-oss, DeepSeek-V3, Mixtral (workloads/models).
EXPERTS = (9.4e6, 49.8e6, 88e6, 352e6)
SIZES = {"cuda": (*(65536.0 * 4**i for i in range(9)), *EXPERTS), "cpu": (65536.0, 1048576.0, *EXPERTS[:3])}
# direction, host memory, streams that share the bytes
MODES = (("h2d", "pinned", 1), ("d2h", "pinned", 1), ("h2d", "pageable", 1), ("d2h", "pageable", 1),
         ("h2d", "pinned", 2), ("h2d", "pinned", 4), ("h2d", "pinned", 8), ("bidir", "pinned", 2))
LINK = 40e9  # bytes per second, to guess times from (assumed: PCIe 5 x16 gives about 55)
FILL = 2e9   # bytes per second of allocating and filling host memory (assumed)
LONG_S = 0.02  # of a copy: fewer repeats are enough


@part
class HostCopy:
    """Measure ``copy`` between host and device; ``bytes`` cross the link (on a CPU: are read, and written again)."""

    def points(self, target: Target) -> list[Point]:
        """Return sizes x modes."""
        if target.kind == "cpu":
            return [Point("copy", {"bytes": 2 * size}, "host_memcpy", guess_s=target.guess_copy_s(2 * size),
                          extra={"direction": "none"}) for size in SIZES["cpu"]]
        return [Point("copy", {"bytes": size}, f"{direction}_{memory}_{streams}", whole_s=_whole_s(size),
                      extra={"direction": direction, "host_memory": memory, "streams": streams})
                for size in SIZES["cuda"] for direction, memory, streams in MODES if 4 * size <= target.memory_bytes]

    def work(self, point: Point, bench: Bench) -> Work:
        """Return memcpy over a ring (CPU), or copies on their own streams between two events (GPU)."""
        if bench.target.kind == "cpu":
            values = max(int(point.shapes["bytes"] / 2 / bench.target.value_bytes), 1)
            _, pairs = bench.pool.ring([(values,), (values,)], bench.target.ring_bytes)
            return Work([partial(target.copy_, source) for source, target in pairs])
        return Work(own=lambda: _timed(Link(point.shapes["bytes"], **point.extra), point.shapes["bytes"]))


class Link:
    """Host and device buffers of *size* bytes in all, cut into a piece for every stream; ``start`` copies them once."""

    def __init__(self, size: float, direction: str, host_memory: str, streams: int):
        import torch

        count = max(int(size) // streams, 1)
        self.streams = [torch.cuda.Stream() for _ in range(streams)]
        pinned = host_memory == "pinned"
        self._pieces: list[tuple[Any, Any]] = []
        for i in range(streams):
            host = _filled(torch.empty(count, dtype=torch.uint8, pin_memory=pinned))
            there = torch.empty(count, dtype=torch.uint8, device="cuda")
            back = direction == "d2h" or (direction == "bidir" and i % 2 == 1)
            self._pieces.append((host, there) if back else (there, host))

    def start(self) -> None:
        """Copy every piece on its stream, after what the current stream holds; the current stream waits for all."""
        import torch

        here = torch.cuda.current_stream()
        for stream, (to, source) in zip(self.streams, self._pieces, strict=True):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                to.copy_(source, non_blocking=True)
        for stream in self.streams:
            here.wait_stream(stream)


def _whole_s(size: float) -> float:
    """Return about how long measuring copies of *size* bytes takes."""
    return 0.01 + size / FILL + (timing.WARMUPS + _repeats(size)) * size / LINK


def _repeats(size: float) -> int:
    return timing.REPLAYS if size / LINK > LONG_S else 2 * timing.REPLAYS


def _filled(host: Any) -> Any:
    """Fill *host* with one random block again and again: drawing gigabytes takes as many times ten seconds."""
    import torch

    block = torch.randint(0, 255, (min(1 << 20, host.numel()),), dtype=torch.uint8)
    for piece in host.split(len(block)):
        piece.copy_(block[: len(piece)])
    return host


def _timed(link: Link, size: float) -> Timing:
    for _ in range(timing.WARMUPS):
        link.start()
    return Timing([timing.events_s(link.start) for _ in range(_repeats(size))])
