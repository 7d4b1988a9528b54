"""Plots draw what their tables say, say what they found, and name their units. No pixels are compared."""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text

from moesim import plots
from moesim.network.topologies.leaf_spine import LeafSpine
from moesim.plots import _labels
from moesim.plots._style import scale
from moesim.plots.pareto import front

PAIRS = pd.DataFrame({"layer": [0, 0, 0, 1, 1], "expert": [0, 1, 1, 0, 1], "next_expert": [1, 0, 1, 0, 1],
                      "tokens": [6, 3, 1, 5, 5]})
LAYERS = pd.DataFrame({"layer": [0, 1], "mutual_information_nat": [0.4, 0.2], "null_nat": [0.01, 0.01],
                       "entropy_nat": [1.0, 1.0]})
LOAD = pd.DataFrame({"placement": ["linear"] * 4 + ["lpt"] * 4, "layer": [0, 0, 1, 1] * 2, "device": [0, 1] * 4,
                     "tokens": [30, 10, 10, 30, 22, 18, 18, 22]})
PHASES = pd.DataFrame({"placement": ["linear", "lpt"], "mode": "dispatch_combine", "start_s": 0.0, "attention_s": 2e-3,
                       "gate_s": 5e-5, "experts_s": [3e-3, 2e-3], "head_s": 1e-6, "wait_s": [1e-3, 5e-4]})
POINTS = pd.DataFrame({"placement": ["linear", "lpt", "joint_1"], "load_max_over_mean": [1.5, 1.0, 1.2],
                       "cross_top1": [0.75, 0.8, 0.4]})
LINKS = pd.DataFrame({"placement": ["linear"] * 2 + ["joint"] * 2, "class": ["scale_up", "nic"] * 2,
                      "bytes": [8e9, 2e9, 8e9, 1e9]})
REQUESTS = pd.DataFrame({"placement": ["linear"] * 3 + ["lpt"] * 3, "ttft_s": 0.1,
                         "tpot_s": [0.020, 0.022, np.nan, 0.010, 0.011, 0.012]})
FABRIC = LeafSpine(leaves=2, spines=2, hosts_per_leaf=2).links().assign(load_bytes=1e6)
KERNELS = pd.DataFrame({"op": ["gemm"] * 3 + ["moe"] * 3, "split": ["fit", "test", "test"] * 2,
                        "measured_s": [1e-5, 2e-5, 4e-5, 1e-4, 2e-4, 4e-4], "roofline_s": [5e-6, 1e-5, 3e-5] * 2,
                        "predicted_s": [2e-5, 2.1e-5, 4e-5, 1e-4, 2.4e-4, 4e-4]})
SIDES = pd.DataFrame({"source": ["measured"] * 4 + ["simulated"] * 4, "time_s": [1.0, 2.0, 3.0, 4.0] * 2,
                      "ttft_s": [0.1, 0.2, 0.3, 0.4, 0.1, 0.25, 0.35, 0.5], "kv_used": 0.5,
                      "output_tok_per_s": [0, 80, 90, 0, 0, 70, 90, 0]})
PER_REQUEST = pd.DataFrame({"ttft_measured_s": [0.1, 0.2, 0.4, np.nan], "ttft_simulated_s": [0.109, 0.15, 0.44, 1.0]})
TABLES: dict[str, pd.DataFrame] = {
    "affinity": PAIRS, "affinity_layers": LAYERS, "breakdown": PHASES, "device_load": LOAD, "fabric": FABRIC,
    "latency_cdf": REQUESTS, "kernel_prediction": KERNELS, "kernel_utilisation": KERNELS, "kernel_error": KERNELS,
    "links": LINKS, "pareto": POINTS, "run_cdf": SIDES, "run_scatter": PER_REQUEST, "run_timeline": SIDES}


@cache
def drawn(name: str) -> Axes:
    """Return a plot as it is without options, to look at."""
    ax = plots.draw(name, TABLES[name])
    assert isinstance(ax, Axes)
    return ax


def title(ax: Axes) -> str:
    return ax.get_title("left").replace("\n", " ")


def texts(ax: Axes) -> list[str]:
    return [t.get_text() for t in ax.texts]


@pytest.mark.parametrize("name", plots.names())
def test_every_plot_takes_a_table_and_returns_the_axes_it_was_given(name: str) -> None:
    _, axes = plots.figure()
    assert plots.draw(name, TABLES[name], ax=axes[0, 0]) is axes[0, 0]
    assert drawn(name) is not axes[0, 0]


