"""An option that contradicts what is given, or says something of what is not there, is refused by name."""

from __future__ import annotations

import json

import pytest

from tests.cli.case import assert_error
from tests.cli.test_maps_inside import PLAIN, with_maps
from tests.cli.tree import NEW, OLD, fingerprint, placement, stacked, write_json

ROBIN = "round_robin"


def config(case, **keys):
    """A config.json beside the shards."""
    write_json(case.src / "config.json", {"model_type": "test", **keys})


def tree_of_eplb(case):
    """SRC becomes a tree with an eplb.json."""
    case.reshard()
    return {"src": case.dst, "dst": case.home / "again", "old": None, "new": case.old(OLD)}


class TestReshard:
    """Of `reshard`, of its dry run, and of `plan --checkpoint`."""

    def refuse(self, case, code, *says, options, exit_code=2, **changes):
        for how in ((), ("--dry-run",)):
            case.refuse(code, *says, exit_code=exit_code, options=(*options, *how), **changes)
        old, new = (changes.get(key, case.home / f"{key}.json") for key in ("old", "new"))
        if old is not None:
            planned = case.eplb("plan", old, new, "--checkpoint", changes.get("src", case.src), *options)
            assert_error(planned, code, *says, exit_code=exit_code)

    @pytest.mark.parametrize("old", ["file", "linear", ROBIN])
    def test_ranks_that_the_shards_do_not_have(self, case, old):
        """--old-num-ranks, whatever OLD is."""
        changes = {} if old == "file" else {"old": old}
        says = ("--old-num-ranks is 4", "src has files of 2")
        self.refuse(case, "EP001", *says, options=("--old-num-ranks", 4), **changes)

    def test_ranks_that_a_manifest_does_not_have(self, case):
        """The same, where SRC says OLD itself; the right number is no contradiction."""
        changes = tree_of_eplb(case)
        self.refuse(case, "EP001", "--old-num-ranks is 4", options=("--old-num-ranks", 4), **changes)
        case.reshard("--old-num-ranks", 2, **changes)

    @pytest.mark.parametrize("old", ["linear", None])
    def test_a_dialect_of_no_file(self, case, old):
        """--old-from, where OLD has a name or is in SRC; --from, where NEW has a name."""
        changes = {"old": old} if old else tree_of_eplb(case)
        free = case.home / "free"
        says = "--old-from vllm is of OLD, which is no file here"
        self.refuse(case, "EP001", says, options=("--old-from", "vllm"), **changes)
        says = "--from vllm is of a file, and linear is none here"
        self.refuse(case, "EP001", says, options=("--from", "vllm"), new="linear", dst=free)

    def test_redundant_experts_of_no_map(self, case):
        """--num-redundant-experts, where neither OLD nor NEW is a named map."""
        says = "--num-redundant-experts 2 is of the map linear, which is not named here"
        self.refuse(case, "EP001", says, options=("--num-redundant-experts", 2))

    def test_redundant_experts_that_the_slots_have_not(self, case):
        """EP109, where E and N together are not the slots of SRC."""
        options = ("--num-logical-experts", 4, "--num-redundant-experts", 1)
        says = "4 experts and 1 redundant ones are not 6 slots a layer"
        self.refuse(case, "EP109", says, options=options, exit_code=3, old="linear")

    @pytest.mark.parametrize("old", ["file", "linear"])
    def test_experts_that_the_model_does_not_have(self, case, old):
        """--num-logical-experts against the config.json beside the shards."""
        config(case, num_experts=5)
        changes = {} if old == "file" else {"old": old}
        says = ("--num-logical-experts is 4", "config.json says 5")
        self.refuse(case, "EP001", *says, options=("--num-logical-experts", 4), **changes)

    def test_experts_that_a_manifest_does_not_have(self, case):
        """EP109: OLD is in eplb.json, with another number."""
        changes = tree_of_eplb(case)
        says = "OLD has 4 experts, and the command line or config.json 5"
        self.refuse(case, "EP109", says, options=("--num-logical-experts", 5), exit_code=3, **changes)
        case.reshard("--num-logical-experts", 4, **changes)

    def test_a_placement_of_another_model(self, case):
        """EP109: its number of experts is not that of config.json; nor is that of a plan made without SRC."""
        config(case, num_experts=5)
        self.refuse(case, "EP109", '"num_logical_experts" is 4', "says 5", options=(), exit_code=3)
        plan = case.home / "plan.json"
        assert case.eplb("plan", case.home / "old.json", case.home / "new.json", "--out", plan).code == 0
        result = case.eplb("reshard", case.src, case.dst, "--plan", plan, "--backend", "file")
        assert_error(result, "EP109", "OLD has 4 experts", "config.json 5")

    @pytest.mark.parametrize(
        "option", [("--from", "vllm"), ("--old-from", "vllm"), ("--num-ranks", 2), ("--senders", "vllm")]
    )
    def test_a_plan_that_says_it_already(self, case, option):
        """EP001 beside --plan."""
        plan = case.home / "plan.json"
        assert case.eplb("plan", case.home / "old.json", case.home / "new.json", "--out", plan).code == 0
        result = case.eplb("reshard", case.src, case.dst, "--plan", plan, *option)
        assert_error(result, "EP001", "--plan FILE", exit_code=2)


