"""A checkpoint that is spread over hosts, a run of all of them, and what has to come out of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from eplb_cli.placements.own_format import format_placement
from eplb_cli.placements.placement import Placement
from tests.support.checkpoints import ExpertTensor, Model, OtherTensor, write_tree
from tests.support.faults import Ended, Fault, run_here
from tests.support.machines import Machine, Process
from tests.support.runs import contents

PORT = 29400
NUM_EXPERTS = 8
ROW_NBYTES = 4096


def placed(num_ranks: int, seed: int, num_slots: int = 4) -> Placement:
    """A random placement of 8 experts in 2 layers, with replicas."""
    chance = np.random.default_rng(seed)
    total = num_ranks * num_slots
    rows = [
        chance.permutation([*range(NUM_EXPERTS), *chance.integers(NUM_EXPERTS, size=total - NUM_EXPERTS)])
        for _ in range(2)
    ]
    return Placement(np.array(rows), np.arange(0, total + 1, num_slots), NUM_EXPERTS, np.array([3, 4]))


def model(num_ranks: int, row_nbytes: int = ROW_NBYTES, *, own: bool = True) -> Model:
    """Two tensors an expert, one that all ranks have, and one that may be each rank's own."""
    of_layer = (ExpertTensor("w13_weight", "U8", (row_nbytes,)), ExpertTensor("w2_weight", "BF16", (1, 2)))
    return Model(
        "stacked",
        "model.layers.{layer}.mlp.experts.",
        dict.fromkeys((3, 4), of_layer),
        (OtherTensor("model.norm.weight"), OtherTensor("model.embed_tokens.weight", own=own)),
        source_ranks=num_ranks,
    )


Faults = Mapping[int, Mapping[str, Fault]]
"""By host and process."""


def without_nodes(content: bytes) -> bytes:
    """A manifest, but for which node the ranks are on, who sends because of it, and its digest of itself."""
    manifest = json.loads(content)
    manifest["decisions"].pop("nodes", None)
    return json.dumps(
        {name: manifest[name] for name in manifest if name not in {"digest", "plan_digest", "ranks_per_node"}}
    ).encode()


