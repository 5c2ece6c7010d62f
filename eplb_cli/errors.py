"""The errors a user can meet, and the code each one carries.

::

    EplbError                 code, message, hint, exit_code
    ├── UsageError       EP0xx  exit 2    the command line contradicts itself
    ├── PlacementError   EP1xx  exit 3    a placement cannot be read or used
    ├── CheckpointError  EP2xx  exit 3    shards, layout or manifest cannot be used
    ├── PlanError        EP3xx  exit 3    the plan cannot be made or trusted
    ├── WorkerError      EP4xx  exit 4    a worker failed, died or made no progress
    ├── BytesError       EP5xx  exit 5    bytes differ from what they have to be
    └── OutputError      EP6xx  exit 6    the output cannot be written

A message says what and where (file, layer, slot, rank); the hint says what to do about it.
Codes are stable: they are added, never reused. `CODES` is the list of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from eplb_cli.values import dataclass

EXIT_FINDINGS = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

CODES = {
    "EP001": "options that cannot be used together, or one that is missing",
    "EP002": "what was asked for needs a package that is not installed",
    "EP101": "a placement file cannot be read",
    "EP102": "a placement file is not well-formed JSON",
    "EP103": "a file is not a placement: a key is missing, unknown or of the wrong type",
    "EP104": "a map is not a list of equally long lists of integers",
    "EP105": "an expert id is out of range",
    "EP106": "an expert of NEW has no source in OLD",
    "EP107": "an expert of OLD is dropped by NEW",
    "EP108": "the slots do not divide over the ranks as the placement says",
    "EP109": "OLD and NEW disagree on experts or layers",
    "EP110": "an expert is in no slot of a layer",
    "EP111": "the number of logical experts is a guess",
    "EP112": "a rank holds the same expert more than once",
    "EP113": "a rank has no expert at all in a layer",
    "EP114": "a named map lacks a number it needs",
    "EP115": "a rank mapping is no partial injection",
    "EP116": "a file is a placement of several dialects, or not of the one that was named",
    "EP117": "a dialect cannot say what the placement says",
    "EP118": "a model preset or config.json cannot be used",
    "EP119": "a load dump cannot be used",
    "EP120": "a placement is less balanced than it may be",
    "EP121": "slots of a layer are empty",
    "EP122": "experts of a layer have unequal numbers of replicas",
    "EP123": "an engine cannot have these slots on its ranks",
    "EP124": "an engine wants an expert in each slot",
    "EP125": "an engine wants a row for each MoE layer",
    "EP126": "an engine has an expert only once on a rank",
    "EP127": "more bytes would move than may",
    "EP128": "a directory holds no placement",
    "EP129": "an engine takes no such map for a model of this family",
    "EP201": "SRC is not a readable directory of shards",
    "EP202": "a rank's files are missing, or there are more ranks than the placement has",
    "EP203": "a shard is not a valid safetensors file",
    "EP204": "a file in SRC is not a regular file",
    "EP205": "a tensor is in two files of one rank",
    "EP206": "the layout is unknown, ambiguous or malformed",
    "EP207": "a tensor looks like an expert's and fits no rule of the layout",
    "EP208": "an expert tensor does not have the number of rows the placement says",
    "EP209": "an expert tensor is not the same on all ranks of a layer",
    "EP210": "a weight without its scale, or a scale without its weight",
    "EP211": "an input scale has neither one value nor one per row",
    "EP212": "the placement's layers are not the checkpoint's",
    "EP213": "another tensor is sharded, and the number of ranks changes",
    "EP214": "a manifest cannot be used",
    "EP215": "OLD contradicts what SRC itself says: its manifest, or maps in the shards",
    "EP216": "nothing says what OLD is",
    "EP217": "the experts named by the keys are not those of OLD",
    "EP218": "the layout cannot hold the same expert twice on a rank",
    "EP219": "MoE layers outside the placement cannot follow a change of ranks or slots",
    "EP220": "a file of SRC changed while it was read",
    "EP221": "rows of a live tensor overlap, or are not contiguous",
    "EP222": "live tensors are not what the placement needs",
    "EP223": "a directory is no Hugging Face checkpoint",
    "EP224": "an engine has no names for a model, or for one of its tensors",
    "EP225": "a tree cannot be merged",
    "EP226": "a model or a placement cannot be baked",
    "EP227": "rows of shards cannot be told by their bytes",
    "EP228": "a live tensor has no memory that can be moved",
    "EP229": "a file of SRC has a name under which eplb writes one itself",
    "EP230": "an expert lacks a tensor that it needs, or that its like have",
    "EP231": "a number that a rank computed from its own experts would stay behind",
    "EP232": "every rank has a slice of each expert, and no whole one",
    "EP233": "a tree is what a run has written so far, and no checkpoint",
    "EP234": "an engine was started with other ranks, slots or experts than DST has",
    "EP235": "an engine, as it was started, would not follow the placement of DST",
    "EP236": "the model that an engine has built is not the one in DST",
    "EP237": "hosts see different files of one name in SRC, or one says of it what cannot be",
    "EP301": "the plan does not produce NEW from OLD",
    "EP302": "workers disagree on the plan",
    "EP303": "a plan file cannot be used",
    "EP304": "what a plan was made for has changed",
    "EP305": "what an earlier run has left is for other inputs",
    "EP401": "a worker failed",
    "EP402": "a worker was killed",
    "EP403": "a worker made no progress",
    "EP404": "workers cannot be started, or torchrun was ended",
    "EP405": "more files would be open than the system allows",
    "EP406": "a device lacks memory",
    "EP407": "a host did not join, or was lost",
    "EP501": "a row differs from its source",
    "EP502": "an empty row is not zero",
    "EP503": "replicas of an expert differ",
    "EP504": "another tensor differs from its source",
    "EP505": "a file differs from the manifest",
    "EP506": "SRC differs from its own manifest",
    "EP601": "DST exists",
    "EP602": "DST and SRC overlap",
    "EP603": "no space left for DST",
    "EP604": "DST cannot be written",
    "EP605": "another run is writing DST",
    "EP606": "the disk did not take what was written",
}

HINTS = {
    "EP001": "`eplb COMMAND --help` lists the options",
    "EP002": "install the package that is named",
    "EP101": "is the path right, and may you read it?",
    "EP102": "a placement is JSON in UTF-8; `python -m json.tool FILE` finds the place too",
    "EP103": "configs/placements has examples of the format eplb-placement/1",
    "EP104": "every layer is one list with an expert id for each slot, all of them equally long",
    "EP105": "experts count from 0; --num-logical-experts E says how many there are",
    "EP106": "was OLD written for another checkpoint? `eplb inspect SRC` shows what the shards hold",
    "EP107": "the router still names that expert: give it a slot in NEW",
    "EP108": "slots = ranks x slots per rank: check both, and the length of the map's rows",
    "EP109": "both have to be written for the same checkpoint",
    "EP110": "the router still names that expert: give it a slot",
    "EP111": "say it with --num-logical-experts E",
    "EP112": "a second replica on one rank shares no load; is it meant?",
    "EP113": "a rank without experts does no work in that layer; is it meant?",
    "EP114": "say it with the option that is named",
    "EP115": "each old rank becomes at most one new rank, and -1 is a rank that leaves",
    "EP116": "say which: --from DIALECT, or the model with --model PRESET|config.json",
    "EP117": "choose another dialect, or change the placement",
    "EP118": "`eplb inspect --models` lists the presets; eplb_cli/models/presets has them as files to copy",
    "EP119": "docs/dialects.md shows the forms that are read",
    "EP120": "`eplb balance LOAD --old FILE --out NEW` spreads the load better",
    "EP121": "an empty slot takes the memory of an expert; is it meant?",
    "EP122": "that is right for an uneven load: --load LOAD shows how the ranks bear it",
    "EP123": "`eplb balance` makes a placement with as many slots on each rank",
    "EP124": "put a replica there: another slot for an expert that is busy",
    "EP125": "add a row for that layer; the default map in it changes nothing",
    "EP126": "give the second replica to another rank",
    "EP127": "`eplb balance LOAD --old OLD --max-moved-bytes B` makes the best placement within a limit",
    "EP128": "name the files, or the directory that has them: docs/validate.md says which files count",
    "EP129": "docs/serving.md says what each engine can follow; `eplb bake` needs no map",
    "EP201": "is the path right, and may you read it?",
    "EP202": "copy the files of all ranks, and check that OLD is the placement they were written under",
    "EP203": "was it copied whole? compare its size with where it came from",
    "EP204": "only regular files are read; copy links with `cp -L`",
    "EP205": "are there files of two checkpoints in the directory?",
    "EP206": "name a layout with --layout, or describe yours in a TOML file: see docs/layouts.md",
    "EP207": "describe it in a layout file, as a tensor or as one of its others: see docs/layouts.md",
    "EP208": "is OLD the placement these shards were written under?",
    "EP209": "are all files of all ranks there, and from the same checkpoint?",
    "EP210": "are all parts of the shard there?",
    "EP211": "eplb cannot tell what it belongs to: save it as one value, or as one value per row",
    "EP212": "`eplb inspect SRC` shows which layers have experts; name them with layer_ids",
    "EP213": "eplb moves experts only: keep the number of ranks, or save shards without tensor parallelism",
    "EP214": "remove it to go on without it, and name OLD with --old",
    "EP215": "leave out --old: SRC itself says it",
    "EP216": "name the placement it was written under with --old FILE, or --old linear",
    "EP217": "`eplb inspect SRC` shows what the shards hold",
    "EP218": "choose a placement whose ranks hold an expert at most once",
    "EP219": "name the layer in OLD and NEW, with layer_ids: `eplb inspect SRC` lists the numbers",
    "EP220": "let its writer finish first, then run again",
    "EP221": "pass contiguous tensors whose rows do not share memory",
    "EP222": "pass one tensor per layer and weight, with as many rows as the rank has slots",
    "EP223": "it has an index that names every tensor, or a single file of tensors",
    "EP224": "--engine huggingface keeps all names; eplb_cli/huggingface/engines has those of engines",
    "EP225": "only what `eplb shard` wrote, resharded or not, can be merged",
    "EP226": "`eplb shard` takes every placement; docs/huggingface.md says what can be baked",
    "EP227": "were they made of another checkpoint, or repacked by a kernel before they were saved?",
    "EP228": "pass dense tensors with memory of their own, all on one device that the group connects",
    "EP229": "move it elsewhere; an eplb.json of `eplb bake` says in which order the experts are",
    "EP230": "are all parts of the shard there?",
    "EP231": "--rank-scalars max gives all ranks the largest, which is right for a maximum",
    "EP232": "save the shards with expert parallelism, or start from the Hugging Face checkpoint",
    "EP233": "the command that was writing it goes on with it, with --resume added",
    "EP234": "start it as DST was made, or reshard DST to what it is started with",
    "EP235": "docs/serving.md says what each engine can follow",
    "EP236": "serve DST with its own config.json, and with shards that were made for this engine",
    "EP237": "take away what is not of this checkpoint: hosts may have copies, and not two versions",
    "EP301": "this is an error in eplb: please report it with both placements",
    "EP302": "do all workers see the same SRC?",
    "EP303": "`eplb plan OLD NEW --checkpoint SRC --out FILE` writes one",
    "EP304": "look at what changed, and make the plan again with `eplb plan --out`",
    "EP305": "run again without --resume to start over, or with the inputs it was begun with",
    "EP401": "EPLB_DEBUG=1 shows where it happened",
    "EP402": "was memory short? a smaller --buffer-size needs less",
    "EP403": "is the storage stuck? a longer --timeout waits longer",
    "EP404": "`python -m torch.distributed.run --help` has to work here; --backend file needs no torch",
    "EP405": "raise the hard limit on open files: `ulimit -Hn` shows it",
    "EP406": "a smaller --buffer-size needs less; is another job on the device?",
    "EP407": "does the command run there, and do the hosts reach each other?",
    "EP501": "the bytes were changed or damaged: do not use the output, make it again",
    "EP502": "the bytes were changed or damaged: do not use the output, make it again",
    "EP503": "replicas of an expert have to be alike: which of them is right?",
    "EP504": "the bytes were changed or damaged: do not use the output, make it again",
    "EP505": "the output was changed or damaged after it was written: make it again",
    "EP506": "SRC was changed or is damaged: `eplb verify SRC` names the first place",
    "EP601": "remove it, or choose another DST",
    "EP602": "choose a DST outside SRC",
    "EP603": "free some space, or choose another DST",
    "EP604": "does the directory that DST is to be in exist, and may you write there?",
    "EP605": "wait for that run to end",
    "EP606": "check the disk: what was written is lost or not, and cannot be trusted",
}
"""What to do about each code, where whoever raises it knows nothing better."""


@dataclass(frozen=True)
class Where:
    """The place of an error, for programs: as much of it as is known. Messages say it in words."""

    file: str | None = None
    line: int | None = None
    layer: int | None = None
    slot: int | None = None
    rank: int | None = None
    tensor: str | None = None


NOWHERE = Where()


class EplbError(Exception):
    """Base of every error with a code; `str()` is the message without code and hint.

    Attributes:
        code: "EP101" and so on; a code never changes its meaning.
        message: what is wrong, and where: file, layer, slot, rank.
        hint: what to do about it.
        where: the same place as numbers and names, where whoever raises it has them.
        further: errors of the same kind that were found with it, of which there may be `num_further`.
        exit_code: what `eplb` exits with; of a family, not of an error.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, code: str, message: str, hint: str = "", where: Where = NOWHERE) -> None:
        super().__init__(message)
        self.code = code  # without a hint of its own an error has that of its code
        self.message = message
        self.hint = hint or HINTS.get(code, "")
        self.where = where
        self.further: Sequence[EplbError] = ()
        self.num_further = 0

    def __reduce__(self) -> tuple[type[EplbError], tuple[str, str, str, Where]]:
        return type(self), (self.code, self.message, self.hint, self.where)


