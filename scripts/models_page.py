"""docs/models.md: what each published model goes through, found by doing it.

Run as `python -m scripts.models_page > docs/models.md`; a test holds the page to what this makes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import eplb_cli
from eplb_cli.errors import EplbError
from eplb_cli.huggingface.engines import AS_THEY_ARE, engine_names
from eplb_cli.models.config import read_model
from tests.support.published import PUBLISHED, Published, write_published

_HEAD = """# Models

What each model goes through in its published form: the names, dtypes and files of
`tests/support/published.py`, where their sources are said, with small shapes. The names decide
([layouts.md](layouts.md)), so models that are not here go through as well: the commands say by name what they
do not know. This page is made by doing what it says (`./scripts/docs`), and a test does it again.

- **config.json**: MoE layers, of how many, and experts, as `--model config.json` reads them.
- **shard**: to 2 ranks with two replicas, under the names that Hugging Face has; the placement names the main
  layers, MTP layers are laid out in order.
- **reshard**: on to 3 ranks under another placement. Every row is proved against its source.
- **merge**: both back; the files are the same, byte for byte.
- **bake**: the experts in another order, without replicas. EP226: the router, or another tensor that may name
  experts, is not known.
- **sglang**, **vllm**: `shard --engine`, linear, and merged back byte for byte; `tests/cli/test_published.py`
  finds every tensor again by its content. EP224: nobody has made sure of the engine's names yet.

"""
_MAPS = ([0, 2, 1, 3, 3, 0], [2, 1, 0, 2, 3, 1])
_ORDER = [1, 0, 3, 2]


def page() -> str:
    """The page."""
    engines = [name for name in engine_names() if name != AS_THEY_ARE]
    heads = ["model", "config.json", "shard", "reshard", "merge", "bake", *engines]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, make in PUBLISHED.items():
        with tempfile.TemporaryDirectory() as directory:
            cells = _cells(Path(directory), make(), engines)
        lines.append(f"| {' | '.join([name, *cells])} |")
    return _HEAD + "\n".join(lines) + "\n"


def _cells(path: Path, model: Published, engines: list[str]) -> list[str]:
    """What became of a model, command by command."""
    source = write_published(path / "hf", model)
    first, second, order = (path / f"{name}.json" for name in ("first", "second", "order"))
    for file, row in ((first, _MAPS[0]), (second, _MAPS[1]), (order, _ORDER)):
        file.write_text(json.dumps([row] * len(model.layers)))
    two, three = (eplb_cli.PlacementOptions(num_ranks=ranks) for ranks in (2, 3))

    def reshard() -> str:
        new = str(second)
        request = eplb_cli.Request(path / "two", path / "three", new=new, placements=three, backend="file")
        report = eplb_cli.reshard(request)
        return "yes" if report.run is not None and report.run.verified else "not proved"

    def merge(shards: str) -> str:
        eplb_cli.merge(path / shards, path / f"merged-{shards}")
        return "yes" if _same(source, path / f"merged-{shards}") else "other bytes"

    def shard_for(engine: str) -> str:
        eplb_cli.shard(source, path / engine, "linear", engine, two)
        return merge(engine)

    return [
        _outcome(lambda: _config(source)),
        _outcome(lambda: _proved(eplb_cli.shard(source, path / "two", first, AS_THEY_ARE, two))),
        _outcome(reshard),
        _outcome(lambda: merge("two") if merge("three") == "yes" else "other bytes"),
        _outcome(lambda: _proved(eplb_cli.bake(source, path / "baked", order, two))),
        *(_outcome(lambda engine=engine: shard_for(engine)) for engine in engines),  # type: ignore[misc]
    ]


def _outcome(do: Callable[[], object]) -> str:
    """What a step says of itself, or the code with which it refuses, and why."""
    try:
        return str(do())
    except EplbError as error:
        return error.code


def _proved(written: eplb_cli.Written) -> str:
    return "yes" if written.rows_proved else "not proved"


def _config(source: Path) -> str:
    model = read_model(source / "config.json")
    return f"{len(model.moe_layers)} of {model.num_hidden_layers}, {model.num_logical_experts}"


def _same(first: Path, second: Path) -> bool:
    """Whether two directories have the same files."""
    files = [{file.name: file.read_bytes() for file in path.iterdir()} for path in (first, second)]
    return files[0] == files[1]


if __name__ == "__main__":
    sys.stdout.write(page())
