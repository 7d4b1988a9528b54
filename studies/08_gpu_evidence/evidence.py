"""Collect all evidence of one GPU, unattended: kernels, steps, offload, a trained router and its trace.

`python studies/08_gpu_evidence/evidence.py --minutes 9 --out out/h200`; call it until it says that all is done. Pieces
run in the order of `PIECES`, most evidence first, each in a process of its own: one that fails, hangs or loses the
device costs no other. All that a piece finds is on disk as it is found. Exit code: 0 all done, 3 call it again, 1 a
piece failed for good, 2 wrong input.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DONE, AGAIN = 0, 3       # exit codes of a piece, and of this program
TRIES = 3                # of a piece that fails; a lost device is one, and the next try goes on behind it
GRACE_S = 30.0           # a piece that does not stop in time is killed so long after it
SHORTEST_S = 10.0        # less time is not worth a start
LARGE = {"checkpoint.pt", "checkpoint.part", "tokens.npz"}  # stay on the machine, not in the archive
NEEDED = ("torch", "numpy", "pandas", "pyarrow", "pydantic", "ruamel.yaml", "pint", "numba", "scipy")


class Piece(NamedTuple):
    """A part of the evidence: its share of all time, and the seconds without which it need not start on a GPU."""

    name: str
    share: float
    least_s: float = 20.0


PIECES = (Piece("kernels", 0.32), Piece("steps", 0.15, 60), Piece("offload", 0.08, 60), Piece("training", 0.27, 60),
          Piece("capture", 0.07, 60), Piece("again", 0.06), Piece("rest", 0.05))
Runner = Callable[[str, float, float, float], int]  # piece, its share, spent, seconds of this call -> exit code


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
        collect(state, 60 * options.minutes, 60 * options.total, child(options, lock), options.device)
    found = summary(state, options, time.monotonic() - began)
    (options.out / "summary.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    archive = pack(options.out)
    os.close(lock)
    print(json.dumps(found, indent=1))
    print(f"results: {archive}, {archive.stat().st_size / 1e6:.1f} MB")
    return int(found["exit_code"])


def collect(state: State, seconds: float, total_s: float, run: Runner, device: str = "cuda") -> None:
    """Run open pieces in their order for at most *seconds*; each has its share of *total_s* over all calls."""
    end = time.monotonic() + seconds
    for piece in state.open():
        mine, share_s = state.pieces[piece.name], piece.share * total_s
        least = piece.least_s if device == "cuda" else 1.0
        while mine["is"] == "open" and mine["failed"] < TRIES:
            left = min(end - time.monotonic(), max(share_s - mine["spent_s"], least))
            if left < least or end - time.monotonic() < (SHORTEST_S if device == "cuda" else 1.0):
                break
            began = time.monotonic()
            print(f"{piece.name}: {left:.0f} s of {share_s:.0f} s, {mine['spent_s']:.0f} s spent before", flush=True)
            try:
                code = run(piece.name, share_s, mine["spent_s"], left)
            finally:
                mine["spent_s"] = round(mine["spent_s"] + time.monotonic() - began, 1)
                state.save()
            settle(mine, code, mine["spent_s"] >= 0.97 * share_s)
            state.save()
            print(f"{piece.name}: {mine['is']} after {mine['spent_s']:.0f} s"
                  + (f", exit code {code}; see {piece.name}.log" if code not in (DONE, AGAIN) else ""), flush=True)


def settle(mine: dict[str, Any], code: int, used_up: bool) -> None:
    """Note in *mine* how a run of a piece ended: done, cut (its share is used up), open, or failed."""
    if code in (DONE, AGAIN):
        mine["is"] = "done" if code == DONE else "cut" if used_up else "open"
        return
    mine["failed"] += 1
    mine["exit_code"] = code
    if mine["failed"] >= TRIES:
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

    def run(name: str, share_s: float, spent_s: float, seconds: float) -> int:
        command = [sys.executable, str(HERE / "pieces.py"), name, "--out", str(options.out), "--device", options.device,
                   "--share", f"{share_s:.1f}", "--spent", f"{spent_s:.1f}", "--seconds", f"{seconds:.1f}"]
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with (options.out / f"{name}.log").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, pass_fds=[lock],
                                       env={**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"})
            try:
                code = process.wait(seconds + GRACE_S)
            except subprocess.TimeoutExpired:
                log.write(f"killed: still running {GRACE_S:.0f} s after its time\n")
                code = -int(signal.SIGKILL)
            finally:
                process.kill()
                process.wait()
        lines = (options.out / f"{name}.log").read_text(encoding="utf-8").splitlines()
        print(f"  {lines[-1] if lines else 'no output'}", flush=True)
        return code

    return run


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


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exit with 2 if something is wrong or missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=28.0, help="of this call")
    parser.add_argument("--total", type=float, default=26.5, help="minutes of all calls; pieces have shares of it")
    parser.add_argument("--out", type=Path, required=True, help="folder; a run that was stopped goes on there")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: small sizes, to try it")
    options = parser.parse_args(arguments)
    if options.minutes <= 0 or options.total <= 0:
        parser.error("--minutes and --total are times above 0, in minutes; e.g. --minutes 9")
    missing = [name for name in NEEDED if importlib.util.find_spec(name.partition(".")[0]) is None]
    if missing:
        parser.error(f"this Python lacks {', '.join(missing)}; install them, or bring wheels "
                     "(docs/howto/gpu-evidence.md)")
    options.out = options.out.resolve()
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