class UsageError(EplbError):
    """EP0xx: options that contradict each other, or one that is missing."""

    exit_code = EXIT_USAGE


class PlacementError(EplbError):
    """EP1xx: a placement cannot be read, or cannot be used together with another."""


class CheckpointError(EplbError):
    """EP2xx: shards, their layout or a manifest cannot be used."""


class PlanError(EplbError):
    """EP3xx: a plan cannot be made, or is not what it has to be."""


class WorkerError(EplbError):
    """EP4xx: a worker of the torchrun job failed, died or stood still."""

    exit_code = 4


class BytesError(EplbError):
    """EP5xx: bytes on disk differ from what they have to be."""

    exit_code = 5


class OutputError(EplbError):
    """EP6xx: the output cannot be written."""

    exit_code = 6


_FAMILIES: dict[str, type[EplbError]] = {
    "EP0": UsageError,
    "EP1": PlacementError,
    "EP2": CheckpointError,
    "EP3": PlanError,
    "EP4": WorkerError,
    "EP5": BytesError,
    "EP6": OutputError,
}


def error_of(code: str, message: str, hint: str = "") -> EplbError:
    """The error of the family that `code` belongs to, for errors that come from another process."""
    return _FAMILIES[code[:3]](code, message, hint)


def did_you_mean(word: str, names: Iterable[str], otherwise: str = "") -> str:
    """A hint for a word that is none of some names: those that it looks like, then what else is to say."""
    # Not at the top: only mistakes need it, and it costs as much as all the rest of this module.
    from difflib import get_close_matches

    close = get_close_matches(word.lower(), names, n=2)
    meant = f"did you mean {' or '.join(close)}?" if close else ""
    return " ".join(filter(None, [meant, otherwise]))
