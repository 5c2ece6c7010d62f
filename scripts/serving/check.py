"""Serve what eplb writes with a real vLLM: `python -m scripts.serving.check [--only WORD]... [--docs]`.

Every case is served as a user would serve it, but for what `mended_cpu` adds to vLLM's CPU build, and its
answers are compared with those of the Hugging Face checkpoint under the same parallelism: greedy tokens, and
the logprobs of prompts and answers.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from scripts.serving import families
from scripts.serving.bench import Bench, Served
from scripts.serving.cases import refuse, serve_family
from scripts.serving.served import import_vllm
from scripts.serving.tiny_models import FAMILIES
from scripts.serving.trees import WORK, Trees

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
BEGIN, END = "<!-- made by scripts/serve-check --docs -->\n", "<!-- end -->\n"


def table(bench: Bench, seconds: float) -> str:
    """What was run, as docs/serving.md has it."""
    date, count = time.strftime("%Y-%m-%d"), len(bench.rows)
    lines = [
        f"vLLM {bench.version} on the CPU, {date}, `scripts/serve-check`: {count} cases, {seconds:.0f} s.",
        "",
        "| model | served | outcome |",
        "|---|---|---|",
        *(f"| {family} | {what} | {outcome} |" for family, what, outcome in bench.rows),
    ]
    return "\n".join(line.replace(str(WORK / "trees") + "/", "") for line in lines) + "\n"


def write_page(text: str) -> None:
    """Put the table where docs/serving.md wants it."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + text + "\n" + END + rest.partition(END)[2], encoding="utf-8")


def main() -> int:
    """Run what was asked for; 1 where something did not end as it has to."""
    parser = argparse.ArgumentParser(prog="serve-check", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", default=[], help="run cases that have this in their name")
    parser.add_argument("--docs", action="store_true", help="write the table of docs/serving.md anew")
    asked = parser.parse_args()
    started = time.monotonic()
    bench = Bench(import_vllm(), asked.only)
    for number, name in enumerate(FAMILIES):
        case = Served(bench, name, Trees(name))
        serve_family(case)
        if number == 0:
            refuse(case)
    for name in families.FAMILIES:
        what = "names: shard --engine vllm, linear, against what vLLM saves; stock vLLM, DP = 2"
        if bench.wants(name, what):
            said, is_good = families.outcome(name)
            bench.done(name, what, said, good=is_good)
    if bench.wrong:
        print(f"serve-check: {len(bench.wrong)} cases did not end as they have to", file=sys.stderr)
        return 1
    if asked.docs:
        write_page(table(bench, time.monotonic() - started))
    print(f"serve-check: {len(bench.rows)} cases, {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
