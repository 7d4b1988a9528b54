"""Measuring: blocks and their points, buffers, rows on disk, layers and stacks against plain arithmetic."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from moesim import measure, registry  # noqa: E402
from moesim.kernels import ops  # noqa: E402
from moesim.kernels.rates import Rates  # noqa: E402
from moesim.measure import ceilings, engines, journal, layers, routing, timing, validate  # noqa: E402
from moesim.measure.blocks import energy as energy_block  # noqa: E402
from moesim.measure.blocks import layer_stack  # noqa: E402
from moesim.measure.blocks.layer_stack import small  # noqa: E402
from moesim.measure.offload import ExpertCache, OffloadedStack, to_host  # noqa: E402
from moesim.measure.plan import Plan  # noqa: E402
from moesim.measure.pool import Pool  # noqa: E402
from moesim.measure.runner import Bench, Options  # noqa: E402
from moesim.measure.stack import Stack, Step  # noqa: E402
from moesim.measure.target import Target  # noqa: E402

CPU = Target("cpu", "a CPU", "fp32", 2e9, 4e6, 1, 20e9, 8e9)
H200 = Target("cuda", "an H200", "bf16", 120e9, 256e6, 132, 400e12, 2e12)
QUICK = timing.Effort(warmups=1, replays=1)
BLOCKS = registry.names("bench")
TINY = small("tiny", "fp32", hidden=64, layers=3, experts=8, top_k=2, ffn=32, heads=(4, 2, 16))


@cache
def planned(target: Target) -> Plan:
    return measure.planned(target)


@pytest.mark.parametrize("target", [CPU, H200], ids=["cpu", "cuda"])
def test_points_have_complete_shapes_and_names_of_their_own(target: Target) -> None:
    plan = planned(target)
    assert {item.block for item in plan.items} == set(BLOCKS) - ({"interference"} if target.kind == "cpu" else set())
    assert len({item.point.key for item in plan.items}) == len(plan.items)
    rates = Rates(1.0, 1.0, 1, target.value_bytes, target.value_bytes)
    for item in plan.items:
        assert item.cost_s > 0 and item.point.dtype == target.dtype
        json.dumps([item.point.shapes, item.point.extra])
        if item.point.op in ops.OPS:
            shapes = ops.shapes(item.point.op, dict(item.point.shapes), rates)
            assert not ops.idle(item.point.op, shapes)


def test_a_step_of_every_routing_is_measured() -> None:
    steps = [item.point for item in planned(H200).items if item.point.op == "step"]
    assert {p.routing for p in steps} == set(layer_stack.ROUTINGS) and len(steps) > 60


def test_a_gpu_is_measured_in_about_a_quarter_of_an_hour() -> None:
    assert 600 < sum(planned(H200).seconds().values()) < 1200


@pytest.mark.parametrize("block", BLOCKS)
def test_the_cheapest_point_of_every_kind_runs_on_a_cpu(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_stack, "model", lambda name, dtype: TINY)
    part, bench = registry.make("bench", block), Bench(CPU)
    kinds: dict[tuple[str, str], Any] = {}
    for point in sorted(part.points(CPU), key=lambda p: p.whole_s or CPU.guess_s(p)):
        kinds.setdefault((point.op, point.impl), point)
    if block == "energy" and not list(Path("/sys/class/powercap").glob("intel-rapl:*")):
        pytest.skip("no energy counter here")
    for point in kinds.values():
        with torch.inference_mode():
            found = timing.measure("cpu", part.work(point, bench), QUICK)
        assert min(found.samples_s) > 0


def test_energy_is_the_counter_over_the_calls() -> None:
    joules = iter(range(100))
    found = energy_block.loops([lambda: None], lambda: float(next(joules)), "cpu", seconds=1e-4)
    assert len(found.samples_s) == energy_block.LOOPS and 0 < found.extra["energy_j"] <= 1 / 16
    assert found.extra["power_w"] == pytest.approx(found.extra["energy_j"] / np.median(found.samples_s))


def test_pool_gives_no_byte_twice() -> None:
    pool = Pool("cpu", torch.float32)
    shared, sets = pool.ring([(10, 10), (7,)], ring_bytes=4000, shared=[(3, 3)])
    assert len(sets) == 10  # 400 + 28 bytes each
    spans = sorted((t.data_ptr(), t.data_ptr() + 4 * t.numel()) for t in [*shared, *(t for s in sets for t in s)])
    assert all(end <= begin for (_, end), (begin, _) in zip(spans, spans[1:], strict=False))
    assert float(sets[0][0].std()) > 0 and all(t.data_ptr() % 64 == shared[0].data_ptr() % 64 for s in sets for t in s)


def test_expert_calls_stream_a_ring_before_they_meet_an_expert_again(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[tuple[int, int]] = []

    def note(x: Any, share: Any, ids: Any, up: Any, down: Any) -> None:
        met.extend((up.data_ptr(), int(e)) for e in ids.unique())

    monkeypatch.setattr(layers, "experts_loop", note)
    part = registry.make("bench", "experts")
    point = next(p for p in part.points(CPU) if p.routing == "zipf" and p.extra["tokens"] == 4
                 and len(p.shapes["tokens_per_expert"]) == 32)
    work = part.work(point, Bench(CPU))
    active = sum(t > 0 for t in point.shapes["tokens_per_expert"])
    for call in work.calls[: len(work.calls) * 32 // (32 + active)]:  # the last round may begin again
        call()
    assert len(set(met)) == len(met) > active


@pytest.mark.parametrize("kind", routing.KINDS)
def test_routing_names_an_expert_once(kind: str) -> None:
    ids = routing.choose(kind, 500, 16, 4, np.random.default_rng(0))
    assert all(len(set(row)) == 4 for row in ids) and routing.counts(ids, 16).sum() == 2000
    ratio = routing.counts(ids, 16).max() / 125
    assert {"balanced": ratio == 1, "uniform": 1 < ratio < 1.4, "zipf": ratio > 2}[kind]
    with pytest.raises(ValueError, match="unknown routing 'even'; use one of balanced"):
        routing.choose("even", 1, 2, 1, np.random.default_rng(0))


def journal_rows(folder: Path) -> list[dict[str, Any]]:
    return journal.read(folder / journal.ROWS)


def found_times(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {}
    for row in rows:
        times.setdefault(row["x_key"], []).append(row["time_s"])
    return times


class TestRunner:
    """Rows on disk, budgets, failures."""

    ONLY = Options(blocks=("launch", "router"), seed=3, effort=QUICK)

    def some(self, monkeypatch: pytest.MonkeyPatch, kind: str = "launch") -> Any:
        """Leave a few quick points in the block *kind*; return its class."""
        cls = registry.find("bench", kind)
        points = [p for p in cls().points(CPU) if p.op != "gate"][:4]
        monkeypatch.setattr(cls, "points", lambda self, target: points)
        return cls

    def test_a_budget_is_spent_in_several_calls(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A second a point: two fit before the stop; of a budget of which all is spent, none; of keys, those."""
        self.some(monkeypatch)
        now, seen = [0.0], []
        monkeypatch.setattr("moesim.measure.runner.time.monotonic", lambda: now[0])
        add = journal.Journal.add
        monkeypatch.setattr(journal.Journal, "add",
                            lambda self, row: (add(self, row), now.__setitem__(0, now[0] + 1)))
        only = Options(("launch",), 1e6, effort=timing.Effort(1, 1, 2))
        found = measure.measure(CPU, tmp_path, replace(only, stop_s=2.0), lambda *turn: seen.append(turn))
        assert len(found.rows) == 2 and seen[-1] == (2, 8)
        assert len(measure.measure(CPU, tmp_path, replace(only, spent_s=1e6)).rows) == 2
        key = frozenset(row["x_key"] for row in found.rows[:1])
        assert {r["x_key"] for r in measure.measure(CPU, tmp_path / "b", replace(only, keys=key)).rows} == key

    def test_goes_on_where_it_was_stopped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.some(monkeypatch)
        self.some(monkeypatch, "router")

        def stop(done: int, total: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            measure.measure(CPU, tmp_path, self.ONLY, stop)
        before = journal.read(tmp_path / journal.ROWS)
        assert len(before) == 3
        with (tmp_path / journal.ROWS).open("a") as file:
            file.write('{"op": "launch", "cut sh')  # the power went off
        found = measure.measure(CPU, tmp_path, self.ONLY)
        assert found.rows[:3] == before and len(found.rows) == 8
        assert len({row["x_key"] for row in found.rows}) == 8
        assert measure.measure(CPU, tmp_path, self.ONLY).rows == found.rows  # nothing left to do
        assert json.loads((tmp_path / "environment.json").read_text())["device"] == "a CPU"

    def test_a_folder_holds_one_machine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.some(monkeypatch)
        options = Options(blocks=("launch",))
        measure.measure(CPU, tmp_path, options)
        with pytest.raises(ValueError, match="holds measurements with device 'a CPU', and this is 'another'"):
            measure.measure(replace(CPU, name="another"), tmp_path, options)

    def test_what_fails_is_a_row(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cls = self.some(monkeypatch)
        errors = iter([MemoryError("no room"), RuntimeError("kernel broke"), ModuleNotFoundError("Triton is missing")])
        works = cls.work

        def work(self: Any, point: Any, bench: Any) -> Any:
            for error in errors:
                raise error
            return works(self, point, bench)

        monkeypatch.setattr(cls, "work", work)
        rows = measure.measure(CPU, tmp_path, Options(blocks=("launch",), effort=QUICK)).rows
        assert [row["status"] for row in rows] == ["oom", "error", "error", "ok"]
        assert rows[1]["x_error"] == "RuntimeError: kernel broke" and "time_s" not in rows[1]

    def test_sentinels_are_measured_three_times(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("moesim.measure.runner.time.monotonic", lambda: 0.0)  # points take no time
        found = measure.measure(CPU, tmp_path, Options(blocks=("elementwise",), budget_s=0.5, effort=QUICK))
        turns = [row["x_turn"] for row in found.rows if row["sentinel"]]
        assert turns == sorted(turns) and set(turns) == {0, 1, 2}
        assert measure.drift(found)["points"] >= 1

    def test_rounds_go_over_all_points_and_steps_come_between(self, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
        self.some(monkeypatch)
        options, pauses = Options(blocks=("launch",), effort=QUICK._replace(rounds=3)), []
        found = measure.measure(CPU, tmp_path, options,
                                between=lambda: pauses.append(len(journal_rows(tmp_path))))
        assert pauses == [0, 4, 8, 12] and not any(row["sentinel"] for row in found.rows)
        assert [row["x_round"] for row in found.rows] == [0] * 4 + [1] * 4 + [2] * 4
        assert len({row["x_key"] for row in found.rows}) == 4 and measure.drift(found)["points"] == 4
        table = found.table()
        for key, times in found_times(found.rows).items():
            assert table.set_index("x_key").loc[key, "time_s"] == min(times)
        assert measure.measure(CPU, tmp_path, options).rows == found.rows  # nothing left to do

    def test_time_between_rounds_is_not_of_the_budget(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.some(monkeypatch)
        now = [0.0]
        monkeypatch.setattr("moesim.measure.runner.time.monotonic", lambda: now[0])

        def pause() -> None:
            now[0] += 100.0

        options = Options(blocks=("launch",), budget_s=1.0, effort=QUICK._replace(rounds=2))
        assert len(measure.measure(CPU, tmp_path, options, between=pause).rows) == 8

    def test_the_last_turn_of_sentinels_has_its_time_kept(self, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
        now = [0.0]
        monkeypatch.setattr("moesim.measure.runner.time.monotonic", lambda: now[0])
        cls = registry.find("bench", "router")
        works = cls.work  # type: ignore[attr-defined]

        def slow(self: Any, point: Any, bench: Any) -> Any:
            now[0] += 0.02  # a few times what was thought
            return works(self, point, bench)

        monkeypatch.setattr(cls, "work", slow)
        rows = measure.measure(CPU, tmp_path, Options(blocks=("router",), budget_s=1.0, effort=QUICK)).rows
        turns = [row["x_turn"] for row in rows]
        assert turns.count(2) >= 1 and now[0] <= 1.0 + 1e-9
        options = Options(blocks=("router",), budget_s=1.0, effort=QUICK)
        assert 0 < turns.count(-1) < len(measure.planned(CPU, options).items)

    def test_budget_is_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [0.0]
        monkeypatch.setattr("moesim.measure.runner.time.monotonic", lambda: now[0])
        cls = registry.find("bench", "launch")
        works = cls.work  # type: ignore[attr-defined]

        def slow(self: Any, point: Any, bench: Any) -> Any:
            now[0] += 1.0  # a thousand times what was thought
            return works(self, point, bench)

        monkeypatch.setattr(cls, "work", slow)
        rows = measure.measure(CPU, tmp_path, Options(blocks=("launch",), budget_s=1.5, effort=QUICK)).rows
        assert len(rows) == 2 and now[0] == 2.0  # the second was begun in time, by the corrected estimate


def test_broken_rows_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"op": "gemm"}\nnot json\n{"op": "gemm"}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl:2: not a row of measurements; remove the line"):
        journal.read(tmp_path / "rows.jsonl")


def test_tables_are_what_kernels_are_fitted_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measurements = pytest.importorskip("moesim.kernels.measurements")
    monkeypatch.setattr("moesim.measure.runner.time.monotonic", lambda: 0.0)  # points take no time
    options = Options(blocks=("elementwise", "experts", "launch", "router"), budget_s=1.0, effort=QUICK)
    found = measure.measure(CPU, tmp_path, options)
    paths = found.export("cpu")
    assert [path.name for path in paths] == ["measurements.parquet", "engine.parquet", "others.parquet"]
    read = measurements.read(paths[0])
    assert {"elementwise", "moe", "gate"} <= set(read.ops())
    assert len(read.table) == sum(row["op"] in journal.KERNELS for row in found.rows)


class TestLayers:
    """Pieces of a layer against plain loops."""

    random = torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Any:
        return torch.randn(*shape, generator=self.random)

    @pytest.mark.parametrize("kind", routing.KINDS)
    def test_experts(self, kind: str) -> None:
        x, up, down = self.normal(9, 16), self.normal(5, 2 * 8, 16), self.normal(5, 16, 8)
        ids = torch.from_numpy(routing.choose(kind, 9, 5, 2, np.random.default_rng(0)))
        share = torch.rand(9, 2, generator=self.random)
        wanted = torch.zeros_like(x)
        for t in range(9):
            for k in range(2):
                gate, value = (up[ids[t, k]] @ x[t]).chunk(2)
                wanted[t] += share[t, k] * (down[ids[t, k]] @ (torch.sigmoid(gate) * gate * value))
        torch.testing.assert_close(layers.experts_loop(x, share, ids, up, down), wanted, rtol=1e-4, atol=1e-4)
        half = layers.experts_grouped_mm(x.bfloat16(), share.bfloat16(), ids, up.bfloat16(), down.bfloat16())
        torch.testing.assert_close(half.float(), wanted, rtol=0.1, atol=1.0)

    def test_decode_over_uneven_lengths(self) -> None:
        q, (keys, values) = self.normal(3, 4, 16), self.normal(2, 3, 2, 9, 16)
        found = layers.decode_sdpa(q, keys, values, [9, 1, 5])
        for b, n in enumerate([9, 1, 5]):
            for h in range(4):
                weight = torch.softmax(keys[b, h // 2, :n] @ q[b, h] / 4, 0)
                torch.testing.assert_close(found[b, h], weight @ values[b, h // 2, :n])

    def test_chunks_and_decoding_continue_a_prompt(self) -> None:
        """A whole prompt gives the same as its first part, a chunk, and a last token that decodes."""
        stack = Stack(TINY, CPU)
        x = self.normal(12, 64)
        with torch.inference_mode():
            whole = Step(prompts=(12,))
            wanted = stack.runner(whole, stack.cache(whole))(x)
            first, chunk, last = Step(prompts=(5,)), Step(prompts=(11,), chunk=6), Step(contexts=(12,))
            cache = stack.cache(Step(prompts=(12,)))
            for step, rows in ((first, x[:5]), (chunk, x[5:11]), (last, x[11:])):
                found = stack.runner(step, cache)(rows)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)

    def test_prompts_and_decoding_share_a_step(self) -> None:
        stack, x = Stack(TINY, CPU), self.normal(7, 64)
        with torch.inference_mode():
            both = Step(prompts=(4,), contexts=(6, 6, 3))
            cache = stack.cache(both)
            found = stack.runner(both, cache)(x)
            alone = [stack.runner(Step(prompts=(4,)), [[pairs[0]] for pairs in cache])(x[:4]),
                     stack.runner(Step(contexts=(6, 6, 3)), [[pairs[1]] for pairs in cache])(x[4:])]
        torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-4)

    def test_skew_makes_loads_uneven(self) -> None:
        stack, step = Stack(TINY, CPU), Step(prompts=(64,))
        hidden, cache = stack.hidden(step), stack.cache(step)
        spread = []
        for exponent in (0.0, 2.0):
            stack.skew(exponent)
            spread.append(np.max(stack.loads(stack.routed(step, cache, hidden))))
        assert spread[1] > spread[0]

    def test_a_stack_says_what_it_cannot_run(self) -> None:
        model = TINY.scaled(moe=TINY.moe.model_dump() | {"shared_ffn": 32})
        with pytest.raises(ValueError, match="a layer stack cannot run shared experts"):
            Stack(model, CPU)


    def test_experts_are_as_popular_as_a_trace_says(self) -> None:
        """Two layers of a trace with four experts: four of eight lie at its ends, so their popularity is that."""
        stack = Stack(TINY, CPU)
        stack.follow(np.array([[0.4, 0.1, 0.2, 0.3], [0.25] * 4]))
        first, second, third = (torch.exp(layer["bias"]).sort().values.tolist() for layer in stack.layers)
        assert first == pytest.approx([0.1, 0.125, 0.175, 0.225, 0.275, 0.325, 0.375, 0.4], rel=1e-5)
        assert second == pytest.approx([0.25] * 8) and third == pytest.approx(first, rel=1e-5)


class TestOffload:
    """The least recently used expert goes first; results do not depend on where experts are."""

    def test_slots_by_hand(self) -> None:
        model = small("two", "fp32", hidden=64, layers=2, experts=2, top_k=1, ffn=32, heads=(4, 2, 16))
        stack = Stack(model, CPU)
        cache = ExpertCache(stack, to_host(stack), slots=3)
        for layer, experts in ((0, [0, 1]), (1, [0]), (0, [0]), (1, [1]), (0, [1])):
            cache.need(layer, experts)
        # misses: (0,0) (0,1) (1,0); hit (0,0); (1,1) takes the place of (0,1), the oldest; so (0,1) takes that of (1,0)
        assert (cache.hits, cache.misses) == (1, 5)
        assert cache.moved_bytes == 5 * 3 * 64 * 32 * 4
        with pytest.raises(ValueError, match="1 slots for layers of 2 experts"):
            ExpertCache(stack, to_host(stack), slots=1)

    @pytest.mark.parametrize("prefetch", [False, True])
    def test_offload_computes_what_the_stack_does(self, prefetch: bool) -> None:
        stack, step = Stack(TINY, CPU), Step(contexts=(5, 5))
        inputs, cache = [stack.hidden(step) for _ in range(4)], stack.cache(step)
        with torch.inference_mode():
            wanted = [stack.runner(step, cache)(x) for x in inputs]
            offloaded = OffloadedStack(stack, to_host(stack), 0.4, prefetch)  # 10 of 24 experts
            found = [offloaded.runner(step, cache)(x) for x in inputs]
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b)
        assert offloaded.cache.misses + offloaded.cache.hits > 0 and offloaded.cache.moved_bytes > 0


class TestValidate:
    """Predicting steps of stacks that nothing was fitted to."""

    @pytest.mark.parametrize("target", [CPU, H200], ids=["cpu", "cuda"])
    def test_no_matrix_of_an_unseen_stack_is_measured(self, target: Target) -> None:
        measured = {(p.shapes["n"], p.shapes["k"]) for p in registry.make("bench", "dense_gemm").points(target)}
        layers_ = {(p.shapes["hidden"], p.shapes["inter"]) for name in ("experts", "activated_experts")
                   for p in registry.make("bench", name).points(target)}
        for case in validate.cases(target):
            assert not {(g.n, g.k) for g in (*case.model.attention_gemms(), case.model.head_gemm())} & measured
            assert (case.model.hidden, case.model.moe.ffn) not in layers_

    @pytest.mark.parametrize("kind", ["cpu", "cuda"])
    def test_models_to_fit_exist(self, kind: str) -> None:
        assert validate.MODEL[kind] in registry.names("kernel_model")

    def test_rows_are_fitted_or_judged_by_their_shape(self) -> None:
        rows = [{"op": "gemm", "m": m, "n": 64, "k": 64, "dtype": "fp32", "time_s": 1e-3, "impl": "linear",
                 "cold": True, "sentinel": turn >= 0, "status": "ok", "x_turn": turn,
                 "x_key": f"{m * 7919 % 65536:04x}0"}
                for m in range(200) for turn in (-1, 0)]
        table = validate.to_fit(journal.as_table(rows), "cpu")
        assert 0.75 < (table["split"] == "fit").mean() < 0.95
        assert (table.groupby("m")["split"].nunique() == 1).all()

    def test_steps_are_compared(self) -> None:
        table = journal.as_table([
            {"op": "gemm", "m": 64, "n": 64, "k": 64, "dtype": "fp32", "time_s": 1e-3, "impl": "linear", "cold": True,
             "sentinel": False, "status": "ok"},
            {"op": "elementwise", "bytes": 1e6, "dtype": "fp32", "time_s": 1e-3, "impl": "add", "cold": True,
             "sentinel": False, "status": "ok"},
            {"op": "elementwise", "bytes": 1e6, "dtype": "fp32", "time_s": 1e-3, "impl": "add_rms_norm", "cold": False,
             "sentinel": False, "status": "ok"}])
        assert engines.of_engine(table, "cpu")["impl"].tolist() == ["linear", "add_rms_norm"]
        device = ceilings.device(CPU, table, "2026-01-01")
        cases = [validate.Case(TINY, Step(contexts=(4, 4))), validate.Case(TINY, Step(prompts=(6,)))]
        steps = validate.Steps(CPU, cases)
        for _ in range(2):
            steps.measure()
        found = steps.compare(device, "roofline")
        assert found["batch"].tolist() == [2, 0] and found["prompt"].tolist() == [0, 6]
        assert (found["rounds_percent"] > 0).all()
        ids = np.random.default_rng(0).permuted(np.tile(np.arange(8), (12, 3, 1)), axis=2)[:, :, :2]

        def price(prompt: int, chunk: int) -> float:
            case = validate.Case(TINY, Step(prompts=(prompt,), chunk=chunk))
            return validate.predicted_s(case, device, "roofline", ids[:min(chunk or prompt, prompt)])

        assert price(12, 0) == price(12, 12), "a chunk of all of it is the prompt"
        assert price(8, 8) < price(12, 8) < price(12, 12), "a chunk attends to what stands before it"
        assert (found["measured_ms"] > 0).all() and (found["predicted_ms"] > 0).all()
        errors = validate.errors(found.assign(error_percent=[10.0, -30.0]))
        assert (errors["median"], errors["worst"], errors["bias"], errors["steps"]) == (20.0, 30.0, -10.0, 2)