class TestAGuess:
    """The largest id + 1 is no number of experts to move bytes for."""

    def without_experts(self, content):
        return {key: value for key, value in content.items() if key != "num_logical_experts"}

    def test_is_refused(self, case):
        """EP111 of a run, its dry run and a plan for it; the remedies of the hint work."""
        case.old(self.without_experts(OLD))
        says = (
            "old.json",
            "the number of logical experts is taken to be 4, the largest id + 1",
            "hint: say it",
        )
        case.refuse("EP111", *says)
        case.refuse("EP111", *says, options=("--dry-run",))
        names = (case.home / "old.json", case.home / "new.json")
        assert_error(case.eplb("plan", *names, "--checkpoint", case.src), "EP111", *says)
        case.reshard("--num-logical-experts", 4)
        assert case.eplb("plan", *names, "--checkpoint", case.src, "--num-logical-experts", 4).code == 0

    def test_config_json_says_it(self, case):
        """The word of a checkpoint: nothing is guessed, and nothing is warned of."""
        case.old(self.without_experts(OLD))
        config(case, num_experts=4)
        assert "warning[EP111]" not in case.reshard().err

    def test_a_manifest_says_it(self, case):
        """So NEW may leave it out."""
        changes = tree_of_eplb(case)
        case.reshard(**{**changes, "new": case.new(self.without_experts(OLD))})
        old = write_json(case.home / "again.json", self.without_experts(NEW))
        case.reshard(**{**changes, "old": old, "dst": case.home / "third"})

    def test_a_plan_without_shards_shows_it(self, case):
        """With a warning; but it is not saved, to be carried out later without one."""
        names = (case.old(self.without_experts(OLD)), case.new(self.without_experts(NEW)))
        result = case.eplb("plan", *names)
        assert (result.code, "taken to be 4" in result.err) == (0, True)
        before = fingerprint(case.home)
        for old in (names[0], "linear"):
            result = case.eplb("plan", old, names[1], "--out", case.home / "plan.json")
            assert_error(result, "EP111", "taken to be 4", "--num-logical-experts E")
        assert fingerprint(case.home) == before

    def test_maps_inside_that_number_rows_in_order(self, case):
        """EP111 without any word of E: such a map is by expert, or by slot, which holds replicas."""
        case.write(with_maps(OLD, by_slot=True))
        says = ("number 6 rows in order", "experts, or slots")
        case.refuse("EP111", *says, old=None)
        case.refuse("EP111", *says, old=None, options=("--dry-run",))
        found = case.eplb("inspect", case.src)
        assert (found.code, "warning[EP111]: the maps in" in found.out) == (0, True)
        ordered = placement([[0, 1, 2, 3]] * 2)
        case.write(with_maps(ordered))
        case.new(placement([[3, 2, 1, 0]] * 2))
        case.refuse("EP111", "number 4 rows in order", old=None)
        case.reshard("--num-logical-experts", 4, old=None)
        config(case, num_experts=4)
        case.reshard(old=None, dst=case.home / "other")

    def test_maps_inside_in_another_order(self, case):
        """They are by expert for certain, and as long as there are experts."""
        case.write(with_maps(PLAIN))
        case.new(placement([[3, 2, 1, 0]] * 2))
        assert "EP111" not in case.reshard(old=None).err


