"""Pages as people see them: what `plan`, `reshard`, `inspect` and `verify` print at 80 columns."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest

from eplb_cli.placements.findings import Finding
from eplb_cli.placements.placement import Placement
from eplb_cli.render import print_inspection, print_report, print_verification
from eplb_cli.report.inspection import ExpertTensor, Inspection
from eplb_cli.report.report import LayerTraffic, RankTraffic, Report, RunReport, Totals
from eplb_cli.report.verification import Verification

MB = 1_000_000


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


def report_of(rows, *, row_nbytes=MB, local=0, duplicate=0, unchanged=0):
    """A report of `rows[old][new]`; every rank keeps as many rows as the keywords say."""

    def nbytes(num_rows):
        return None if row_nbytes is None else num_rows * row_nbytes

    kept = {"local": local, "duplicate": duplicate, "unchanged": unchanged}
    flows = [
        {"sent": sum(rows[rank]), "received": sum(line[rank] for line in rows), **kept}
        for rank in range(len(rows))
    ]
    ranks = [
        RankTraffic(
            rank=rank,
            **{f"{name}_bytes": nbytes(number) for name, number in flow.items()},
            **{f"{name}_rows": number for name, number in flow.items()},
        )
        for rank, flow in enumerate(flows)
    ]
    kinds = {name: len(rows) * number for name, number in kept.items()}
    kinds |= {"remote": sum(map(sum, rows)), "empty": 0}
    totals = Totals(
        **{f"{name}_bytes": nbytes(number) for name, number in kinds.items()},
        **{f"{name}_rows": number for name, number in kinds.items()},
        cross_node_bytes=nbytes(0),
        other_bytes=nbytes(12),
        output_bytes=nbytes(sum(kinds.values()) + 12),
        busiest_sender_bytes=nbytes(max(map(sum, rows))),
        busiest_sender_rows=max(map(sum, rows)),
    )
    pairs = [(old, new, number) for old, line in enumerate(rows) for new, number in enumerate(line) if number]
    return Report(totals, ranks, [(old, new, nbytes(number), number) for old, new, number in pairs])


def ring(size):
    """Every rank sends a row to the next one."""
    return [[int(new == (old + 1) % size) for new in range(size)] for old in range(size)]


RUN = RunReport(
    backend="gloo",
    num_workers=2,
    wire_bytes=10 * MB,
    seconds={
        "read": 0.5,
        "exchange": 0.02,
        "wait": 0.0,
        "plan": 0.25,
        "compare": 0.0,
        "start": 10.0,
        "transfer": 1.5,
        "sync": 0.0,
        "finish": 0.5,
        "move": 12.0,
        "commit": 0.09,
        "total": 12.34,
    },
    stage_bytes={"read": 60 * MB, "exchange": 10 * MB, "transfer": 60 * MB},
    bound_by="read",
    busy=0.934,
    exchange_hidden=0.95,
    buffer_bytes=64 * MB,
    threads=2,
    peak_rss_bytes=[1398 * MB, 1412 * MB],
    peak_anonymous_bytes=[398 * MB, 412 * MB],
    linked_bytes=19 * MB,
    verified=True,
    output="/out",
    rows_proved=480,
    rows_total=480,
    serving=["SGLang: --load-format sharded_state"],
)


def page_of(report, *, stream=None, **options):
    stream = stream or io.StringIO()
    print_report(report, stream, **options)
    return stream.getvalue()


def test_a_plan_at_80_columns():
    """Bytes and rows of each rank, who sends to whom, and the totals."""
    report = report_of([[0, 8, 0], [4, 0, 2], [3, 1, 0]], local=5, unchanged=40)
    assert (
        page_of(report)
        == """\
plan for 3 ranks: 18 of 153 rows come from another rank

between ranks   18.0 MB, 18 of 153 rows
busiest sender  8.00 MB
between nodes   unknown, no --ranks-per-node

