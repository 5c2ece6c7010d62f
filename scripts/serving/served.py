"""One start of vLLM: a process for each rank, some prompts, and what it answered.

vLLM is imported once, and each rank is a fork: its start takes seconds then, and not a minute.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.serving.mended_cpu import MENDS, count_rearrangements, own_shared_memory

PROMPTS = [
    [3 + (17 * place + 29 * number + place * place) % 250 for place in range(5 + 4 * number)]
    for number in range(6)
]
NUM_TOKENS = 24
LIMIT_S = 300
SPARE_S = 15
"""How long other ranks may take to end once one has failed."""

MENDED = ("expert_parallelism", "maps")
"""What every start needs."""

ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True)
class Job:
    """How vLLM is started.

    Attributes:
        name: of its log and its answers.
        model: RANK in the last part of it is the rank's number.
        tp, dp: ranks of tensor and of data parallelism.
        options: of vLLM's `LLM`. environment: more variables.
        mends: names of functions of `mended_cpu`.
        pattern: of the files of a rank, for stock vLLM; RANK in it is the rank's number.
    """

    name: str
    model: Path
    tp: int = 2
    dp: int = 1
    dtype: str = "float32"
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    mends: tuple[str, ...] = MENDED
    pattern: str = ""

    @property
    def num_ranks(self) -> int:
        """Of expert parallelism."""
        return self.tp * self.dp


@dataclass(frozen=True)
class Answer:
    """What one rank answered.

    Attributes:
        prompts: for each prompt its tokens, and the logprobs of its own and of the new tokens.
        error: why there is no answer.
        rearrangements: of EPLB.
    """

    prompts: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    rearrangements: int = 0
    seconds: float = 0.0


def import_vllm() -> str:
    """Import in this process what every rank needs; the version of vLLM."""
    os.environ.update(ENVIRONMENT)
    import torch

    torch.set_num_threads(1)  # a fork has none of the threads of its parent, and would wait for them
    import vllm
    import vllm.distributed.eplb.eplb_state
    import vllm.v1.attention.backends.cpu_attn
    import vllm.v1.engine.core
    import vllm.v1.executor.uniproc_executor
    import vllm.v1.worker.cpu_worker

    return str(vllm.__version__)


def serve(job: Job, home: Path) -> list[Answer]:
    """Start vLLM and ask it; the answer of each rank."""
    home.mkdir(parents=True, exist_ok=True)
    port = 20000 + (os.getpid() * 7 + int(time.monotonic() * 10)) % 10000
    files = [home / f"{job.name}.{rank}.json" for rank in range(job.num_ranks)]
    for file in files:
        file.unlink(missing_ok=True)
    processes = [_fork(job, rank, port, file) for rank, file in enumerate(files)]
    _wait(processes)
    for shared in Path("/dev/shm").glob(f"{_name_of(port)}*"):  # noqa: S108 - named by us
        shared.unlink()
    return [_answer(file) for file in files]


def _name_of(port: int) -> str:
    """What the shared memory of a start is called."""
    return f"serving-{port}"


def _answer(file: Path) -> Answer:
    if not file.exists():
        return Answer(error=f"no answer; see {file.with_suffix('.log')}")
    return Answer(**json.loads(file.read_text(encoding="utf-8")))


def _fork(job: Job, rank: int, port: int, file: Path) -> int:
    """Start a rank; its process id."""
    process = os.fork()
    if process:
        return process
    log = os.open(file.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        answer = _ask(job, rank, port)
        code = 0
    except BaseException as error:  # noqa: BLE001 - whatever ends it is its answer
        traceback.print_exc()
        answer = Answer(error=f"{type(error).__name__}: {error}")
    file.write_text(json.dumps(vars(answer)), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(processes: list[int]) -> None:
    """Wait for all ranks, and not for long once one has failed."""
    end, running = time.monotonic() + LIMIT_S, set(processes)
    while running:
        for process in sorted(running):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                running.discard(process)
                end = min(end, time.monotonic() + SPARE_S) if status else end
        if time.monotonic() > end:
            for process in running:
                os.kill(process, signal.SIGKILL)
        time.sleep(0.1)


def _ask(job: Job, rank: int, port: int) -> Answer:
    """What this rank answers."""
    started = time.monotonic()
    os.environ.update(job.environment)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(job.num_ranks), MASTER_PORT=str(port)
    )
    from vllm import LLM, SamplingParams

    for name in job.mends:
        MENDS[name]()
    own_shared_memory(_name_of(port))
    rearrangements = count_rearrangements()
    options: dict[str, Any] = {
        "data_parallel_size": job.dp,
        "distributed_executor_backend": "external_launcher" if job.num_ranks > 1 else "uni",
        "dtype": job.dtype,
        "enable_expert_parallel": job.num_ranks > 1,
        "enable_prefix_caching": False,
        "enforce_eager": True,
        "max_model_len": 128,
        "max_num_seqs": 8,
        "model": str(job.model.with_name(job.model.name.replace("RANK", str(rank)))),
        "seed": 0,
        "skip_tokenizer_init": True,
        "tensor_parallel_size": job.tp,
        **job.options,
    }
    if job.pattern:
        options["model_loader_extra_config"] = {"pattern": job.pattern.replace("RANK", str(rank))}
    model = LLM(**options)
    sampling = SamplingParams(
        temperature=0, max_tokens=NUM_TOKENS, logprobs=5, prompt_logprobs=3, ignore_eos=True, detokenize=False
    )
    outputs = model.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], sampling)
    return Answer(
        [_plain(output) for output in outputs],
        rearrangements=len(rearrangements),
        seconds=time.monotonic() - started,
    )


def _plain(output: Any) -> dict[str, Any]:
    """An answer to one prompt as JSON has it."""

    def numbers(listed: Any) -> list[dict[str, float]]:
        return [{str(token): one.logprob for token, one in (at or {}).items()} for at in listed]

    (made,) = output.outputs
    return {
        "tokens": list(made.token_ids),
        "logprobs": numbers(made.logprobs),
        "of_prompt": numbers(output.prompt_logprobs),
    }