class TestAMissingRank:
    """Rank 3 of 4 was not copied: 8 experts, 2 slots a rank."""

    @pytest.fixture
    def short(self, case):
        ranks = stacked(placement([[0, 1, 2, 3, 4, 5, 6, 7]] * 2, 4))
        case.write(ranks[:3])
        return case

    SAID = "has 3 ranks of 2 slots, and there are 8 experts: rank 3 is missing"

    @pytest.mark.parametrize("options", [(), ("--dry-run",)])
    @pytest.mark.parametrize("old", ["linear", ROBIN])
    def test_the_model_is_known(self, short, old, options):
        """EP202 names the rank, by config.json or by the option."""
        said = ("--num-logical-experts", 8)
        short.refuse("EP202", self.SAID, old=old, new="linear", options=(*options, *said))
        config(short, num_experts=8)
        short.refuse("EP202", self.SAID, old=old, new="linear", options=options)

    def test_other_commands(self, short):
        """`plan` and `validate` refuse it too, `inspect` finds it."""
        config(short, num_experts=8)
        planned = short.eplb("plan", "linear", ROBIN, "--checkpoint", short.src)
        assert_error(planned, "EP202", self.SAID)
        new = write_json(short.home / "new.json", placement([[7, 6, 5, 4, 3, 2, 1, 0]] * 2, 4))
        checked = short.eplb("validate", new, "--against", "linear", "--checkpoint", short.src)
        assert_error(checked, "EP202", self.SAID)
        checked = short.eplb("validate", "linear", "--checkpoint", short.src)
        assert_error(checked, "EP202", self.SAID)
        checked = short.eplb("validate", new, "--checkpoint", short.src)
        assert (checked.code, "error[EP108]" in checked.out) == (1, True)
        found = short.eplb("inspect", short.src)
        assert (found.code, "error[EP202]" in found.out) == (1, True)
        (finding,) = short.eplb("inspect", short.src, "--format", "json").json["findings"]
        assert (finding["code"], finding["severity"]) == ("EP202", "error")
        assert self.SAID in finding["message"]

    def test_several(self, short):
        """All that lack are named."""
        for rank in (1, 2):
            short.file(rank).unlink()
        options = ("--num-logical-experts", 8)
        says = "has 1 rank of 2 slots, and there are 8 experts: ranks 1 to 3 are missing"
        short.refuse("EP202", says, old="linear", new="linear", options=options)

    def test_old_is_known(self, short):
        """The file has four ranks."""
        short.old(placement([[0, 1, 2, 3, 4, 5, 6, 7]] * 2, 4))
        short.new(placement([[7, 6, 5, 4, 3, 2, 1, 0]] * 2, 4))
        short.refuse("EP202", "OLD has 4 ranks", "files of 3: rank 3 is missing")

    def test_maps_inside_know_it(self, short):
        """They are as long as all ranks together."""
        whole = with_maps(placement([[0, 2, 4, 6, 1, 3, 5, 7]] * 2, 4))
        short.write(whole[:3])
        short.new(placement([[7, 6, 5, 4, 3, 2, 1, 0]] * 2, 4))
        short.refuse("EP202", self.SAID, old=None)
        found = short.eplb("inspect", short.src)
        assert (found.code, "error[EP202]" in found.out) == (1, True)

    def test_nothing_is_known(self, short):
        """`inspect` and `reshard` say what they assume, and why."""
        says = (
            "taken to have 6 experts, one in each slot of a layer: there are 3 ranks of 2 slots, and no "
            "config.json says how many experts the model has"
        )
        hint = "say it with --num-logical-experts E"
        found = short.eplb("inspect", short.src)
        flat = " ".join(found.out.split())
        assert (found.code, "warning[EP111]" in flat) == (0, True)
        assert f"the model is {says}" in flat
        assert hint in flat
        result = short.reshard(old="linear", new=ROBIN)
        assert f"OLD is {says}" in result.err
        result = short.eplb("inspect", short.dst)
        assert "EP111" not in result.out


