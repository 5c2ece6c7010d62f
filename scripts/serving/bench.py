"""Cases: one start of vLLM each, and what has to come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eplb_cli.errors import EplbError
from scripts.serving.served import MENDED, Answer, Job, serve
from scripts.serving.trees import WORK, Trees

TOLERANCE = 1e-5
"""Of logprobs in float32, where the placement decides in which order a token's experts are added."""


@dataclass(frozen=True)
class Likeness:
    """How far two answers agree."""

    num_tokens: int
    same_tokens: int
    num_logprobs: int
    largest: float

    @property
    def is_identical(self) -> bool:
        """To the bit."""
        return self.same_tokens == self.num_tokens and self.largest == 0

    def __str__(self) -> str:
        if self.is_identical:
            return f"identical: {self.num_tokens} tokens, {self.num_logprobs:,} logprobs"
        within = f", logprobs within {self.largest:.1g}" if self.same_tokens == self.num_tokens else ""
        return f"{self.same_tokens} of {self.num_tokens} tokens{within}"


def compare(first: Answer, second: Answer) -> Likeness:
    """Tokens by place; logprobs of what both name, and infinitely far where only one does."""
    pairs = list(zip(first.prompts, second.prompts, strict=True))
    tokens = [one == other for a, b in pairs for one, other in zip(a["tokens"], b["tokens"], strict=True)]
    differences = [
        abs(one[token] - other[token]) if token in one and token in other else float("inf")
        for a, b in pairs
        for kind in ("logprobs", "of_prompt")
        for one, other in zip(a[kind], b[kind], strict=True)
        for token in one.keys() | other.keys()
    ]
    return Likeness(len(tokens), sum(tokens), len(differences), max(differences))


@dataclass
class Bench:
    """Runs cases, and keeps what came of them.

    Attributes:
        only: words of which a case has to have one.
        rows: family, what was served, outcome; of cases that ended as they have to.
        wrong: of the others.
    """

    version: str
    only: list[str]
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    _answers: dict[str, list[Answer]] = field(default_factory=dict)

    def wants(self, family: str, what: str) -> bool:
        """Whether a case is to be run."""
        return not self.only or any(word in f"{family}: {what}" for word in self.only)

    def answers(self, job: Job) -> list[Answer]:
        """What vLLM answers; a job of one name is run once."""
        if job.name not in self._answers:
            self._answers[job.name] = serve(job, WORK / "answers")
        return self._answers[job.name]

    def done(self, family: str, what: str, outcome: str, *, good: bool) -> None:
        """Note a case and print it."""
        print(f"{'ok  ' if good else 'BAD '} {family}: {what}: {outcome}", flush=True)
        if good:
            self.rows.append((family, what, outcome))
        else:
            self.wrong.append(f"{family}: {what}")


@dataclass(frozen=True)
class Served:
    """The cases of one family."""

    bench: Bench
    name: str
    trees: Trees

    def job(self, what: str, model: Path, **how: Any) -> Job:
        """A job of this family."""
        words = "".join(letter if letter.isalnum() else "-" for letter in f"{self.name} {what}")
        return Job(words, model, dtype=self.trees.family.dtype, **how)

    def plugin(self, what: str, model: Path, **how: Any) -> Job:
        """A job with --load-format eplb."""
        options = {"load_format": "eplb", **how.pop("options", {})}
        return self.job(what, model, options=options, **how)

    def reference(self, tp: int, dp: int) -> Answer:
        """What vLLM answers from the Hugging Face checkpoint."""
        mends = (*MENDED, "data_parallelism")
        job = self.job(f"Hugging Face, TP = {tp}, DP = {dp}", self.trees.hf, tp=tp, dp=dp, mends=mends)
        return self.bench.answers(job)[0]

    def like(self, make: Callable[[], Job]) -> tuple[Answer, Likeness | None]:
        """What a job answers, and how far it agrees with the reference."""
        try:
            job = make()
        except EplbError as error:
            return Answer(error=f"its tree cannot be made: {error.code}: {error}"), None
        answer, reference = self.bench.answers(job)[0], self.reference(job.tp, job.dp)
        if answer.error or reference.error:
            return (answer if answer.error else reference), None
        return answer, compare(reference, answer)

    def same(self, what: str, make: Callable[[], Job], *, rearranges: bool = False) -> None:
        """A case that has to answer as the Hugging Face checkpoint does."""
        if not self.bench.wants(self.name, what):
            return
        answer, found = self.like(make)
        if found is None:
            self.bench.done(self.name, what, answer.error, good=False)
            return
        family = self.trees.family
        near = found.same_tokens == found.num_tokens and found.largest <= TOLERANCE
        good = found.is_identical if family.is_exact else near
        outcome = str(found)
        if rearranges:
            outcome, good = (
                f"{outcome}; {answer.rearrangements} rearrangements",
                good and answer.rearrangements > 0,
            )
        self.bench.done(self.name, what, outcome, good=good)

    def different(self, what: str, make: Callable[[], Job]) -> None:
        """A case that has to be seen as wrong."""
        if not self.bench.wants(self.name, what):
            return
        answer, found = self.like(make)
        good = found is not None and found.same_tokens < found.num_tokens // 2
        self.bench.done(self.name, what, answer.error if found is None else f"seen: {found}", good=good)

    def refused(self, what: str, code: str, make: Callable[[], Job]) -> None:
        """A case that has to be refused."""
        what = f"refused: {what}"
        if not self.bench.wants(self.name, what):
            return
        errors = [answer.error for answer in self.bench.answers(make())]
        said = next((error for error in errors if f"{code}: " in error), "")
        outcome = f"{code}:{said.partition(f'{code}:')[2].splitlines()[0]}" if said else str(errors)
        self.bench.done(self.name, what, outcome, good=bool(said))
