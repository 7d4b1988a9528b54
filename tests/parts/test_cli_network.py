"""`moesim network`: numbers worked on paper, JSON, the folder, every wrong input, the commands of the how-to."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

import moesim
from moesim import config, registry
from moesim.cli import app
from moesim.hardware import HardwareSpec
from moesim.network import Network

TINY = "{name: leaf_spine, leaves: 2, spines: 2, hosts_per_leaf: 2, link: 10 GB/s, latency: 100 ns}"
PAIRS = "{name: leaf_spine, leaves: 4, spines: 4, hosts_per_leaf: 8}"
FLOWS = "src,dst,bytes,start_s,spine,job\n0,2,40e3,0,0,a\n1,2,20e3,0,0,a\n1,3,60e3,0,1,b\n0,1,10e3,5e-6,-1,b\n"


@pytest.fixture
def flows(tmp_path: Path) -> Path:
    """Four flows that end at 7.4, 4.4, 8.4 and 7.2 us (tests/by_hand/test_flows_by_hand.py)."""
    return written(tmp_path / "flows.csv", FLOWS)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["network", *map(str, arguments)])


def answer(*arguments: object) -> dict:  # type: ignore[type-arg]
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.stderr or done.exception
    return json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_what_is_printed(flows: Path) -> None:
    done = call(TINY, "--flows", flows)
    assert done.exit_code == 0 and done.stderr == ""
    assert done.stdout == """\
balancing   time_s  slowdown  flow_mean_s  flow_p99_s
ecmp       8.4e-06         1      5.6e-06    8.37e-06

balancing  bound_s  busiest       over_mean  extra_pieces
ecmp         8e-06  host1->leaf0     2.4615             0

ecmp: 4 flows, by their ends
flow  src  dst  bytes  start_s  finish_s  bottleneck
   1    1    2  20000        0   4.4e-06  host1->leaf0
   3    0    1  10000    5e-06   7.2e-06  host0->leaf0
   0    0    2  40000        0   7.4e-06  host0->leaf0
   2    1    3  60000        0   8.4e-06  host1->leaf0

ecmp: the 5 busiest of 16 links
class    name           load_bytes  busy_s  over_mean
nic_out  host1->leaf0        80000   8e-06     2.4615
nic_in   leaf1->host2        60000   6e-06     1.8462
nic_in   leaf1->host3        60000   6e-06     1.8462
leaf_up  leaf0->spine0       60000   6e-06          2
leaf_up  leaf0->spine1       60000   6e-06          2

