"""The pieces of the evidence, one per call: `pieces.py NAME --out FOLDER --seconds S` (evidence.py calls it)."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim import measure, whole
from moesim.kernels import ops
from moesim.measure import Options, ceilings, timing, validate
from moesim.measure.journal import Journal
from moesim.measure.runner import DeviceLost

DONE, AGAIN, LOST = 0, 3, 4  # exit codes
STACK, OFFLOAD, REST = ("layer_stack",), ("offload",), ("energy", "interference")
OPERATORS = ("activated_experts", "attention_decode", "attention_prefill", "dense_gemm", "elementwise", "experts",
             "host_copy", "launch", "memory", "router")
CLOSING_S = {"cuda": 6.0, "cpu": 0.3}  # to write tables after the last point (assumed)
CHECKED = ("attention_decode", "dense_gemm", "elementwise")  # of their sentinels one each is measured in other pieces
CHECK_S = 2.5  # for that, at most, and one point


@dataclass(frozen=True)
class Job:
    """A piece's folder, device, seconds in all and spent before, and the seconds of this call."""

    out: Path
    device: str
    share_s: float
    spent_s: float
    seconds: float
    began: float
    effort: timing.Effort | None = None  # of measuring; None: what the device needs

    def left_s(self) -> float:
        """Return the seconds of this call that are left."""
        return self.began + self.seconds - time.monotonic()


def kernels(job: Job) -> int:
    """Measure every operator."""
    return measured(job, "kernels", OPERATORS)


def steps(job: Job) -> int:
    """Measure steps of whole layer stacks: what the kernels have to add up to."""
    return measured(job, "steps", STACK)


def offload(job: Job) -> int:
    """Measure decoding with experts on the host."""
    return measured(job, "offload", OFFLOAD)


def rest(job: Job) -> int:
    """Measure energy, and what kernels and copies do to each other."""
    return measured(job, "rest", REST)


def again(job: Job) -> int:
    """Measure the operators that a fit is judged by a second time: how far may a model be off at best?"""
    known, judged = Journal(job.out / "kernels").rows, range(*validate.HELD_OUT)
    keys = frozenset(row["x_key"] for row in known if row["status"] == "ok" and row["op"] in ops.OPS
                     and validate.percentile(row["x_key"]) in judged)
    if not keys:
        raise ValueError(f"{job.out / 'kernels'}: no operator was measured that could be measured again")
    return measured(job, "again", OPERATORS, keys)


def training(job: Job) -> int:
    """Train the reference language model on text of this machine."""
    import training as part

    return DONE if part.teach(job.out, job.device, job.seconds, job.share_s - job.spent_s) else AGAIN


def capture(job: Job) -> int:
    """Send held-out text through the trained model and record which experts it chooses."""
    import training as part

    return DONE if part.record_trace(job.out, job.device, job.left_s()) else AGAIN


def check(job: Job, target: measure.Target, name: str) -> None:
    """Measure a few of the kernels' sentinels, once, into *name*/sentinels: is the machine still as it was?

    Where kernels have no sentinels (a CPU, which measures everything in several rounds), any of their points.
    """
    rows = [row for row in Journal(job.out / "kernels").rows if row["status"] == "ok" and row["x_block"] in CHECKED]
    first: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: (not row["sentinel"], row["x_key"])):
        first.setdefault(row["x_block"], row["x_key"])
    if not first or (job.out / name / "sentinels").exists():
        return
    (job.out / name / "sentinels").mkdir(parents=True)
    options = Options(tuple(first), CHECK_S, effort=job.effort, keys=frozenset(first.values()), stop_s=CHECK_S)
    try:
        measure.measure(target, job.out / name / "sentinels", options)
    except DeviceLost:
        raise
    except Exception as error:  # whatever it is: the piece can do without
        print(f"sentinels: {type(error).__name__}: {error}")
    if target.kind == "cuda":  # what follows needs nearly all memory
        import torch

        gc.collect()
        torch.cuda.empty_cache()


def changed(out: Path, name: str) -> dict[str, float]:
    """Return how far *name*/sentinels are from the kernels' rows of the same points, in percent; {} without any."""
    times: list[dict[str, list[float]]] = [{}, {}]
    for place, found in zip(("kernels", f"{name}/sentinels"), times, strict=True):
        for row in Journal(out / place).rows if (out / place).exists() else ():
            if row["status"] == "ok":
                found.setdefault(row["x_key"], []).append(row["time_s"])
    before, now = times
    apart = np.array([100 * (np.median(now[key]) / np.median(before[key]) - 1) for key in now if key in before])
    return {"median": float(np.median(apart)), "worst": float(abs(apart).max()), "points": len(apart)} if len(
        apart) else {}


def measured(job: Job, name: str, blocks: tuple[str, ...], keys: frozenset[str] | None = None) -> int:
    """Measure *blocks* into the folder *name*; write its tables, the device and what came out."""
    target, folder, turns = measure.find(job.device, threads=0), job.out / name, [0, 1]
    if blocks in (STACK, OFFLOAD):
        check(job, target, name)

    def moved(done: int, total: int) -> None:
        turns[:] = [done, total]

    closing_s = CLOSING_S[job.device]
    left_s = job.left_s() - closing_s
    gone_s = job.spent_s + job.seconds - left_s + 0.5 * closing_s  # the budget ends before this call is stopped
    options = Options(blocks, job.share_s, effort=job.effort, spent_s=gone_s, keys=keys, stop_s=max(left_s, 0.5))
    todo = measure.planned(target, options)
    try:
        measure.measure(target, folder, options, moved)
    finally:
        journal = Journal(folder)
        journal.export(target.kind)
        tell(folder, {"rows": len(journal.rows), "failed_rows": sum(row["status"] != "ok" for row in journal.rows),
                      "turns": turns, "drift_percent": measure.drift(journal),
                      "points": {"measured": len({row["x_key"] for row in journal.rows if row["status"] == "ok"}),
                                 "planned": len(todo.items), "all": len(todo.items) + sum(todo.left_out.values())},
                      "against_kernels_percent": changed(job.out, name) if blocks in (STACK, OFFLOAD) else {}})
    if name == "kernels":
        with contextlib.suppress(ValueError):  # too few rows yet: the next call has more
            described = ceilings.device(target, journal.table())
            whole.file(folder / "device.yaml", ceilings.as_yaml(described).encode())
    return DONE if turns[0] == turns[1] else AGAIN


def tell(folder: Path, facts: dict[str, object]) -> None:
    """Write what a piece says of itself, for the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    whole.file(folder / "said.json", (json.dumps(facts, indent=1) + "\n").encode())


PIECES: dict[str, Callable[[Job], int]] = {
    "kernels": kernels, "steps": steps, "offload": offload, "training": training, "capture": capture, "again": again,
    "rest": rest}


def main(arguments: Sequence[str]) -> int:
    """Run one piece; its last line says what was wrong, if something was."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("piece", choices=PIECES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    for name in ("share", "spent", "seconds"):
        parser.add_argument(f"--{name}", type=float, required=True)
    given = parser.parse_args(arguments)
    job = Job(given.out, given.device, given.share, given.spent, given.seconds, began)
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    try:
        code = PIECES[given.piece](job)
    except DeviceLost as lost:
        print(f"{given.piece}: {lost}")
        return LOST
    print(f"{given.piece}: {'done' if code == DONE else 'to be continued'}")
    return code


def end_with(parent: int) -> None:
    """End this process when *parent* is gone: killed, it cannot, and the next call would find its device in use."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
