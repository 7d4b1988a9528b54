"""Collect all evidence of one GPU, unattended: kernels, steps, offload, a trained router and its trace.

`python studies/08_gpu_evidence/evidence.py --minutes 8.7 --out out/h200`; call it until it says all is done. Pieces
run in the order of `PIECES`, most evidence first, each in a process of its own: one that fails, hangs or loses the
device costs no other. All that a piece finds is on disk as it is found. Exit code: 0 all done, 3 call it again, 1 a
piece failed for good, 2 wrong input.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DONE, AGAIN, LOST = 0, 3, 4  # exit codes of a piece; the first two of this program too
# Pinned memory of tens of gigabytes is touched by several threads: one takes up to a minute for what 8 do in seconds.
SETTINGS = {"PYTORCH_CUDA_ALLOC_CONF": "pinned_use_cuda_host_register:True,pinned_num_register_threads:8"}
TRIES = 3                # of a piece that fails
LOSSES = 12              # of the device, in one piece: the next try goes on behind the point that lost it
GRACE_S = 30.0           # a piece that does not stop in time is killed so long after it
SHORTEST_S = 10.0        # less time is not worth a start
NOTED_S = 5.0            # so often is it noted how much time a piece has taken: all may be killed at any moment
# Stay on the machine, not in the archive.
LARGE = {"checkpoint.pt", "checkpoint.part", "pilot.pt", "tokens.npz", "part.npz"}
NEEDED = ("torch", "numpy", "pandas", "pyarrow", "pydantic", "ruamel.yaml", "pint", "numba", "scipy")


class Piece(NamedTuple):
    """A part of the evidence: its share of all time, and the seconds without which it need not start on a GPU."""

    name: str
    share: float
    least_s: float = 20.0


# Three calls of a third of the time each: what gates all else; what is predicted; training, which no call should cut.
PIECES = (Piece("kernels", 0.33), Piece("steps", 0.15, 60), Piece("offload", 0.08, 60), Piece("again", 0.06),
          Piece("rest", 0.05), Piece("training", 0.26, 60), Piece("capture", 0.07, 60))
# piece, its share, spent, seconds of this call, what hears now and then how many of them are gone -> exit code
Runner = Callable[[str, float, float, float, Callable[[float], None]], int]


class State:
    """What the calls before left, in *folder*/state.json: of every piece seconds spent, tries, how it stands."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._file = folder, folder / "state.json"
        self.pieces: dict[str, dict[str, Any]] = {p.name: {"spent_s": 0.0, "failed": 0, "is": "open"} for p in PIECES}
        if self._file.exists():
            self.pieces |= json.loads(self._file.read_text(encoding="utf-8"))

    def save(self) -> None:
        """Write it in one move."""
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(self.pieces, indent=1) + "\n", encoding="utf-8")
        part.replace(self._file)

    def open(self) -> list[Piece]:
        """Return the pieces that are not done and have not failed for good."""
        return [piece for piece in PIECES if self.pieces[piece.name]["is"] == "open"]


def main(arguments: Sequence[str]) -> int:
    """Run what is open for so many minutes, print the summary, and return the exit code."""
    options = parse(arguments)
    state, began = State(options.out), time.monotonic()
    lock = alone(options.out)
    print(f"pieces left: {', '.join(p.name for p in state.open()) or 'none'}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):  # the piece is ended on the way out, and what there is is packed
        collect(state, 60 * options.minutes, 60 * options.total, child(options, lock), options.device,
                lambda: closed(state, options, began))
    found = closed(state, options, began)
    os.close(lock)
    print(json.dumps(found, indent=1))
    archive = options.out.with_name(options.out.name + ".tar.gz")
    print(f"results: {archive}, {archive.stat().st_size / 1e6:.1f} MB")
    return int(found["exit_code"])


def closed(state: State, options: argparse.Namespace, began: float) -> dict[str, Any]:
    """Write the summary and the archive of what there is so far, and return the summary."""
    found = summary(state, options, time.monotonic() - began)
    part = options.out / "summary.part"
    part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    part.replace(options.out / "summary.json")
    pack(options.out)
    return found


def collect(state: State, seconds: float, total_s: float, run: Runner, device: str = "cuda",
            finished: Callable[[], Any] = lambda: None) -> None:
    """Run open pieces in their order for at most *seconds*; each has its share of *total_s* over all calls.

    *finished* is called whenever a piece has run.
    """
    end = time.monotonic() + seconds
    for piece in state.open():
        mine, share_s = state.pieces[piece.name], piece.share * total_s
        least = piece.least_s if device == "cuda" else 1.0
        while mine["is"] == "open":
            left = min(end - time.monotonic(), max(share_s - mine["spent_s"], least))
            if left < least or end - time.monotonic() < (SHORTEST_S if device == "cuda" else 1.0):
                break
            began, before = time.monotonic(), mine["spent_s"]
            print(f"{piece.name}: {left:.0f} s of {share_s:.0f} s, {mine['spent_s']:.0f} s spent before", flush=True)
            try:
                code = run(piece.name, share_s, mine["spent_s"], left, partial(spent, state, mine, mine["spent_s"]))
            finally:
                spent(state, mine, before, time.monotonic() - began)
            settle(mine, code, mine["spent_s"] >= 0.97 * share_s)
            state.save()
            finished()
            print(f"{piece.name}: {mine['is']} after {mine['spent_s']:.0f} s"
                  + (f", exit code {code}; see {piece.name}.log" if code not in (DONE, AGAIN) else ""), flush=True)


def spent(state: State, mine: dict[str, Any], before: float, seconds: float) -> None:
    """Note in *mine*, and on disk, that a piece has taken *seconds* more than *before*."""
    mine["spent_s"] = round(before + seconds, 1)
    state.save()


def settle(mine: dict[str, Any], code: int, used_up: bool) -> None:
    """Note in *mine* how a run of a piece ended: done, cut (its share is used up), open, or failed."""
    if code in (DONE, AGAIN):
        mine["is"] = "done" if code == DONE else "cut" if used_up else "open"
        return
    mine["exit_code"] = code
    kind, most = ("lost", LOSSES) if code == LOST else ("failed", TRIES)
    mine[kind] = mine.get(kind, 0) + 1
    if mine[kind] >= most:
        mine["is"] = "failed"


def alone(folder: Path) -> int:
    """Return a lock on *folder* that pieces inherit; exit with 2 if another call, or a piece of it, still runs."""
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"error: {folder}: another call still measures there; wait for it or end it", file=sys.stderr)
        sys.exit(2)
    return lock


