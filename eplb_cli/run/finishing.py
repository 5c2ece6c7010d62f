"""A run that all hosts had agreed on, and that one of them did not live to finish: `--resume` does so.

A host that is lost between the agreement and its rename has staging in which all is proved, and others have
DST. All of it is one tree then, as their manifests say, and the lost host has only to rename its part.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from eplb_cli import files
from eplb_cli.audit.own_digests import manifest_of
from eplb_cli.audit.verify import prove_ranks
from eplb_cli.checkpoint.layout_file import layout_from_json
from eplb_cli.checkpoint.manifest import MANIFEST_NAME
from eplb_cli.checkpoint.part import files_of
from eplb_cli.checkpoint.staged import WORK
from eplb_cli.errors import OutputError
from eplb_cli.hosts.hosts import Hosts
from eplb_cli.output.destination import real_path, staging_path
from eplb_cli.output.prepared import Prepared
from eplb_cli.output.staging import publish_proved
from eplb_cli.progress import ProgressBar, telling
from eplb_cli.run.crew import Crew
from eplb_cli.run.preparing import Planned, plan_request
from eplb_cli.run.request import AnyRequest

THERE, PROVED, NEITHER = "there", "proved", "neither"


def agreed_before(request: AnyRequest, progress: ProgressBar, crew: Crew, *, full: bool) -> Planned | None:
    """The plan of a run that all hosts had agreed on, and that is asked for again; a collective.

    Returns:
        None where there was none: where it is not to be resumed, or no host has DST.

    Raises:
        OutputError: EP601, what is there is of another run, or not on all hosts.
        EplbError: as `plan_request`.
    """
    if not (request.resume and _was_agreed(request, crew.hosts)):
        return None
    planned = plan_request(request, progress, full=full, crew=crew, is_there=True)
    _require_asked(request, planned.prepared, crew.hosts.node)
    crew.hosts.gather(b"", "what is there")  # before a name changes
    return planned


def _was_agreed(request: AnyRequest, hosts: Hosts) -> bool:
    """Whether some hosts have DST already, and all others have proved the same; a collective.

    Raises:
        OutputError: EP601, a host has DST, and another one neither that nor what is left to finish.
    """
    what, manifest = _state(request)
    told = hosts.gather_words({"what": what, "manifest": manifest}, "states")
    states = [(said["what"], said["manifest"]) for said in told]
    there = {manifest for what, manifest in states if what == THERE}
    if not there:
        return False
    for node, (what, manifest) in enumerate(states):
        if what == NEITHER or manifest not in there or len(there) > 1:
            first = next(number for number, (other, _) in enumerate(states) if other == THERE)
            problem = (
                f"{hosts.name_of(first)} has DST already, and {hosts.name_of(node)} has "
                f"{'another one' if what == THERE else 'nothing of it that could be finished'}"
            )
            raise OutputError("EP601", problem, "remove DST on all hosts, or choose another one")
    return True


def _state(request: AnyRequest) -> tuple[str, str]:
    """What this host has: DST, or all that is needed for it, and a digest of its manifest."""
    what, path = _found(request)
    return what, "" if what == NEITHER else _digest(path / MANIFEST_NAME)


def _found(request: AnyRequest) -> tuple[str, Path]:
    """The same, and the directory of that manifest."""
    destination = real_path(request.destination)
    staging = staging_path(destination)
    with files.calls:
        is_there = (destination / MANIFEST_NAME).is_file() and not (destination / WORK).is_dir()
    if is_there:
        return THERE, destination
    for path in (staging, staging / WORK):
        manifest = path / MANIFEST_NAME
        with files.calls:
            is_proved = manifest.is_file() and manifest.stat().st_size > 0
        if is_proved:
            return PROVED, path
    return NEITHER, staging


def _digest(path: Path) -> str:
    return hashlib.sha256(files.read_own_file(path)).hexdigest()


def finish(request: AnyRequest, hosts: Hosts, progress: ProgressBar) -> None:
    """Prove again what this host has in staging, from the digests there, and rename it; a collective.

    Raises:
        BytesError: EP501 to EP505, it is not what was proved before.
        OutputError: EP601, DST has come to exist; EP603 to EP606.
    """
    for turn in range(hosts.count):  # one after the other: some may have one staging directory together
        if turn == hosts.node and _state(request)[0] == PROVED:
            publish_proved(request.destination, lambda path: _prove(path, progress), durable=request.durable)
        hosts.gather(b"", "finished")


def _require_asked(request: AnyRequest, prepared: Prepared, node: int) -> None:
    """EP601 where what is there came of another plan, or lacks a shard of this host."""
    what, at = _found(request)
    path = at.parent if at.name == WORK else at
    manifest, outputs = manifest_of(at), prepared.output.files
    wanted = {file.name: (file.nbytes, file.header_digest) for file in outputs}
    found = {name: (file["nbytes"], file["header_digest"]) for name, file in manifest.files.items()}
    here = [outputs[number].name for number in np.flatnonzero(prepared.is_on(node)).tolist()]
    with files.calls:
        lacking = [name for name in here if not os.path.lexists(path / name)]
    if manifest.plan_digest != prepared.plan.digest or found != wanted:
        problem = f"what is in {path} came of another SRC, OLD, NEW, or number of hosts"
    elif lacking:
        problem = f"{path} lacks {lacking[0]}"
    else:
        return
    hint = "remove it on all hosts, or choose another DST"
    raise OutputError("EP601", f"{'DST is there: ' if what == THERE else ''}{problem}", hint)


def _prove(path: Path, progress: ProgressBar) -> None:
    """What is there of each rank is as the manifest says."""
    manifest = manifest_of(path)
    rank_of = files_of(manifest.files, layout_from_json(manifest.layout, path / MANIFEST_NAME))
    there = {name: rank for name, rank in rank_of.items() if os.path.lexists(path / name)}
    if manifest.digests and there:
        nbytes = sum(manifest.files[name]["nbytes"] for name in there)
        with progress(nbytes, "verify") as show, telling(show) as advance:
            prove_ranks(path, manifest, {*there.values()}, advance)