@pytest.mark.parametrize("name", plots.names())
def test_every_plot_has_its_answer_for_a_title_and_names_its_axes(name: str) -> None:
    ax = drawn(name)
    assert title(ax) and ax.get_xlabel()
    assert ax.get_ylabel() or [t.get_text() for t in ax.get_yticklabels()]
    assert title(plots.draw(name, TABLES[name], title="here: {answer}")).lower() == f"here: {title(ax)}".lower()


@pytest.mark.parametrize("name", plots.names())
def test_a_plot_says_which_column_is_missing_and_leaves_its_table_alone(name: str) -> None:
    table = TABLES[name].copy()
    plots.draw(name, table)
    pd.testing.assert_frame_equal(table, TABLES[name])
    with pytest.raises(ValueError, match=rf"^{name}: the table has no column .*it has nothing_else"):
        plots.draw(name, pd.DataFrame({"nothing_else": [1]}))
    with pytest.raises(ValueError, match=rf"^{name}: the table has no rows"):
        plots.draw(name, table.iloc[:0])


@pytest.mark.parametrize("name", plots.names())
def test_a_plot_is_called_as_its_file_and_documents_its_table(name: str) -> None:
    function = getattr(plots, name)
    assert function.__module__ == f"moesim.plots.{name}" and "*table*" in function.__doc__ or name == "pareto"
    assert list(inspect.signature(function).parameters)[:2] == ["table", "ax"]


def test_an_unknown_plot_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="unknown plot 'parto'; did you mean 'pareto'"):
        plots.draw("parto", POINTS)


def test_the_front_by_hand() -> None:
    # (1, 3) is the most balanced, (2, 1) has the least traffic; (2, 2) and (3, 1) lose to (2, 1); twins stay together
    x, y = np.array([1.0, 2.0, 2.0, 3.0, 1.0]), np.array([3.0, 1.0, 2.0, 1.0, 3.0])
    assert front(x, y).tolist() == [True, True, False, False, True]
    assert front(np.array([5.0]), np.array([5.0])).tolist() == [True]


def test_pareto_names_every_point_and_says_what_traffic_costs() -> None:
    ax = plots.draw("pareto", POINTS)
    assert {"linear", "lpt", "joint 1"} <= set(texts(ax))
    assert title(ax) == "joint 1 has 50% fewer crossings than lpt, at load imbalance 1.20 against 1.00"
    assert np.asarray(ax.lines[0].get_xydata()).tolist() == [[1.0, 80.0], [1.2, 80.0], [1.2, 40.0]]  # stairs
    assert ax.get_ylabel().endswith("(%)")


def test_pareto_scales_bytes() -> None:
    ax = plots.draw("pareto", POINTS.assign(nic_bytes=[3e9, 2e9, 1e9]), y="nic_bytes", label="placement")
    assert ax.get_ylabel() == "nic (GB)" and "50% fewer bytes than lpt" in title(ax)
    assert ax.collections[0].get_offsets()[:, 1].tolist() == [3.0, 2.0, 1.0]


def test_names_beside_points_do_not_cover_each_other() -> None:
    _, axes = plots.figure()
    x = np.array([1.0, 1.001, 1.002, 3.0])
    axes[0, 0].scatter(x, x)
    line = np.array([[1.0, 1.0], [1.0, 3.0], [3.0, 3.0]])
    axes[0, 0].plot(*line.T)
    _labels.beside(axes[0, 0], x, x, ["first", "second", "third", "far away"], ["black"] * 4, line)
    axes[0, 0].figure.draw_without_rendering()
    boxes = [Text.get_window_extent(t) for t in axes[0, 0].texts]  # without the line to the point
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    path = axes[0, 0].transData.transform_path(axes[0, 0].lines[0].get_path())
    assert not any(path.intersects_bbox(box, filled=False) for box in boxes)


def test_affinity_by_hand() -> None:
    # layer 0: expert 0 -> 1 always, 1 -> 0 in 3 of 4: 9 of 10 right, 7 of 10 go to expert 1; layer 1: 10 of 10, 5 of 10
    ax = plots.draw("affinity", PAIRS, layer=0)
    assert title(ax).startswith("Layer 0 to 1: the likeliest next expert is right for 90%")
    assert title(ax).endswith("the most popular one for 70%")
    assert np.asarray(ax.images[0].get_array()).tolist() == [[1.0, 0.0], [0.25, 0.75]]  # columns 1, 0: partners
    assert title(plots.draw("affinity", PAIRS)).startswith("Layer 1 to 2")  # the one that tells most
    with pytest.raises(ValueError, match="layer 7 is not in the table, which has 0..1"):
        plots.draw("affinity", PAIRS, layer=7)


def test_affinity_layers_gives_the_share_and_the_null() -> None:
    ax = plots.draw("affinity_layers", LAYERS)
    assert title(ax) == "A token's expert tells 30% of its expert in the next layer (shuffled tokens: 1%)"
    assert texts(ax) == ["this trace", "tokens shuffled"]