class TestOtherCommands:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--old-num-ranks", 2], "--old-num-ranks is of OLD, and there is none"),
            (["--old-from", "vllm"], "--old-from vllm is of OLD, which is no file here"),
            (["--against", "linear", "--old-from", "vllm"], "--old-from vllm is of OLD"),
            (["--num-redundant-experts", 2], "--num-redundant-experts 2 is of the map linear"),
            (["--checkpoint", "src", "--num-logical-experts", 5], "src/config.json says 4"),
            (["--checkpoint", "src", "--against", "old.json", "--old-num-ranks", 3], "src has files of 2"),
        ],
    )
    def test_validate(self, case, monkeypatch, options, says):
        """EP001 with exit code 2: that is no finding."""
        monkeypatch.chdir(case.home)
        config(case, num_experts=4)
        assert_error(case.eplb("validate", "new.json", *options), "EP001", says, exit_code=2)

    def test_validate_named_maps(self, eplb):
        """--from is of files alone."""
        options = ("--num-logical-experts", 4, "--num-ranks", 2, "--from", "vllm")
        assert_error(eplb("validate", "linear", *options), "EP001", "--from vllm is of a file", exit_code=2)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--layout", "sharded-state"], "--layout is of shards, and there is no --checkpoint"),
            (["--rank-scalars", "max"], "--rank-scalars is of shards, and there is no --checkpoint"),
            (["--num-redundant-experts", 2], "--num-redundant-experts 2"),
            (["--model", "mixtral-8x7b", "--num-logical-experts", 4], "--num-logical-experts is 4"),
            (["--model", "mixtral-8x7b", "--expert-bytes", 5], "--expert-bytes is 5"),
        ],
    )
    def test_plan(self, case, options, says):
        """EP001, and nothing on stdout."""
        result = case.eplb("plan", case.home / "old.json", case.home / "new.json", *options)
        assert_error(result, "EP001", says, exit_code=2)
        assert result.out == ""

    def test_a_plan_that_is_saved_takes_rank_scalars(self, case):
        """Whoever carries it out has shards."""
        names, out = (case.home / "old.json", case.home / "new.json"), case.home / "plan.json"
        assert case.eplb("plan", *names, "--rank-scalars", "max", "--out", out).code == 0
        assert json.loads(out.read_text())["rank_scalars"] == "max"

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["linear", "--num-logical-experts", 4, "--num-ranks", 2, "--from", "vllm"], "--from vllm"),
            (["new.json", "--num-redundant-experts", 2], "--num-redundant-experts 2"),
        ],
    )
    def test_convert(self, case, monkeypatch, options, says):
        """EP001, and OUT is not there."""
        monkeypatch.chdir(case.home)
        source, *rest = options
        result = case.eplb("convert", source, "out.json", "--to", "eplb", *rest)
        assert_error(result, "EP001", says, exit_code=2)
        assert not (case.home / "out.json").exists()

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["src", "--out", "x.json"], "--out is not for shards without --identify"),
            (["src", "--model", "deepseek-v3"], "--model is not for shards"),
            (["src", "--baked", "x"], "--baked is not for shards"),
            (["src", "--identify", "x", "--deep"], "--deep is not for shards with --identify"),
            (["load.json", "--deep"], "--deep is not for a load dump"),
            (["load.json", "--layout", "sharded-state"], "--layout is not for a load dump"),
            (["load.json", "--identify", "x"], "--identify is not for a load dump"),
            (["--models", "--deep"], "--deep is not for a list of models"),
        ],
    )
    def test_inspect(self, case, monkeypatch, arguments, says):
        """EP001 names the first option that says nothing of what is looked at."""
        monkeypatch.chdir(case.home)
        (case.home / "load.json").write_text("[[1, 2], [3, 4]]")
        assert_error(case.eplb("inspect", *arguments), "EP001", says, exit_code=2)