per rank
              sent      received         local     unchanged
rank    bytes rows    bytes rows    bytes rows    bytes rows
────────────────────────────────────────────────────────────
   0  8.00 MB    8  7.00 MB    7  5.00 MB    5  40.0 MB   40
   1  6.00 MB    6  9.00 MB    9  5.00 MB    5  40.0 MB   40
   2  4.00 MB    4  2.00 MB    2  5.00 MB    5  40.0 MB   40

bytes, old rank (down) to new rank (across)
       0        1        2
0      ·    8.00M ██     ·
1  4.00M ▒▒     ·    2.00M ░░
2  3.00M ▒▒ 1.00M ░░     ·
scale: · none, ░░▒▒▓▓██ in 4 equal steps up to 8.00 MB

bytes by rank, a full bar is 9.00 MB
sent      ██▆▆▄▄
received  ▇▇██▂▂

what becomes of all rows
                 bytes  rows  share
───────────────────────────────────────────────────────────────────
unchanged       120 MB   120    78%  same rank, same row
local          15.0 MB    15    10%  same rank, another row
remote         18.0 MB    18    12%  from another rank
duplicate          0 B     0     0%  copied from a row that arrived
empty              0 B     0     0%  no expert in NEW
other tensors  12.0 MB               of all ranks
whole output    165 MB               all shard files
"""
    )


def test_a_plan_without_sizes_has_rows_and_says_how_to_get_bytes():
    """Duplicates get a column because there are some."""
    report = report_of([[0, 8, 0], [4, 0, 2], [3, 1, 0]], duplicate=1, unchanged=40, row_nbytes=None)
    assert (
        page_of(report)
        == """\
plan for 3 ranks: 18 of 141 rows come from another rank

between ranks   18 of 141 rows
busiest sender  8 rows
between nodes   unknown, no --ranks-per-node
bytes           unknown: give `--checkpoint`, `--model` or `--expert-bytes`

per rank
      sent  received  local  duplicate  unchanged
rank  rows      rows   rows       rows       rows
─────────────────────────────────────────────────
   0     8         7      0          1         40
   1     6         9      0          1         40
   2     4         2      0          1         40

rows, old rank (down) to new rank (across)
       0        1        2
0      ·        8 ██     ·
1      4 ▒▒     ·        2 ░░
2      3 ▒▒     1 ░░     ·
scale: · none, ░░▒▒▓▓██ in 4 equal steps up to 8 rows

rows by rank, a full bar is 9 rows
sent      ██▆▆▄▄
received  ▇▇██▂▂

what becomes of all rows
           rows  share
──────────────────────────────────────────────────────
unchanged   120    85%  same rank, same row
local         0     0%  same rank, another row
remote       18    13%  from another rank
duplicate     3     2%  copied from a row that arrived
empty         0     0%  no expert in NEW
"""
    )


def test_a_run_adds_what_it_took_and_what_it_proved():
    """The headline names backend, workers, time and output; the end says what loads it."""
    report = dataclasses.replace(report_of(ring(2)), run=RUN, warnings=["layer 3: replicas differ"])
    lines = page_of(report).splitlines()
    assert lines[:6] == [
        "resharded 2 ranks with gloo, 2 workers, in 12.3 s: /out",
        "",
        "between ranks   2.00 MB, 2 of 2 rows",
        "busiest sender  1.00 MB",
        "between nodes   unknown, no --ranks-per-node",
        "time            12.3 s",
    ]
    assert (
        "\n".join(lines[lines.index("time, and the parts that it adds up from") :])
        == """\
time, and the parts that it adds up from
                  time    bytes       rate
──────────────────────────────────────────────────────────────────────
total           12.3 s
├─ plan         0.25 s                      inputs read, moves planned
├─ move         12.0 s                      the lines under it
│  ├─ start     10.0 s                      starting workers
│  ├─ transfer  1.50 s  60.0 MB  40.0 MB/s  each row to its place
│  └─ finish    0.50 s                      files reopened
└─ commit       0.09 s                      eplb.json, then the rename