ecmp: links by what they carry
class      bytes             links
nic_out    0 B to 10 kB          2  ████████████████████████
nic_out    50 kB to 60 kB        1  ████████████
nic_out    70 kB to 80 kB        1  ████████████
nic_in     0 B to 7.5 kB         1  ████████████
nic_in     7.5 kB to 15 kB       1  ████████████
nic_in     52.5 kB to 60 kB      2  ████████████████████████
leaf_up    0 B to 7.5 kB         2  ████████████████████████
leaf_up    52.5 kB to 60 kB      2  ████████████████████████
leaf_down  0 B to 7.5 kB         2  ████████████████████████
leaf_down  52.5 kB to 60 kB      2  ████████████████████████
"""


def test_three_balancings_of_an_all_to_all_print_the_bound_that_simgrid_finds() -> None:
    found = answer(PAIRS, "--collective", "flat", "--bytes", "32MiB", "--balancing", "ecmp,split",
                   "--balancing", "spray", "--top", 3)
    rows = {row["balancing"]: row for row in found["balancings"]}
    assert list(rows) == ["ecmp", "split", "spray"]
    for name in ("split", "spray"):  # 1 MiB per pair: 192 MiB leave a leaf by 4 x 50 GB/s
        assert rows[name]["time_s"] == pytest.approx(1006.633e-6, rel=1e-6)
    assert rows["ecmp"]["time_s"] > 1.15 * rows["split"]["time_s"]
    assert len(found["links"]) == 3 and len(found["flows"]) == 992
    assert sum(row["links"] for row in found["histogram"]) == 96
    assert found["settings"]["bytes"] == "32MiB" and found["settings"]["seeds"] == [0]


def test_long_tables_show_both_ends_and_how_many() -> None:
    lines = call(PAIRS, "--collective", "flat", "--bytes", "32MiB").stdout.splitlines()
    start = lines.index("ecmp: 992 flows, the first 5 and the last 5 to end (all: --out)")
    assert lines[start + 12] == "" and lines[start + 11].split()[-2] == f"{answer_time(lines):.5g}"


def answer_time(lines: list[str]) -> float:
    return float(lines[1].split()[1])


def test_json_has_every_flow_and_no_nan(flows: Path) -> None:
    found = answer(TINY, "--flows", flows)
    assert [round(row["finish_s"] * 1e6, 9) for row in found["flows"]] == [7.4, 4.4, 8.4, 7.2]
    assert [row["job"] for row in found["flows"]] == ["a", "a", "b", "b"]
    assert found["balancings"][0]["closed_form_s"] is None
    assert found["links"][0]["name"] == "host1->leaf0"


def test_lines_of_a_file_count_even_with_blank_ones(tmp_path: Path) -> None:
    done = call(TINY, "--flows", written(tmp_path / "f.csv", FLOWS.replace("1,3,", "\n1,9,")))
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"{tmp_path}/f.csv:5: flow 2: dst is 9; hosts are 0 to 3\n"


def test_seeds(flows: Path) -> None:
    pinless = written(flows.with_name("g.csv"), "\n".join(line.rsplit(",", 2)[0] for line in FLOWS.splitlines()))
    each = [answer(TINY, "--flows", pinless, "--seed", seed)["balancings"][0]["time_s"] for seed in (2, 3, 4)]
    row = answer(TINY, "--flows", pinless, "--seed", 2, "--seeds", 3)["balancings"][0]
    assert [row["time_s"], row["time_min_s"], row["time_max_s"]] == pytest.approx([np.mean(each), min(each), max(each)])


def test_out_holds_all_of_it(flows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new/asked"
    done = call(TINY, "--flows", flows, "--balancing", "ecmp,spray", "--out", folder)
    assert done.exit_code == 0 and done.stderr == f"flows, links, figure, settings: {folder}\n"
    assert sorted(path.name for path in folder.iterdir()) == [
        "balancings.parquet", "fabric.png", "flows.parquet", "links.parquet", "settings.json"]
    ends = pd.read_parquet(folder / "flows.parquet")
    assert ends["balancing"].tolist() == ["ecmp"] * 4 + ["spray"] * 4
    assert (ends["finish_s"][:4] * 1e6).round(9).tolist() == [7.4, 4.4, 8.4, 7.2]
    assert len(pd.read_parquet(folder / "links.parquet")) == 2 * 16
    assert pd.read_parquet(folder / "balancings.parquet")["balancing"].tolist() == ["ecmp", "spray"]
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["moesim"] == moesim.__version__ and settings["flows"] == str(flows)
    made = registry.make("topology", settings["fabric"])
    assert made == registry.make("topology", {"name": "leaf_spine", "leaves": 2, "spines": 2, "hosts_per_leaf": 2,
                                              "link": "10 GB/s", "latency": "100 ns"})
    assert (folder / "fabric.png").read_bytes()[:4] == b"\x89PNG"
    assert call(TINY, "--flows", flows, "--out", folder).exit_code == 0  # its own folder is replaced
    assert len(pd.read_parquet(folder / "flows.parquet")) == 4
    assert [path.name for path in folder.parent.iterdir()] == ["asked"]


def test_a_foreign_folder_stays_as_it_is(flows: Path, tmp_path: Path) -> None:
    done = call(TINY, "--flows", flows, "--out", tmp_path)
    assert done.exit_code == 2 and "holds files that moesim network did not write (flows.csv)" in done.stderr
    done = call(TINY, "--flows", flows, "--out", flows)
    assert done.exit_code == 2 and done.stderr == f"{flows} is a file; choose a folder\n"
    assert [path.name for path in tmp_path.iterdir()] == ["flows.csv"]


@pytest.mark.parametrize(("collective", "options"), [
    ("flat", ()), ("hierarchical", ("--op", "combine")), ("ring", ("--width", 8)), ("nvls", ("--op", "all_reduce")),
    ("tree", ("--op", "reduce_scatter")), ("ring", ("--op", "all_gather"))])
def test_a_machine_takes_what_its_closed_form_says(collective: str, options: tuple[object, ...]) -> None:
    found = answer("h100-2x8", "--collective", collective, "--bytes", "16MB", "--balancing", "spray", *options)
    row = found["balancings"][0]
    assert row["time_s"] == pytest.approx(row["closed_form_s"], rel=1e-6)
    assert found["settings"]["fabric"]["devices_per_node"] == 8


def test_a_machine_of_one_node_draws_its_switch(tmp_path: Path) -> None:
    done = call("h100-1x8", "--collective", "flat", "--bytes", "16MB", "--out", tmp_path / "o")
    assert done.exit_code == 0 and "device0->switch0" in done.stdout
    assert set(pd.read_parquet(tmp_path / "o/links.parquet")["class"]) == {"scale_up_out", "scale_up_in"}


def test_fabrics_come_from_files(tmp_path: Path, repo: Path) -> None:
    topology = written(tmp_path / "fabric.yaml", "name: switch\nhosts: 4\nlink: 10 GB/s\n")
    found = answer(topology, "--collective", "flat", "--bytes", "40kB")
    assert found["balancings"][0]["time_s"] == pytest.approx(3e-6)  # 3 x 10 kB at 10 GB/s: the fourth stays
    machine = answer(repo / "hw_configs/machines/h100-2x8.yaml", "--collective", "flat", "--bytes", "1MB")
    assert machine["balancings"] == answer("h100-2x8", "--collective", "flat", "--bytes", "1MB")["balancings"]
    spec = config.load(HardwareSpec, repo / "hw_configs/machines/h100-2x8.yaml")
    time_s = Network.of(spec, "ecmp").exchange("flat", moesim.network.Messages(np.full((16, 16), 62500.0))).time_s
    assert machine["balancings"][0]["closed_form_s"] == pytest.approx(float(time_s), rel=1e-12)


def test_a_matrix_in_three_kinds_of_files(tmp_path: Path) -> None:
    sent = np.zeros((4, 4))
    sent[0, 1], sent[2, 1] = 30e3, 10e3
    np.save(tmp_path / "t.npy", sent)
    np.savez(tmp_path / "t.npz", copies=sent)
    written(tmp_path / "t.csv", "\n".join(",".join(map(str, row)) for row in sent))
    for file in ("t.npy", "t.npz", "t.csv"):
        found = answer("{name: switch, hosts: 4, link: 10 GB/s}", "--collective", "flat", "--traffic", tmp_path / file)
        assert [(row["src"], row["dst"]) for row in found["flows"]] == [(0, 1), (2, 1)]
        # 5 GB/s each until 10 kB are through at 2 us, the other 20 kB alone: 2 us more
        assert [round(row["finish_s"] * 1e6, 9) for row in found["flows"]] == [4, 2]


def test_node_limited_counts_a_token_once_per_node(tmp_path: Path) -> None:
    copies, visits = np.zeros((16, 16)), np.zeros((16, 2))
    copies[0, 8] = copies[0, 9] = visits[0, 1] = 1e6
    np.savez(tmp_path / "t.npz", copies=copies, node_copies=visits)
    found = answer("h100-2x8", "--collective", "node_limited", "--traffic", tmp_path / "t.npz")
    assert sorted((row["src"], row["dst"]) for row in found["flows"]) == [(0, 8), (8, 9)]


def test_faults_in_mid_run(tmp_path: Path) -> None:
    one = written(tmp_path / "one.csv", "src,dst,bytes,start_s,spine\n0,2,40e3,0,0\n")
    slow = written(tmp_path / "slow.csv", "time_s,where,factor\n2e-6,leaf0->spine0,0.5\n")
    found = answer(TINY, "--flows", one, "--faults", slow)
    assert found["balancings"][0]["time_s"] == pytest.approx(6.4e-6)  # 20 kB at 10 GB/s, 20 at 5, 4 x 100 ns
    assert found["settings"]["faults"] == [{"time_s": 2e-6, "where": "leaf0->spine0", "factor": 0.5}]
    free = written(tmp_path / "free.csv", "src,dst,bytes,start_s\n0,2,40e3,0\n")
    dead = written(tmp_path / "dead.csv", "time_s,where,factor\n2e-6,spine0,0\n2e-6,spine1,0\n9e-6,spine1,1\n")
    for seed, end in ((0, 12.4), (1, 11.4)):
        # 20 kB until 2. On spine 1 (seed 1) the rest goes from 9 on; from spine 0 the flow moves at 10, when spine 1
        # is known to be back. 2 us more, and 400 ns.
        found = answer(TINY, "--flows", free, "--faults", dead, "--detection", "1 us", "--seed", seed)
        assert found["balancings"][0]["time_s"] == pytest.approx(end * 1e-6), seed


def test_notes_of_regimes_that_the_model_is_wrong_in(flows: Path) -> None:
    assert call(PAIRS, "--collective", "flat", "--bytes", "32MiB", "--transport", "paced").stderr == ""
    collide = call(PAIRS, "--collective", "flat", "--bytes", "32MiB", "--balancing", "ecmp,split", "--transport",
                   "pfc_only")
    assert collide.exit_code == 0
    assert collide.stderr.startswith("note: ecmp: flows collide (busiest leaf_down link 1.27 times the mean)")
    assert collide.stderr.count("note:") == 1
    many = "{name: switch, hosts: 64}"
    assert "note: ecmp: 63 senders to one port" in call(many, "--collective", "flat", "--bytes", "1MB", "--transport",
                                                        "sender_window").stderr


def test_many_bursts_are_announced(monkeypatch: pytest.MonkeyPatch, flows: Path) -> None:
    monkeypatch.setattr("moesim.cli.network_input.BURSTING", 3)
    done = call(TINY, "--flows", flows, "--balancing", "ecmp,{name: flowlet, flowlets: 2}")
    assert done.exit_code == 0
    assert done.stderr.startswith("note: flowlet flowlets=2: bursts of some 4 flows, one after the other, take minutes")


FABRICS = [
    ("h100-2x9", "h100-2x9: no such file, and no machine of that name in the library; did you mean 'h100-2x8'?"),
    ("switch", "FABRIC switch: a topology needs its sizes; write e.g. '{name: leaf_spine, "),
    ("{name: switch", "FABRIC:1: not valid YAML: "),
    ("{name: swich, hosts: 4}", "FABRIC: neither a machine (has no devices_per_node) nor a topology: its name is "
                                "'swich'; did you mean 'switch'?"),
    ("{name: switch, hosts: 4, hosts: 5}", "FABRIC:1: hosts: given twice (first on line 1); keep one"),
    ("{name: switch, host: 4}", "FABRIC: switch has no parameter 'host'; did you mean 'hosts'?"),
    ("{name: switch, hosts: 4, link: 400}", "FABRIC: switch: link: 400 has no unit; write a bandwidth"),
    ("{name: switch, hosts: 1}", "nothing travels: no device has bytes for another; give bytes, and two devices"),
]


@pytest.mark.parametrize(("fabric", "text"), FABRICS)
def test_wrong_fabrics(fabric: str, text: str) -> None:
    done = call(fabric, "--collective", "flat", "--bytes", "1MB")
    assert (done.exit_code, done.stdout) == (2, "") and done.stderr.startswith(text), done.stderr


def test_wrong_fabric_files(tmp_path: Path) -> None:
    file = written(tmp_path / "f.yaml", "name: switch\nhost: 4\n")
    assert call(file, "--collective", "flat", "--bytes", "1MB").stderr == (
        f"{file}: switch has no parameter 'host'; did you mean 'hosts'?\n")
    written(file, "name: mine\ndevices_per_node: 8\n")
    assert f"{tmp_path}/f.yaml:1: nodes: missing; add it" in call(file, "--collective", "flat", "--bytes", "1MB").stderr


OPTIONS = [
    ((), "give either --flows FILE.csv or --collective NAME"),
    (("--flows", "f.csv", "--collective", "flat"), "give either --flows FILE.csv or --collective NAME"),
    (("--flows", "none.csv"), "none.csv: no such file or directory; correct the path"),
    (("--flows", "f.csv", "--bytes", "1MB", "--width", 2),
     "--bytes, --width: for a collective; leave it out, or give --collective instead of --flows"),
    (("--collective", "flt", "--bytes", "1MB"), "--collective: unknown collective 'flt'; did you mean 'flat'?"),
    (("--collective", "[flat]", "--bytes", "1MB"), "--collective: unknown collective ['flat']; did you mean 'flat'?"),
    (("--collective", "{name: flat, size: 1}", "--bytes", "1MB"), "flat has no parameter 'size'; it takes none"),
    (("--collective", "flat"), "--collective flat: give either --bytes (of each device, e.g. '64 MB') or --traffic"),
    (("--collective", "flat", "--bytes", "1MB", "--traffic", "t.csv"), "--collective flat: give either --bytes"),
    (("--collective", "flat", "--bytes", "1"), "--bytes: '1' has no unit; write a size"),
    (("--collective", "flat", "--bytes", "0 MB"), "--bytes 0 MB: give more than 0"),
    (("--collective", "flat", "--bytes", "1MB", "--width", 2), "--width: flat is an all-to-all among all devices; "),
    (("--collective", "flat", "--bytes", "1MB", "--op", "all_gather"),
     "--op all_gather: flat is an all-to-all; take one of dispatch, combine"),
    (("--collective", "ring", "--bytes", "1MB", "--op", "combine"), "--op combine: ring is an all-reduce; take one"),
    (("--collective", "ring"), "--collective ring: an all-reduce adds equal vectors; give their --bytes, e.g. '64"),
    (("--collective", "ring", "--traffic", "t.csv"), "--collective ring: an all-reduce adds equal vectors; give "),
    (("--collective", "ring", "--bytes", "1MB", "--width", 3), "groups of 3 do not divide 4 devices evenly"),
    (("--collective", "node_limited", "--bytes", "1MB"), "node_limited needs node_copies [..., devices, nodes], a tok"),
    (("--collective", "deepep_ll", "--bytes", "1MB"), "deepep_ll sends a counter per expert: give their number"),
    (("--collective", "flat", "--traffic", "none.npy"), "none.npy: no such file or directory; correct the path"),
    (("--collective", "flat", "--traffic", "t.txt"), "t.txt: unknown kind of file; give .csv, .npy or .npz"),
    (("--collective", "flat", "--traffic", "t.csv"), "t.csv: is float64 (2, 2); give bytes from each of 4 devices"),
    (("--collective", "flat", "--traffic", "f.csv"), "f.csv:1: value 1 is 'src'; give a plain number"),
    (("--collective", "flat", "--traffic", "bad.npy"), "bad.npy: is not an array file of numpy ("),
    (("--collective", "flat", "--traffic", "bad.npz"), "bad.npz: is not an array file of numpy ("),
    (("--collective", "flat", "--traffic", "other.npz"), "other.npz: holds traffic; give copies [devices, devices]"),
    (("--collective", "flat", "--traffic", "minus.npy"), "minus.npy: row 1, column 2 is -1.0; give bytes >= 0"),
    (("--flows", "f.csv", "--balancing", "ecmpp"), "unknown balancing 'ecmpp'; did you mean 'ecmp'?"),
    (("--flows", "f.csv", "--balancing", "{name:"), "--balancing {name:: not a list of names; write e.g. ecmp,split"),
    (("--flows", "f.csv", "--balancing", "ecmp, ecmp"), "balancings ecmp, ecmp: one is given twice; leave it out"),
    (("--flows", "f.csv", "--balancing", ""), "nothing to compare; give at least one balancing and one seed"),
    (("--flows", "f.csv", "--balancing", "{name: mprdma, pieces: 0}"), "mprdma: pieces: "),
    (("--flows", "f.csv", "--tolerance", 1), "tolerance is 1.0; give a share of a flow's duration"),
    (("--flows", "f.csv", "--detection", "1"), "--detection: '1' has no unit; write a time"),
    (("--flows", "f.csv", "--detection", "-1 ms"), "--detection -1 ms: give a time >= 0"),
    (("--flows", "f.csv", "--transport", "pfc"), "--transport: unknown transport 'pfc'; "),
    (("--flows", "f.csv", "--faults", "f.csv"), "f.csv:1: faults have no column time_s, where, factor; needed: "),
    (("--flows", "f.csv", "--faults", "where.csv"), "where.csv:3: where: no link, switch or host 'spine7'; links are "),
    (("--flows", "f.csv", "--faults", "factor.csv"), "factor.csv:2: fault 0: factor is -1.0; give a number >= 0"),
    (("--flows", "f.csv", "--faults", "stuck.csv"), "f.csv:2: flow 0 never ends: a link on its path has no capacity"),
    (("--collective", "ring", "--bytes", "1MB", "--faults", "stuck.csv"), "rounds that repeat are worked out once"),
]


@pytest.mark.parametrize(("options", "text"), OPTIONS)
def test_wrong_options(options: tuple[object, ...], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"f.csv": FLOWS, "t.csv": "1,2\n3,4\n", "t.txt": "", "bad.npy": "no", "bad.npz": "no",
             "where.csv": "time_s,where,factor\n0,spine0,1\n0,spine7,1\n",
             "factor.csv": "time_s,where,factor\n0,spine0,-1\n", "stuck.csv": "time_s,where,factor\n1e-6,spine0,0\n"}
    for name, content in files.items():
        written(tmp_path / name, content)
    np.savez(tmp_path / "other.npz", traffic=np.ones((4, 4)))
    np.save(tmp_path / "minus.npy", np.where(np.arange(16) == 6, -1.0, 1.0).reshape(4, 4))
    done = call(TINY, *options, "--out", "out")
    assert (done.exit_code, done.stdout) == (2, ""), done.exception
    assert done.stderr.startswith(text), done.stderr
    assert not (tmp_path / "out").exists()


HEAD = "src,dst,bytes,start_s\n"


@pytest.mark.parametrize(("content", "place", "text"), [
    ("", "", ": is empty; give a CSV file"),
    (HEAD, ":1", ": no row follows the names of the columns; give at least one"),
    ("src,dst,bytes\n0,1,2\n", ":1", ": flows have no column start_s; needed: src, dst, bytes, start_s; optional: "),
    ("src,dst,bytes,start_s,prt\n0,1,2,0,1\n", ":1", ": flows have a column 'prt', which is not read; did you mean "),
    ("src,src,bytes,start_s\n0,1,2,0\n", ":1", ": column 'src' is given twice; keep one"),
    ("src,dst,bytes,start_s,act\n0,1,2,0,1\n", ":1", ": flows have a column 'act', which the result will have; rename"),
    (HEAD + "0,1,2,0\n0,1,1MB,0\n", ":3", ": bytes is '1MB'; give a plain number (bytes, seconds)"),
    (HEAD + "0,1,,0\n", ":2", ": bytes is ''; give a plain number (bytes, seconds)"),
    (HEAD + "0,1,2\n", ":2", ": 3 values in 4 columns (src, dst, bytes, start_s); give one for each"),
    (HEAD + "0,1,2,0\n0,4,2,0\n", ":3", ": flow 1: dst is 4; hosts are 0 to 3"),
    (HEAD + "0.5,1,2,0\n", ":2", ": flow 0: src is 0.5; give a whole number"),
    (HEAD + "1,1,2,0\n", ":2", ": flow 0: dst is 1; that is its source; leave out what stays on its host"),
    (HEAD + "0,1,-2,0\n", ":2", ": flow 0: bytes is -2.0; give a finite number >= 0"),
    (HEAD + "0,1,nan,0\n", ":2", ": flow 0: bytes is nan; give a finite number >= 0"),
    (HEAD + "0,1,2,inf\n", ":2", ": flow 0: start_s is inf; give seconds"),
])
def test_wrong_flows(content: str, place: str, text: str, tmp_path: Path) -> None:
    file = written(tmp_path / "flows.csv", content)
    done = call(TINY, "--flows", file, "--out", tmp_path / "out")
    assert (done.exit_code, done.stdout) == (2, ""), done.exception
    assert done.stderr.startswith(f"{file}{place}{text}"), done.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_bytes(b"\xff\xfe\x00")
    assert call(TINY, "--flows", tmp_path / "f.csv").stderr == f"{tmp_path}/f.csv: is not UTF-8 text; give a CSV file\n"


def test_a_spreadsheet_s_byte_order_mark_is_no_column(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_bytes(b"\xef\xbb\xbf" + FLOWS.replace("\n", "\r\n").encode())
    assert answer(TINY, "--flows", tmp_path / "f.csv")["balancings"][0]["time_s"] == pytest.approx(8.4e-6)


def commands(repo: Path) -> list[str]:
    page = (repo / "docs/howto/ask-the-network.md").read_text(encoding="utf-8")
    return [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.strip().splitlines()]


def test_the_how_to_s_commands_run(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (repo / "docs/howto/ask-the-network.md").read_text(encoding="utf-8")
    for name, content in re.findall(r"`(\w+\.csv)`:\n\n```csv\n(.*?)```", page, re.DOTALL):
        written(tmp_path / name, content)
    monkeypatch.chdir(tmp_path)
    assert len(commands(repo)) >= 9
    for command in commands(repo):
        words = shlex.split(command)
        done = CliRunner().invoke(app, words[1:])
        assert words[:2] == ["moesim", "network"] and done.exit_code == 0, (command, done.stderr, done.exception)
