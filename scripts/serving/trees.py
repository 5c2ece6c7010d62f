"""What eplb makes of a tiny model, as it is and damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import eplb_cli
from eplb_cli.checkpoint.manifest import read_manifest
from eplb_cli.checkpoint.shards import open_shards
from eplb_cli.placements.placement import Placement
from scripts.serving.tiny_models import FAMILIES, write_model

WORK = Path(__file__).parents[2] / "build" / "serving"
NUM_REDUNDANT = 4


class Trees:
    """What eplb makes of one tiny model, each tree when it is first asked for."""

    def __init__(self, name: str) -> None:
        self.family = FAMILIES[name]
        self.home = WORK / "trees" / name.replace(", ", "-").replace(" ", "-")
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True)
        self.hf = write_model(self.home / "hf", self.family)

    def _shard(self, name: str, placement: str, num_ranks: int = 2) -> Path:
        path = self.home / name
        if not path.exists():
            options = eplb_cli.PlacementOptions(num_ranks=num_ranks)
            eplb_cli.shard(self.hf, path, placement, "vllm", options, durable=False)
        return path

    def linear(self) -> Path:
        """In order, as vLLM has it by itself."""
        return self._shard("linear", "linear")

    def placed(self, num_ranks: int = 2) -> Path:
        """Another permutation in each layer."""
        return self._shard(f"placed-{num_ranks}", str(self.map(num_ranks)), num_ranks)

    def replicas(self) -> Path:
        """Another permutation in each layer, and other replicas."""
        return self._shard("replicas", str(self.map(2, NUM_REDUNDANT)))

    def map(self, num_ranks: int, num_redundant: int = 0, seed: int = 0, num_empty: int = 0) -> Path:
        """A random placement in a file."""
        path = self.home / f"map-{num_ranks}-{num_redundant}-{seed}-{num_empty}.json"
        base = self._placement(self.linear())
        generator = np.random.default_rng([num_ranks, num_redundant, seed])
        experts = base.num_logical_experts

        def row() -> NDArray[np.int64]:
            extra = generator.integers(experts, size=num_redundant)
            extra[:num_empty] = -1
            return generator.permutation(np.concatenate([np.arange(experts), extra]))

        table = np.array([row() for _ in range(base.num_layers)])
        first_slot = np.arange(num_ranks + 1) * (table.shape[1] // num_ranks)
        made = eplb_cli.Placement(table, first_slot, experts, base.layer_ids)
        path.write_text(eplb_cli.format_placement(made), encoding="utf-8")
        return path

    @staticmethod
    def _placement(tree: Path) -> Placement:
        manifest = read_manifest(tree)
        if manifest is None:
            raise FileNotFoundError(tree / "eplb.json")
        return manifest.read_placement(tree)

    def reshard(self, source: Path, name: str, new: Path, old: str | None = None) -> Path:
        """A tree from another."""
        path = self.home / name
        request = eplb_cli.Request(source, path, new=str(new), old=old, backend="file", durable=False)
        eplb_cli.reshard(request)
        return path

    def baked(self) -> Path:
        """The checkpoint with its experts in the order of a map that keeps groups together."""
        path = self.home / "baked"
        if not path.exists():
            eplb_cli.bake(self.hf, path, self._map_within_groups(), durable=False)
        return path

    def _map_within_groups(self) -> Path:
        """Each group of experts reversed: an order that every router with groups can have."""
        base, values = self._placement(self.linear()), self.family.values
        groups = np.arange(base.num_logical_experts).reshape(values.get("n_group", 1), -1)
        table = np.tile(groups[:, ::-1].ravel(), (base.num_layers, 1))
        made = eplb_cli.Placement(table, base.first_slot, base.num_logical_experts, base.layer_ids)
        path = self.home / "within-groups.json"
        path.write_text(eplb_cli.format_placement(made), encoding="utf-8")
        return path

    def copy(self, source: Path, name: str) -> Path:
        """A tree to damage."""
        return Path(shutil.copytree(source, self.home / name, dirs_exist_ok=True))


def on_hosts(tree: Path, num_ranks: int, ranks_per_host: int) -> Path:
    """For each rank what its host has of a tree, as several hosts have it; RANK in the name is the rank."""
    for rank in range(num_ranks):
        path = tree.with_name(f"{tree.name}-as-{rank}-has-it")
        shutil.copytree(tree, path, dirs_exist_ok=True)
        for file in path.glob("model-rank-*"):
            if int(file.name.split("-")[2]) // ranks_per_host != rank // ranks_per_host:
                file.unlink()
    return tree.with_name(f"{tree.name}-as-RANK-has-it")


def with_empty_slots(trees: Trees) -> Path:
    """Two slots of each layer hold no expert."""
    return trees.reshard(trees.replicas(), "empty", trees.map(2, NUM_REDUNDANT, seed=3, num_empty=2))


def with_a_wrong_map(trees: Trees) -> Path:
    """Rows in one order under a map that says another."""
    source = trees.copy(trees.linear(), "unsaid")
    (source / "eplb.json").unlink()
    wrong = trees.map(2, seed=4)
    return trees.reshard(source, "wrong", wrong, old=str(wrong))


def without_a_layer(trees: Trees) -> Path:
    """A map of all layers but the last."""
    source = trees.copy(trees.linear(), "all-layers")
    (source / "eplb.json").unlink()
    content = json.loads(trees.map(2).read_text(encoding="utf-8"))
    del content["layer_ids"][-1], content["physical_to_logical_map"][-1]
    path = trees.home / "fewer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return trees.reshard(source, "fewer", path, old=str(path))


def damaged(trees: Trees, what: str) -> Path:
    """A copy of a tree in which one thing is not as it was written."""
    path = trees.copy(trees.placed(), f"damaged-{what}")
    shard = path / "model-rank-1-part-0.safetensors"
    content = bytearray(shard.read_bytes())
    if what == "gone":
        shard.unlink()
    elif what == "cut":
        shard.write_bytes(content[:-1])
    elif what == "header":
        shard.write_bytes(content.replace(b'"eplb.rank":"1"', b'"eplb.rank":"0"'))
    elif what == "eplb.json":
        (path / what).unlink()
    elif what == "config.json":
        (path / what).write_text((path / what).read_text(encoding="utf-8") + "\n", encoding="utf-8")
    else:
        _flip(path, what)
    return path


def _flip(path: Path, suffix: str) -> None:
    """Change a byte of the first tensor of such a name on rank 1, wherever it lies."""
    shards = open_shards(path)
    at = next(at for key, at in shards.tensors[1].items() if key.endswith(suffix))
    file = shards.files[at.file].path
    content = bytearray(file.read_bytes())
    content[at.offset] ^= 1
    file.unlink()  # it may be one file with that of another rank
    file.write_bytes(content)