busy while bytes moved, side by side
            time    bytes      rate
───────────────────────────────────
read      0.50 s  60.0 MB  120 MB/s
exchange  0.02 s  10.0 MB  500 MB/s

bound by reading files, 93% busy
exchange 95% hidden behind files
between workers 10.0 MB
written once for all ranks, which saved 19.0 MB
peak memory per worker 398 MB, 412 MB
480 of 480 rows proved against SRC

how an engine loads it
- SGLang: --load-format sharded_state

warnings
- layer 3: replicas differ"""
    )


def test_a_run_without_proof_says_so():
    """Rows that nobody read back are not proved."""
    run = dataclasses.replace(RUN, verified=False, rows_proved=0)
    page = page_of(dataclasses.replace(report_of(ring(2)), run=run))
    assert "not verified: 0 of 480 rows proved against SRC" in page


def test_many_workers_have_a_range_of_memory():
    """64 numbers would say less."""
    run = dataclasses.replace(RUN, peak_anonymous_bytes=[rank * MB for rank in range(1, 65)])
    page = page_of(dataclasses.replace(report_of(ring(2)), run=run))
    assert "peak memory per worker 1.00 MB to 64.0 MB, over 64 workers" in page


def test_bounds_stand_beside_what_they_bound():
    """Only where they were computed."""
    report = report_of(ring(2))
    totals = dataclasses.replace(
        report.totals, busiest_sender_bound_bytes=MB, cross_node_bytes=2 * MB, cross_node_bound_bytes=0
    )
    page = page_of(dataclasses.replace(report, totals=totals, ranks_per_node=1))
    assert "\nbusiest sender  1.00 MB, bound 1.00 MB\nbetween nodes   2.00 MB, bound 0 B\n" in page


def test_a_plan_that_moves_nothing_has_no_map():
    """There is no largest amount to make a scale of."""
    assert "\nnothing goes from one rank to another\n" in page_of(report_of([[0, 0], [0, 0]], unchanged=1))


def test_rows_without_bytes_have_no_map():
    """They go from rank to rank, and there is no largest amount either."""
    page = page_of(report_of(ring(2), row_nbytes=0))
    assert "\nwhat goes from one rank to another has no bytes\n" in page


def test_more_ranks_than_fit_with_numbers_are_shaded():
    """Labels stand where there is room for them."""
    lines = page_of(report_of(ring(18))).splitlines()
    first = lines.index("bytes, old rank (down) to new rank (across)") + 1
    assert lines[first] == "   0   2   4   6   8   10  12  14  16"
    assert lines[first + 1] == " 0  ·██ · · · · · · · · · · · · · · · ·"
    assert lines[first + 18] == "17 ██ · · · · · · · · · · · · · · · · ·"


def test_64_ranks_fit_80_columns():
    """One character for each pair, every rank in the table."""
    lines = page_of(report_of(ring(64))).splitlines()
    first = lines.index("bytes, old rank (down) to new rank (across)") + 1
    assert lines[first].startswith("   0   4   8   12  16 ")
    assert lines[first + 64] == "63 █" + 63 * "·"
    assert "busiest ranks" not in "".join(lines)


def test_more_ranks_than_fit_are_announced_never_dropped():
    """The page says how many are missing and how to see them."""
    page = page_of(report_of(ring(100)))
    assert "\nthe 16 busiest ranks\n" in page
    assert "\n… 84 more ranks: `--full` or `--format json`\n" in page
    lines = page.splitlines()
    first = lines.index("bytes, old block of 8 ranks (down) to new block (across)") + 1
    assert lines[first + 1].startswith(" 0") or lines[first + 1].startswith("0 ")
    assert (
        len(lines[first + 1 : lines.index("bytes by block of 8 ranks, a full bar is 8.00 MB") - 1]) == 13 + 1
    )


def test_the_busiest_ranks_come_first():
    """Busy is who sends or receives most, in rows where sizes are unknown."""
    rows = ring(65)
    rows[40][41], rows[20][19] = 9, 5
    for row_nbytes in (MB, None):
        lines = page_of(report_of(rows, row_nbytes=row_nbytes)).splitlines()
        first = lines.index("the 16 busiest ranks") + 4
        assert [int(line.split()[0]) for line in lines[first : first + 4]] == [40, 41, 19, 20]


def test_full_lists_every_rank():
    """`plan --full`."""
    page = page_of(report_of(ring(100)), full=True)
    assert "\n  99  1.00 MB " in page
    assert "more ranks" not in page


def test_a_narrow_page_has_a_table_each_for_bytes_and_rows(monkeypatch):
    """Nothing is cut where both do not fit side by side."""
    monkeypatch.setenv("COLUMNS", "60")
    lines = page_of(report_of(ring(3), local=12_345, duplicate=1, unchanged=12_345)).splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[lines.index("per rank, rows") : lines.index("per rank, rows") + 5] == [
        "per rank, rows",
        "      sent  received   local  duplicate  unchanged",
        "rank  rows      rows    rows       rows       rows",
        "──────────────────────────────────────────────────",
        "   0     1         1  12,345          1     12,345",
    ]


def test_nodes_are_mapped_like_ranks():
    """Above the report's limit the traffic is by node."""
    entry = {"traffic": [(0, 2, MB, 1)], "block": 24, "ranks_per_node": 24}
    report = dataclasses.replace(report_of(ring(65)), **entry)
    assert """
bytes, old node of 24 ranks (down) to new node (across)
       0        1        2
0      ·        ·    1.00M ██
1      ·        ·        ·
2      ·        ·        ·
""" in page_of(report)