def test_device_load_labels_max_over_mean() -> None:
    ax = plots.draw("device_load", LOAD)
    assert {"1.50", "1.10"} <= set(texts(ax))
    assert title(ax) == "The busiest device has 1.10x the mean load with lpt, 1.50x with linear"


def test_breakdown_stacks_phases_in_scaled_units_and_shows_waiting() -> None:
    ax = plots.draw("breakdown", PHASES, what="decode step")
    assert ax.get_xlabel() == "time of a decode step, mean over devices (ms)"
    assert {"attention", "experts", "wait", "other"} <= set(texts(ax))  # gate and head are too short to see
    assert "start" not in texts(ax)
    ends = [patch.get_x() + patch.get_width() for patch in ax.patches]
    assert max(ends) == pytest.approx(6.051) and "6.05" in texts(ax)
    assert any(patch.get_hatch() for patch in ax.patches)
    assert "1.33x as long with linear as with lpt; the largest part of the gap is experts" in title(ax)


def test_links_labels_classes_and_compares_the_last() -> None:
    ax = plots.draw("links", LINKS)
    assert {"scale up", "nic"} <= set(texts(ax)) and ax.get_xlabel().endswith("(GB)")
    assert title(ax) == "joint puts 50% fewer bytes on nic links than linear"


def test_latency_leaves_out_requests_without_the_number() -> None:
    ax = plots.draw("latency_cdf", REQUESTS)
    assert [len(line.get_xdata()) for line in ax.lines] == [3, 4]
    assert ax.get_xlabel() == "time per output token (ms)" and "lpt is 48% below linear" in title(ax)
    assert plots.draw("latency_cdf", REQUESTS, column="ttft_s").get_xlabel() == "time to first token (ms)"


@pytest.mark.parametrize(("value", "column", "expected"), [
    (0.02, "tpot_s", (1e-3, "time per output token (ms)")), (3e9, "leaf_up_bytes", (1e9, "leaf up (GB)")),
    (0.0, "wait_s", (1e-9, "wait (ns)")), (9.0, "throughput_tok_per_s", (1.0, "throughput (output tokens/s)")),
    (0.5, "cross_top1", (0.01, "first choices that change device (%)"))])
def test_axes_are_scaled_and_have_units(value: float, column: str, expected: tuple[float, str]) -> None:
    assert scale([value], column) == expected


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_saved_figures_have_the_same_bytes_every_time(tmp_path: Path, suffix: str) -> None:
    files = [plots.save(plots.draw("pareto", POINTS).figure, tmp_path / f"{i}.{suffix}") for i in (1, 2)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_only_png_and_svg_are_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"saved as \.png or \.svg"):
        plots.save(plots.draw("pareto", POINTS).figure, tmp_path / "figure.gif")


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    import matplotlib

    before = list(matplotlib.rcParams.items())
    for name in plots.names():
        plots.draw(name, TABLES[name])
    assert list(matplotlib.rcParams.items()) == before


def test_pareto_names_the_points_of_a_sweep_by_their_axes() -> None:
    table = pd.DataFrame({"placement.solver": ["linear", "joint"], "seed": [0, 0], "load_max_over_mean": [3.2, 3.1],
                          "cross_top1": [0.9, 0.7], "warnings": ["a", "b"], "error": [None, None]})
    axes = plots.pareto(table)
    assert {"linear", "joint"} <= {text.get_text() for text in axes.texts}


def test_the_two_sides_of_a_run_by_hand() -> None:
    # below 0.25 s: two of four measured, one of four simulated until 0.25 itself; at 0.4: four and three
    ax = plots.draw("run_cdf", SIDES)
    assert title(ax) == "Time to first token: the two curves are at most 25% of the requests apart"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["measured", "simulated"]
    # within 10 %: 0.109 of 0.1 and 0.44 of 0.4, not 0.15 of 0.2; the request that is not known does not count
    ax = plots.draw("run_scatter", PER_REQUEST)
    assert title(ax) == "67% of the requests: simulated time to first token within 10%"
    assert ax.get_xlabel() == "measured time to first token (ms)" and len(ax.collections[0].get_offsets()) == 3
    # ticks in which one is not 0: errors 10 and 0, measured 80 and 90
    ax = plots.draw("run_timeline", SIDES)
    assert title(ax) == "Output tokens/s: median error 5, mean 85"
    assert plots.draw("run_timeline", SIDES, quantity="kv_used").get_ylabel() == "KV memory in use (%)"
    with pytest.raises(ValueError, match="run_cdf: the table has no rows"):
        plots.draw("run_cdf", SIDES[SIDES["source"] == "measured"])