@dataclass
class Spread:
    """Hosts, each of which has the shards of some old ranks in `src`.

    Attributes:
        ranks_of: the old ranks of each host.
        ranks_per_node: what one host that sees all is told for a manifest of the same bytes; None where hosts
            have not all as many ranks, and this cannot be said.
        common_source, common_destination: whether it is in the directory that all hosts share.
    """

    machines: Sequence[Machine]
    home: Path
    ranks_of: Sequence[Sequence[int]]
    num_new: int = 4
    row_nbytes: int = ROW_NBYTES
    ranks_per_node: int | None = None
    common_source: bool = False
    common_destination: bool = False
    old: Placement = field(init=False)
    new: Placement = field(init=False)

    def __post_init__(self) -> None:
        num_old = max(rank for ranks in self.ranks_of for rank in ranks) + 1
        self.old, self.new = placed(num_old, 1), placed(self.num_new, 2)
        self.whole.mkdir(parents=True)
        write_tree(self.whole, model(num_old, self.row_nbytes, own=num_old == self.num_new), self.old, 2)
        (self.whole / "config.json").write_text("{}")
        for machine, ranks in zip(self.machines, self.ranks_of, strict=True):
            for name, side in (("old", self.old), ("new", self.new)):
                (machine.path / f"{name}.json").write_text(format_placement(side))
            self.give(machine, ranks)

    @property
    def whole(self) -> Path:
        """All of SRC, which no host sees."""
        return self.home / "whole"

    def source(self, machine: Machine) -> Path:
        """SRC of a host, as the test sees it."""
        return (machine.path.parent if self.common_source else machine.path) / self._source

    def destination(self, machine: Machine) -> Path:
        """DST of a host, as the test sees it."""
        return (machine.path.parent if self.common_destination else machine.path) / self._destination

    def staging(self, machine: Machine) -> Path:
        path = self.destination(machine)
        return path.with_name(f".{path.name}.eplb-staging")

    @property
    def _source(self) -> str:
        return "shared/src" if self.common_source else "src"

    @property
    def _destination(self) -> str:
        return "shared/dst" if self.common_destination else "dst"

    def give(self, machine: Machine, ranks: Sequence[int]) -> None:
        """Let a host have the shards of some ranks, and what is beside them; nothing where they are none."""
        source = self.source(machine)
        for file in sorted(self.whole.iterdir()):
            if any(file.name.startswith(f"model-rank-{rank}-") for rank in ranks) or (
                ranks and file.suffix == ".json"
            ):
                source.mkdir(exist_ok=True)
                shutil.copy2(file, source / file.name)

    def words(self, node: int, *options: object, backend: str = "gloo", **changes: Any) -> list[str]:
        """The command of a host; `changes` are other values of options, None for none."""
        given = {"nnodes": len(self.machines), "node-rank": node, "backend": backend}
        if backend != "file":
            given |= {"rdzv-endpoint": f"{self.machines[0].address}:{PORT}", "nproc-per-node": 1}
        given |= {"old": "old.json", "new": "new.json"}
        given |= {name.replace("_", "-"): value for name, value in changes.items()}
        said = [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
        return ["reshard", self._source, self._destination, *map(str, said), *map(str, options)]

    def start(self, *options: object, faults: Faults | None = None, **changes: Any) -> list[Process]:
        """Start the command on all hosts, as forks; `faults` are those of the processes of a host."""
        return [
            machine.fork(self.words(node, *options, **changes), faults=(faults or {}).get(node))
            for node, machine in enumerate(self.machines)
        ]

    def run(self, *options: object, **changes: Any) -> list[Ended]:
        """Run the command on all hosts to its end."""
        return [process.wait() for process in self.start(*options, **changes)]

    @cached_property
    def expected(self) -> dict[str, bytes]:
        """The files of DST, as one host that sees all of SRC writes them."""
        alone = self.home / "alone"
        given = ("--old", self.machines[0].path / "old.json", "--new", self.machines[0].path / "new.json")
        nodes = () if self.ranks_per_node is None else ("--ranks-per-node", self.ranks_per_node)
        ended = run_here("reshard", self.whole, alone, *given, *nodes, "--backend", "file")
        assert ended.code == 0, ended
        return contents(alone)

    def merged(self) -> dict[str, bytes]:
        """The files of all hosts' DST together; what several have is the same, and no shard is on two."""
        found: dict[str, bytes] = {}
        for path in {self.destination(machine) for machine in self.machines}:
            for name, content in contents(path).items() if path.exists() else ():
                assert name not in found or not name.endswith(".safetensors"), f"{name} is on two hosts"
                assert found.setdefault(name, content) == content, f"{name} differs"
        return found

    def require_whole(self) -> None:
        """DST is there on all hosts, is what one host writes, and nothing is left beside it."""
        for machine in self.machines:
            assert (self.destination(machine) / "eplb.json").exists(), machine.name
            assert not self.staging(machine).exists(), machine.name
        found, expected = self.merged(), dict(self.expected)
        if self.ranks_per_node is None:
            for side in (found, expected):
                side["eplb.json"] = without_nodes(side["eplb.json"])
        wrong = [name for name in {*found, *expected} if found.get(name) != expected.get(name)]
        assert not wrong, wrong

    def require_nothing(self) -> None:
        """No host has DST."""
        assert [machine.name for machine in self.machines if self.destination(machine).exists()] == []

    def require_sound(self, ended: Sequence[Ended], *, agreed: bool, backend: str = "gloo") -> None:
        """What has to hold after any loss; then all hosts go on, and have all of DST.

        Args:
            agreed: whether all had proved what they wrote before something was lost.
        """
        for end in ended:
            assert "Traceback" not in end.err, ended
        there = [self.destination(machine).exists() for machine in self.machines]
        for machine, end, is_there in zip(self.machines, ended, there, strict=True):
            assert end.code or is_there, (machine.name, ended)
        assert agreed or not any(there), ended
        if not all(there):
            again = self.run("--resume", backend=backend)
            assert [end.code for end in again] == [0] * len(again), (ended, again)
        self.require_whole()

    def gather(self, goal: Path) -> None:
        """Copy what all hosts have of DST into one directory."""
        goal.mkdir()
        for name, content in self.merged().items():
            (goal / name).write_bytes(content)

    def remove_destination(self) -> None:
        """Make room for another run."""
        for machine in self.machines:
            shutil.rmtree(self.destination(machine), ignore_errors=True)