def test_colours_replace_shades_on_a_terminal():
    """256 colours are enough for a scale."""
    page = page_of(report_of(ring(2)), stream=Terminal())
    assert "1.00M" in page
    assert "\x1b[" in page
    assert "██" not in page.partition("bytes by rank")[0]


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "xterm")])
def test_shades_stay_where_colours_cannot_make_a_scale(monkeypatch, name, value):
    """No colour is wanted, or there are too few."""
    monkeypatch.setenv(name, value)
    assert "1.00M ██" in page_of(report_of(ring(2)), stream=Terminal())


def test_a_page_in_ascii():
    """A locale without UTF-8 gets other shades and rules, and no crash."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    run = dataclasses.replace(RUN, output="/out/é")
    print_report(dataclasses.replace(report_of(ring(100)), run=run), stream)
    print_report(report_of(ring(2)), stream)
    page = stream.buffer.getvalue().decode("ascii")
    assert "/out/\\xe9\n" in page
    assert "\n... 84 more ranks" in page
    assert "0      .    1.00M ##\n" in page


def test_names_are_neither_markup_nor_commands():
    """What a checkpoint or a path says is shown as it is."""
    run = dataclasses.replace(RUN, output="/[red]out[/red]\x1b[31m", serving=["[b]x[/b] :smile: \r"])
    page = page_of(dataclasses.replace(report_of(ring(2)), run=run, warnings=["\x07"]))
    assert r"/[red]out[/red]\x1b[31m" in page
    assert r"- [b]x[/b] :smile: \r" in page
    assert r"- \x07" in page


def test_what_an_engine_would_misread_is_red_and_last():
    """Once, below all other warnings."""
    run = dataclasses.replace(RUN, misread=["an engine would misread it"])
    report = dataclasses.replace(report_of(ring(2)), run=run, warnings=["odd", *run.misread])
    text = page_of(report, stream=Terminal())
    assert "\x1b[1;31man engine would misread it" in text
    assert text.count("would misread") == 1
    assert text.index("odd") < text.index("would misread")


def test_long_paths_fold():
    """Every character is there, none beyond the page."""
    path = "/" + "x" * 200
    page = page_of(dataclasses.replace(report_of(ring(2)), run=dataclasses.replace(RUN, output=path)))
    assert path in page.replace("\n", "")
    assert max(map(len, page.splitlines())) <= 80


def test_without_a_terminal_a_page_has_100_columns(monkeypatch):
    """COLUMNS says otherwise where it is set."""
    monkeypatch.delenv("COLUMNS")
    assert "old rank (down)" in page_of(report_of(ring(97)))
    assert "old block of 8 ranks (down)" in page_of(report_of(ring(98)))


@pytest.mark.parametrize(
    ("ranks_per_node", "of", "size"),
    [(None, "block of 16 ranks", 64), (4, "block of 16 ranks", 64), (32, "node of 32 ranks", 32)],
)
def test_1024_ranks_fit_80_columns(ranks_per_node, of, size):
    """By node where nodes fit, else by so many ranks as it takes; nothing of the traffic is left out."""
    rows = ring(1024)
    report = dataclasses.replace(report_of(rows), ranks_per_node=ranks_per_node)
    lines = page_of(report).splitlines()
    first = lines.index(f"bytes, old {of} (down) to new {of.split()[0]} (across)") + 1
    assert max(map(len, lines)) <= 80
    scale = next(i for i, line in enumerate(lines) if line.startswith("scale: "))
    assert scale - first - 1 == size
    width = len(str(size - 1)) + 1
    cell = 2 if size == 32 else 1
    for rank, line in enumerate(lines[first + 1 : scale]):
        cells = [line[width + at * cell : width + (at + 1) * cell].strip() for at in range(size)]
        assert [at for at, shade in enumerate(cells) if shade != "·"] == sorted({rank, (rank + 1) % size})
    assert f"bytes by {of}, a full bar is {1024 // size}.0 MB" in lines


def test_bars_show_the_smallest_and_the_largest():
    """Next to nothing is a low bar and nothing is a point; in ASCII other heights take their place."""
    rows = [[0, 1, 0], [0, 0, 0], [1000, 0, 0]]
    assert "\nsent      ▁▁··██\nreceived  ██▁▁··\n" in page_of(report_of(rows))
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_report(report_of(rows), stream)
    assert "\nsent      ::..@@\nreceived  @@::..\n" in stream.buffer.getvalue().decode("ascii")


def test_a_gap_to_the_bound_is_said():
    """In percent, for bytes and for rows; nothing where the bound is reached."""
    report = report_of(ring(2))
    totals = dataclasses.replace(
        report.totals,
        busiest_sender_bytes=1002 * MB,
        busiest_sender_bound_bytes=1000 * MB,
        cross_node_bytes=MB,
        cross_node_bound_bytes=MB,
    )
    page = page_of(dataclasses.replace(report, totals=totals, ranks_per_node=1))
    assert "\nbusiest sender  1.00 GB, bound 1.00 GB, 0.2% above it\n" in page
    assert "\nbetween nodes   1.00 MB, bound 1.00 MB\n" in page
    report = report_of(ring(2), row_nbytes=None)
    totals = dataclasses.replace(report.totals, busiest_sender_rows=6, busiest_sender_bound_rows=5)
    assert "busiest sender  6 rows, bound 5 rows, 20% above it" in page_of(
        dataclasses.replace(report, totals=totals)
    )


def test_the_layers_that_move_most():
    """Five of them, the first of them first; one layer is not compared with itself."""
    layers = [LayerTraffic(3 + number, number * MB, number) for number in (1, 4, 0, 2, 8, 5, 3)]
    report = dataclasses.replace(report_of(ring(3)), layers=layers)
    assert """
