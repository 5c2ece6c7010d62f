"""The peer of `--backend gloo`: load all, exchange with the reference implementation, `save_file`.

Run by torchrun, one process a rank: `peer.py SRC DST OLD NEW REFERENCE SPANS`. Each process leaves in the
directory SPANS when it began to read and when its last file was saved.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
import time
import types
from pathlib import Path

import torch  # noqa: TID251 - this is not eplb, it is what eplb is compared with
import torch.distributed as dist  # noqa: TID251 - as above
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def main(arguments: list[str]) -> int:
    """Do the job of one rank."""
    source, destination, old, new, reference, spans = map(Path, arguments)
    dist.init_process_group("gloo")
    module = load_reference(reference)
    rank = dist.get_rank()
    dist.barrier()
    began = time.monotonic()
    files = {path.name: load_file(path) for path in sorted(source.glob(f"model-rank-{rank}-part-*"))}
    module.rearrange_expert_weights_inplace(read_map(old), read_map(new), layers_of(files), dist.group.WORLD)
    for name, tensors in files.items():
        save_file(tensors, destination / name)
    ended = time.monotonic()
    (spans / f"{rank}.json").write_text(json.dumps([began, ended]), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()
    return 0


def load_reference(path: Path) -> types.ModuleType:
    """The reference as a module, with stand-ins for its engine's logger and for a CUDA device."""
    for name in ("vllm", "vllm.logger"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["vllm.logger"].__dict__["init_logger"] = logging.getLogger
    torch.cuda.synchronize = lambda *_: None
    spec = importlib.util.spec_from_file_location("reference", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules["reference"] = module
    spec.loader.exec_module(module)
    return module


def read_map(path: Path) -> torch.Tensor:
    """(L, P) the expert in each slot, from a placement file."""
    return torch.tensor(json.loads(path.read_text("utf-8"))["physical_to_logical_map"])


def layers_of(files: dict[str, Tensors]) -> list[list[torch.Tensor]]:
    """The expert tensors of each layer."""
    found = {name: tensor for tensors in files.values() for name, tensor in tensors.items()}
    experts = {name: tensor for name, tensor in found.items() if ".experts.w" in name}
    layers = sorted({int(name.split(".")[2]) for name in experts})
    return [
        [experts[f"model.layers.{layer}.mlp.experts.{tensor}"] for tensor in ("w13_weight", "w2_weight")]
        for layer in layers
    ]


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    sys.exit(main(sys.argv[1:]))