def child(options: argparse.Namespace, lock: int) -> Runner:
    """Return what runs one piece in a process of its own; its output goes to <piece>.log and its last line here."""

    def run(name: str, share_s: float, spent_s: float, seconds: float, note: Callable[[float], None]) -> int:
        command = [sys.executable, str(HERE / "pieces.py"), name, "--out", str(options.out), "--device", options.device,
                   "--share", f"{share_s:.1f}", "--spent", f"{spent_s:.1f}", "--seconds", f"{seconds:.1f}"]
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with (options.out / f"{name}.log").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, pass_fds=[lock],
                                       env={**SETTINGS, **os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"})
            try:
                code = waited(process, seconds + GRACE_S, note)
                if code is None:
                    log.write(f"killed: still running {GRACE_S:.0f} s after its time\n")
                    code = -int(signal.SIGKILL)
            finally:
                process.kill()
                process.wait()
        lines = (options.out / f"{name}.log").read_text(encoding="utf-8").splitlines()
        print(f"  {lines[-1] if lines else 'no output'}", flush=True)
        return code

    return run


def waited(process: subprocess.Popen[bytes], seconds: float, note: Callable[[float], None]) -> int | None:
    """Return the exit code of *process*, None if it still runs after *seconds*; *note* hears how many are gone."""
    began = time.monotonic()
    while (gone := time.monotonic() - began) < seconds:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(min(NOTED_S, seconds - gone))
        note(time.monotonic() - began)
    return process.poll()


def summary(state: State, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Return how every piece stands, what each said of itself, and the exit code."""
    pieces = {}
    for piece in PIECES:
        said = options.out / piece.name / "said.json"
        told = json.loads(said.read_text(encoding="utf-8")) if said.exists() else {}
        pieces[piece.name] = state.pieces[piece.name] | told
    standing = {entry["is"] for entry in state.pieces.values()}
    code = AGAIN if "open" in standing else 1 if "failed" in standing else DONE
    words = {AGAIN: "call it again", 1: "a piece failed for good", DONE: "all done"}[code]
    return {"device": options.device, "seconds_of_this_call": round(seconds, 1), "pieces": pieces,
            "verdict": words, "exit_code": code}


def pack(folder: Path) -> Path:
    """Write everything that is small into *folder*.tar.gz, beside it: to take away, or to go on elsewhere."""
    archive = folder.with_name(folder.name + ".tar.gz")
    part = archive.with_name(archive.name + ".part")
    with tarfile.open(part, "w:gz") as tar:
        for file in sorted(f for f in folder.rglob("*") if f.is_file() and f.name not in LARGE):
            tar.add(file, Path(folder.name) / file.relative_to(folder))
    part.replace(archive)
    return archive


def unusable(name: str) -> str:
    """Return why the package *name* cannot be imported, "" if it can: a package may be there and its needs not."""
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever an import raises: it would end every piece
        return f"{type(error).__name__}: {error}"
    return ""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exit with 2 if something is wrong or missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=28.0, help="of this call")
    parser.add_argument("--total", type=float, default=25.5, help="minutes of all calls; pieces have shares of it")
    parser.add_argument("--out", type=Path, required=True, help="folder; a run that was stopped goes on there")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: small sizes, to try it")
    options = parser.parse_args(arguments)
    if options.minutes <= 0 or options.total <= 0:
        parser.error("--minutes and --total are times above 0, in minutes; e.g. --minutes 9")
    missing = [f"{name} ({why})" for name in NEEDED if (why := unusable(name))]
    if missing:
        parser.error(f"this Python cannot import {', '.join(missing)}; install what is missing, or bring wheels "
                     "(docs/howto/gpu-evidence.md)")
    options.out = options.out.resolve()
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