layers that move most
layer    bytes  rows
──────────────────────────────────────────
   11  8.00 MB     8  ████████████████████
    8  5.00 MB     5  █████████████
    7  4.00 MB     4  ██████████
    6  3.00 MB     3  ████████
    5  2.00 MB     2  █████

what becomes of all rows
""" in page_of(report)
    rows = [LayerTraffic(layer, None, 6 - layer) for layer in range(2)]
    page = page_of(dataclasses.replace(report_of(ring(3), row_nbytes=None), layers=rows))
    assert "\n    0     6  ████████████████████\n    1     5  █████████████████\n" in page
    assert "layers" not in page_of(dataclasses.replace(report, layers=layers[:1]))


INSPECTION = Inspection(
    path=Path("/src"),
    layout="stacked",
    slots_per_rank=(3, 3, 2, 2),
    layers=(0, 3, 4, 5),
    further_layers={},
    expert_tensors=(
        ExpertTensor(
            name="model.layers.{layer}.mlp.experts.routed_experts.w13_weight",
            dtype="F8_E4M3",
            row_shape=(4096, 7168),
            row_nbytes=29_360_128,
            num_layers=4,
        ),
        ExpertTensor(name="[b]\x1b", dtype="F32", row_shape=(), row_nbytes=4, num_layers=4),
    ),
    num_others=1234,
    others_nbytes=12_345_678,
    sharded_others=("model.embed_tokens.weight",),
    num_files=16,
    nbytes=51_234_567_890,
    placement=Placement(
        np.tile(np.arange(10), (4, 1)), np.array([0, 3, 6, 8, 10]), 10, np.array([0, 3, 4, 5])
    ),
    findings=(Finding("EP112", "warning", "expert 1 twice", "run x"),),
)


def test_an_inspection_at_80_columns():
    """Names fold, numbers do not."""
    stream = io.StringIO()
    print_inspection(INSPECTION, stream)
    assert (
        stream.getvalue()
        == r"""stacked: 4 ranks, 16 files, 51.2 GB

slots per rank  3, 3, 2, 2
MoE layers      4 (0, 3-5)
other tensors   1,234, 12.3 MB

expert tensors (shape and bytes of one row)
name                                         dtype        shape    bytes  layers
────────────────────────────────────────────────────────────────────────────────
model.layers.{layer}.mlp.experts.routed_e  F8_E4M3  4096 × 7168  29.4 MB       4
xperts.w13_weight
[b]\x1b                                        F32       scalar      4 B       4

placement
format               eplb-placement/1
num ranks            4
slots per rank       [3, 3, 2, 2]
num logical experts  10
layer ids            0, 3-5
map                  4 layers × 10 slots

other tensors that look sharded
- model.embed_tokens.weight

findings
- warning[EP112]: expert 1 twice (hint: run x)
"""
    )


def test_an_inspection_without_a_placement_or_oddities_is_short():
    """Even slots are said once."""
    stream = io.StringIO()
    plain = dataclasses.replace(
        INSPECTION, slots_per_rank=(2, 2), placement=None, sharded_others=(), findings=()
    )
    print_inspection(plain, stream)
    page = stream.getvalue()
    assert "slots per rank  2\n" in page
    assert not {"placement", "findings", "sharded"} & set(page.split())


VERIFICATION = Verification(
    path=Path("/out"),
    against=Path("/in"),
    rows_proved=480,
    others_proved=12,
    num_files=8,
    nbytes=51_234_567_890,
    seconds=12.34,
)


def test_a_verification_says_what_was_proved_against_what():
    """The verdict comes first."""
    stream = io.StringIO()
    print_verification(VERIFICATION, stream)
    assert (
        stream.getvalue()
        == """\
verified: 480 of 480 rows proved

checked        /out
against        /in
other tensors  12 proved
read           8 files, 51.2 GB
took           12.3 s, 4.15 GB/s
"""
    )


def test_a_verification_without_src():
    """The manifest is the witness."""
    stream = io.StringIO()
    print_verification(dataclasses.replace(VERIFICATION, against=None), stream)
    assert "against        its own manifest\n" in stream.getvalue()
