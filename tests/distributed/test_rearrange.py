"""Live tensors among 1 to 4 ranks: as the reference does it where it is right, by definition elsewhere.

On a CPU the ranks are connected by gloo; where there are two CUDA devices or more, each rank has one and
nccl connects them. `CUDA_VISIBLE_DEVICES=` asks for gloo there too.
"""

from __future__ import annotations

import inspect
from functools import partial
from types import ModuleType

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.support.live.problems import (
    ITEM_NBYTES,
    Problem,
    Rows,
    before,
    contents,
    problem,
    require_new,
    require_same,
)
from tests.support.live.strategies import injections, mapped, problems, shuffles
from tests.support.ranks import HungError, RankError, Ranks

pytestmark = pytest.mark.distributed

random = partial(settings, phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink])
"""Without the search for an explanation, which takes hundreds of cases more."""


@pytest.fixture(scope="session")
def sizes(ranks) -> list[int]:
    """Numbers of ranks of random cases."""
    return list(range(2, ranks.size + 1))


@pytest.fixture(scope="session")
def dtypes() -> list[str]:
    """Those that this torch has."""
    import torch

    return [name for name in ITEM_NBYTES if hasattr(torch, name)]


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The reference as a module; no test of it where it is absent."""
    from tests.support.reference import SEED, load_reference

    if not SEED.exists():
        pytest.skip("the reference, shared/seed, is not beside the repository")
    return load_reference()


@pytest.fixture
def cuda(ranks) -> None:
    """For what only streams can get wrong."""
    if ranks.backend != "nccl":
        pytest.skip("needs two CUDA devices: on a CPU nothing runs beside the caller")


def need(ranks: Ranks, num_ranks: int) -> None:
    """Skip where there are too few devices."""
    if ranks.size < num_ranks:
        pytest.skip(f"needs {num_ranks} ranks, and there are {ranks.size} devices")


@pytest.mark.reference
@pytest.mark.usefixtures("reference")
class TestAgainstReference:
    """Bit for bit, wherever the reference is right."""

    @random(max_examples=30)
    @given(data=st.data())
    def test_in_place(self, ranks, sizes, dtypes, data):
        """All memory is as the reference leaves it: rows, gaps between rows, and rows nobody asked for."""
        case = data.draw(problems(sizes, dtypes))
        found = ranks.run(case.num_ranks, "live.against_reference.both", case)
        require_same([ours for ours, _ in found], [theirs for _, theirs in found])

    @pytest.mark.parametrize("function", ["transfer_layer", "transfer_layer_from_the_end", "move_to_buffer"])
    @random(max_examples=20)
    @given(data=st.data())
    def test_layer_by_layer(self, ranks, sizes, dtypes, function, data):
        """What is returned is the same in each field, and so are the buffers and, in the end, the weights."""
        case = data.draw(problems(sizes, dtypes))
        self.require_same_layers(ranks, case, function)

    @random(max_examples=20)
    @given(data=st.data())
    def test_rank_mapping(self, ranks, sizes, dtypes, data):
        """Ranks that come, leave or change places: in place and layer by layer."""
        case = data.draw(mapped(sizes, dtypes))
        found = ranks.run(case.num_ranks, "live.against_reference.both", case)
        require_same([ours for ours, _ in found], [theirs for _, theirs in found])
        self.require_same_layers(ranks, case, "transfer_layer")

    @staticmethod
    def require_same_layers(ranks: Ranks, case: Problem, function: str) -> None:
        found = ranks.run(case.num_ranks, "live.against_reference.both_by_layer", case, function)
        for ours, theirs in found:
            assert ours.masks == theirs.masks
        for part in ("buffers", "weights"):
            require_same(*([getattr(pair[side], part) for pair in found] for side in (0, 1)))

    def test_its_names(self, reference):
        """Every function is there, with its parameters in their order; ours may have more."""
        from eplb_cli import live

        names = [
            name
            for name, thing in vars(reference).items()
            if getattr(thing, "__module__", "") == reference.__name__ and inspect.isroutine(thing)
        ]
        assert {"move_to_buffer", "transfer_layer"} <= set(names)
        for name in names:
            ours, theirs = (inspect.signature(getattr(module, name)) for module in (live, reference))
            assert list(ours.parameters)[: len(theirs.parameters)] == list(theirs.parameters)
        public = {name for name in names if not name.startswith("_")}
        assert public | set(reference.__all__) <= set(live.__all__)
        assert sorted(live.__all__) == live.__all__
        assert all(getattr(live, name).__doc__ for name in live.__all__)

    @given(data=st.data())
    def test_who_sends_and_who_receives(self, reference, data):
        """`get_ep_ranks_with_experts_batch`, for experts that are there and for some that are not."""
        from eplb_cli.live.buffers import get_ep_ranks_with_experts_batch

        num_rows, num_ranks = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
        experts = st.lists(st.integers(-1, 7), min_size=num_rows * num_ranks, max_size=num_rows * num_ranks)
        old, new = (np.array(data.draw(experts)) for _ in range(2))
        asked = np.array(data.draw(st.lists(st.integers(-1, 9))), np.int64)
        ours, theirs = (
            module(asked, num_rows, old, new)
            for module in (get_ep_ranks_with_experts_batch, reference.get_ep_ranks_with_experts_batch)
        )
        assert ours == theirs

    @given(data=st.data())
    def test_expansion_of_old(self, reference, data):
        """Scale up: `_map_old_expert_indices_with_rank_mapping`, in the dtype that it was given."""
        from eplb_cli import live as rearrange

        num_old, num_new = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
        mapping, old = data.draw(injections(num_old, num_new)), self.indices(data, num_old)
        ours, theirs = (
            module._map_old_expert_indices_with_rank_mapping(old, mapping, num_new)
            for module in (rearrange, reference)
        )
        assert (ours.dtype, ours.tolist()) == (theirs.dtype, theirs.tolist())

    @given(data=st.data())
    def test_expansion_of_new(self, reference, data):
        """Scale down: `_map_new_expert_indices_with_rank_mapping`, in the dtype that it was given."""
        from eplb_cli import live as rearrange

        num_old = data.draw(st.integers(1, 5))
        num_new = data.draw(st.integers(1, num_old))
        mapping, new = data.draw(injections(num_old, num_new, onto=True)), self.indices(data, num_new)
        ours, theirs = (
            module._map_new_expert_indices_with_rank_mapping(new, mapping)
            for module in (rearrange, reference)
        )
        assert (ours.dtype, ours.tolist()) == (theirs.dtype, theirs.tolist())

    @staticmethod
    def indices(data: st.DataObject, num_ranks: int):
        """(L, P) numbers, int32 or int64."""
        import torch

        num_layers, num_rows = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
        numbers = data.draw(
            st.lists(
                st.integers(-1, 9),
                min_size=num_layers * num_ranks * num_rows,
                max_size=num_layers * num_ranks * num_rows,
            )
        )
        dtype = data.draw(st.sampled_from([torch.int32, torch.int64]))
        return torch.tensor(numbers, dtype=dtype).view(num_layers, -1)


class TestByDefinition:
    """What the reference gets wrong or cannot do: the result is compared with what NEW says."""

    @random(max_examples=30)
    @given(data=st.data())
    def test_layers_that_differ(self, ranks, sizes, dtypes, data):
        """Number, shapes and dtypes of tensors are each layer's own; a layer or a row may be empty."""
        case = data.draw(problems(sizes, dtypes, layers_differ=True))
        require_new(case, ranks.run(case.num_ranks, "live.runs.inplace", case))

    @random(max_examples=20)
    @given(data=st.data())
    def test_balanced_senders(self, ranks, sizes, dtypes, data):
        """Where replicas are equal, who sends makes no difference."""
        case = data.draw(problems(sizes, dtypes, layers_differ=True))
        require_new(case, ranks.run(case.num_ranks, "live.runs.inplace", case, "balanced"))

    @random(max_examples=20)
    @given(data=st.data())
    def test_there_and_back(self, ranks, sizes, dtypes, data):
        """Two objects made once take the weights to NEW and back to OLD, again and again."""
        case = data.draw(shuffles(sizes, dtypes))
        found = ranks.run(case.num_ranks, "live.runs.there_and_back", case, 2)
        for step in range(4):
            require_new(case if step % 2 == 0 else case.reversed(), [looks[step] for looks in found])

    def test_used_again(self, ranks):
        """An object made once does the same to weights that were filled again."""
        case = problem(2, *swap(2, 3), [Rows("bfloat16", (33,)), Rows()], buffer_size=300)
        found = ranks.run(2, "live.runs.refilled", case, 3)
        for step in range(3):
            require_new(case, [looks[step] for looks in found])

    @pytest.mark.parametrize(
        "dtype_pair", [("float16", "bfloat16"), ("uint8", "float32"), ("int32", "float8_e4m3fn")]
    )
    def test_another_dtype_in_a_later_layer(self, ranks, dtype_pair):
        """Equal shapes of unequal dtypes, and then a larger row: the reference's buffers fit layer 0."""
        first, second = dtype_pair
        layers = [[Rows(first, (6,))], [Rows(second, (6,))], [Rows(second, (600,))]]
        old, new = swap(2, 2)
        case = problem(2, old * 3, new * 3, *layers)
        require_new(case, ranks.run(2, "live.runs.inplace", case))

    def test_ranks_without_rows(self, ranks):
        """Tensors of (0, ...) are rearranged by a plan of nothing, also where a rank leaves or comes."""
        need(ranks, 3)
        for mapping in (None, {0: 0, 1: 1, 2: -1}, {0: 0, 1: 1}):
            case = problem(3, [[]] * 2, [[]] * 2, [Rows(), Rows("int8", (5,))], rank_mapping=mapping)
            require_new(case, ranks.run(3, "live.runs.inplace", case))

    def test_a_rank_with_nothing_to_do(self, ranks):
        """The first exchange of a group is complete although a rank neither sends nor receives."""
        need(ranks, 3)
        case = problem(3, [[0, 1, 2, 3, 4, 5]], [[2, 1, 0, 3, 4, 5]])
        require_new(case, ranks.run(3, "live.runs.inplace", case, fresh=True))

    def test_nothing_to_do_at_all(self, ranks):
        """OLD again as NEW, and a NEW without experts, leave every byte as it is."""
        for new in ([0, 1, 1, -1], [-1, -1, -1, -1]):
            case = problem(2, [[0, 1, 1, -1]], [new])
            require_new(case, ranks.run(2, "live.runs.inplace", case))

    @pytest.mark.parametrize(
        "form",
        [
            "tuples",
            "iterators",
            "generators",
            "dict values",
            "int32 indices",
            "indices on the device",
            "transfer_layer",
        ],
    )
    def test_arguments_in_other_forms(self, ranks, form):
        """Weights that can be walked through once are enough."""
        old, new = swap(2, 3)
        case = problem(2, old * 2, new * 2, [Rows(), Rows("bfloat16", (2, 3))])
        require_new(case, ranks.run(2, "live.runs.given_as", case, form))

    def test_profile_moves_nothing(self, ranks):
        """`is_profile` leaves all weights as they are, whatever NEW says."""
        case = problem(2, *swap(2, 2), [Rows("float8_e4m3fn", (4, 4)), Rows()])
        found = ranks.run(2, "live.runs.profiled", case)
        require_same(found, [contents(before(case, rank)) for rank in range(2)])

    @pytest.mark.parametrize(
        ("num_ranks", "members"),
        [(2, [(0, 1)]), (4, [(1, 3)]), (4, [(0, 1), (2, 3)]), (4, [(0, 3), (1, 2)])],
        ids=str,
    )
    def test_groups_of_some_ranks(self, ranks, num_ranks, members):
        """Any group will do, two at the same time too; what travels in the default group is not touched."""
        need(ranks, num_ranks)
        case = problem(2, *swap(2, 3), [Rows(), Rows("int8", (5,))], buffer_size=200)
        found = ranks.run(num_ranks, "live.runs.in_subgroups", case, members)
        for of_group in members:
            require_new(case, [found[rank] for rank in of_group])
        assert all((memory is None) == (rank not in sum(members, ())) for rank, memory in enumerate(found))


def swap(num_ranks: int, num_rows: int) -> tuple[list[list[int]], list[list[int]]]:
    """One layer in which the last row of each rank is exchanged with the first row of the next."""
    num_slots = num_ranks * num_rows
    new = list(range(num_slots))
    for first in range(num_rows, num_slots, num_rows):
        new[first - 1], new[first] = new[first], new[first - 1]
    return [list(range(num_slots))], [new]


def rotate(num_slots: int, by: int = 1) -> tuple[list[list[int]], list[list[int]]]:
    """One layer in which every slot gets the expert `by` slots before it."""
    slots = list(range(num_slots))
    return [slots], [slots[-by:] + slots[:-by]]


def chain(num_slots: int) -> tuple[list[list[int]], list[list[int]]]:
    """One layer in which every slot but the first gets the expert of the slot before it."""
    slots = list(range(num_slots))
    return [slots], [[0, *slots[:-1]]]


def many_cycles(num_rows: int) -> tuple[list[list[int]], list[list[int]]]:
    """One layer of cycles of 1, 2, 3, ... rows, one after the other."""
    new: list[int] = []
    while len(new) < num_rows:
        begin, length = len(new), 1 + len({new[at] - at for at in range(len(new))})
        cycle = list(range(begin, min(begin + length, num_rows)))
        new += cycle[1:] + cycle[:1]
    return [list(range(num_rows))], [new]


SMALL = [Rows("uint8", (7,)), Rows("float32", ())]

LOCAL = {
    "unchanged": ([[0, 1]], [[0, 1]]),
    "swap": rotate(2),
    "cycle of 3": rotate(3),
    "cycle of 65": rotate(65),
    "two by two": rotate(64, by=32),
    "chain of 64": chain(64),
    "cycles of all lengths": many_cycles(60),
    "one for all": ([list(range(9))], [[4] * 9]),
    "one for all but itself": ([list(range(9))], [[5, 4, 4, 4, 5, 4, 4, 4, 4]]),
    "cycle with branches": ([list(range(8))], [[1, 2, 0, 0, 3, 4, 2, 6]]),
    "holes": ([[0, -1, 1, -1, 2, 2]], [[-1, 0, 2, 1, -1, 1]]),
}


class TestSomeRows:
    """Placements in which a row overwritten too early is lost."""

    @pytest.mark.parametrize("buffer_size", [1, 256, 2 << 30])
    @pytest.mark.parametrize("tables", LOCAL.values(), ids=LOCAL)
    def test_one_rank(self, ranks, tables, buffer_size):
        """A group of one rank moves its rows among themselves, in cycles and chains of any length."""
        case = problem(1, *tables, SMALL, buffer_size=buffer_size)
        require_new(case, ranks.run(1, "live.runs.inplace", case))

    @pytest.mark.parametrize("buffer_size", [200, 2 << 30])
    @pytest.mark.parametrize(
        "tables",
        [
            rotate(2),
            swap(2, 1),
            swap(2, 4),
            rotate(40),
            rotate(40, by=20),
            rotate(40, by=19),
            chain(40),
            ([[0, 1, 2, 3, 4, 5]], [[3, 3, 3, 0, 0, 0]]),
            ([[0, 0, 0, 1, 1, 1]], [[1, 0, 1, 0, 1, 0]]),
            ([[0, -1, -1, -1, -1, -1]], [[-1, 0, 0, 0, -1, 0]]),
        ],
        ids=str,
    )
    def test_two_ranks(self, ranks, tables, buffer_size):
        """Local and remote rows overwrite each other's sources, and rows repeat what has arrived."""
        case = problem(2, *tables, SMALL, buffer_size=buffer_size)
        require_new(case, ranks.run(2, "live.runs.inplace", case))

    @pytest.mark.parametrize("buffer_size", [1, 64, 600, 5000, 20_000])
    def test_rows_of_many_chunks(self, ranks, buffer_size):
        """A row much wider than a chunk is exchanged with another rank's, and with one of the same rank."""
        width = 300 if buffer_size < 100 else 5000
        layers = [Rows("uint8", (width,)), Rows("bfloat16", (3,)), Rows("float32", ())]
        case = problem(2, [[0, 1, 2, 3]], [[1, 3, 0, 2]], layers, buffer_size=buffer_size)
        require_new(case, ranks.run(2, "live.runs.inplace", case))

    @pytest.mark.parametrize("num_tensors", range(1, 9))
    def test_tensors_of_each_dtype(self, ranks, dtypes, num_tensors):
        """1 to 8 tensors per expert, every dtype among them, rows of 4 bytes beside larger ones."""
        kinds = [Rows(dtype, shape) for dtype in dtypes for shape in ((4 // ITEM_NBYTES[dtype],), (3, 8))]
        old, new = swap(2, 3)
        groups = [kinds[begin : begin + num_tensors] for begin in range(0, len(kinds), num_tensors)]
        case = problem(2, old * len(groups), new * len(groups), *groups)
        require_new(case, ranks.run(2, "live.runs.inplace", case))


REARRANGE, TRANSFER, MOVE = "rearrange_expert_weights_inplace", "transfer_layer", "move_to_buffer"
ALL, BY_LAYER = (REARRANGE, TRANSFER, MOVE), (TRANSFER, MOVE)

REFUSED = [
    # flaw, on all ranks or on one only, code, functions
    ("expert from nowhere", "all", "EP106", ALL),
    ("expert from nowhere", "one", "EP106", ALL),
    ("expert of another layer", "all", "EP106", ALL),
    ("id below -1 in old", "all", "EP105", ALL),
    ("id below -1 in old", "one", "EP105", ALL),
    ("id below -1 in new", "all", "EP105", ALL),
    ("id below -1 in new", "one", "EP105", ALL),
    ("a row too few", "all", "EP208", ALL),
    ("a row too few", "one", "EP208", ALL),
    ("a row too many", "all", "EP208", ALL),
    ("a row too many", "one", "EP208", ALL),
    ("no dimension", "all", "EP208", ALL),
    ("no dimension", "one", "EP208", ALL),
    ("one row for all", "all", "EP221", ALL),
    ("one row for all", "one", "EP221", ALL),
    ("rows that overlap", "one", "EP221", ALL),
    ("rows in pieces", "all", "EP221", ALL),
    ("rows in pieces", "one", "EP221", ALL),
    ("another dtype", "one", "EP302", (REARRANGE,)),
    ("another shape", "one", "EP302", (REARRANGE,)),
    ("a tensor too few", "one", "EP302", ALL),
    ("no tensors", "one", "EP302", (REARRANGE,)),
    ("no tensors", "one", "EP208", BY_LAYER),
    ("another old", "one", "EP302", ALL),
    ("another new", "one", "EP302", ALL),
    ("indices of one layer", "one", "EP109", (REARRANGE,)),
    ("indices of no layer", "one", "EP109", (REARRANGE,)),
    ("a slot too few", "all", "EP108", ALL),
    ("a slot too few", "one", "EP108", ALL),
    ("a layer too few", "all", "EP109", (REARRANGE,)),
    ("a layer too few", "one", "EP109", (REARRANGE,)),
    ("a layer that is not there", "all", "EP109", (TRANSFER,)),
    ("a layer that is not there", "one", "EP109", (TRANSFER,)),
    ("another layer", "one", "EP302", (TRANSFER,)),
    ("another buffer size", "one", "EP302", (REARRANGE,)),
    ("other senders", "one", "EP302", (REARRANGE,)),
]


class TestRefused:
    """The same error with the same code on all ranks, before the first byte is moved."""

    CASE = problem(
        2,
        [[0, 1, 2, 3, 4, 5], [9, 1, 2, 3, 4, 5]],
        [[3, 1, 2, 0, 5, 4], [1, 1, 3, 4, 9, 2]],
        [Rows("bfloat16", (2, 3)), Rows("float32", (4,))],
    )

    @pytest.mark.parametrize(("flaw", "where", "code", "functions"), REFUSED)
    def test_a_flaw(self, ranks, flaw, where, code, functions):
        """All ranks have the flaw, or one of them has; afterwards the group rearranges what is right."""
        for bad in [(0, 1)] if where == "all" else [(0,), (1,)]:
            found = ranks.run(2, "live.refusals.refused", self.CASE, flaw, bad, functions)
            refusals = [refusal for of_rank, _ in found for refusal in of_rank]
            assert [refusal.code for refusal in refusals] == [code] * 2 * len(functions)
            assert all(refusal.is_untouched for refusal in refusals)
            assert len({refusal.message for refusal in refusals}) <= len(functions)
            require_new(self.CASE, [memory for _, memory in found])

    def test_the_message_names_the_place(self, ranks):
        """Layer, slot and expert of what has no source; layer and number of a tensor."""
        messages = {}
        for flaw in ("expert from nowhere", "one row for all"):
            found = ranks.run(2, "live.refusals.refused", self.CASE, flaw, (1,), (REARRANGE,))
            messages[flaw] = {of_rank[0].message for of_rank, _ in found}
        assert [len(of_flaw) for of_flaw in messages.values()] == [1, 1]
        assert "layer 0, slot 1" in messages["expert from nowhere"].pop()
        assert "layer 0, tensor 1" in messages["one row for all"].pop()

    @pytest.mark.parametrize(
        ("flaw", "code"),
        [
            ("too few", "EP222"),
            ("another dtype", "EP222"),
            ("another shape", "EP222"),
            ("rows in pieces", "EP221"),
            ("one row for all", "EP221"),
        ],
    )
    def test_buffers_that_do_not_fit(self, ranks, flaw, code):
        """Buffers for `transfer_layer` are looked at as the weights are."""
        for bad in ((0, 1), (1,)):
            found = ranks.run(2, "live.refusals.refused_buffers", self.CASE, flaw, bad)
            assert [refusal.code for refusal in found] == [code, code]
            assert all(refusal.is_untouched for refusal in found)

    @pytest.mark.parametrize(
        ("mappings", "code"),
        [
            pytest.param([{0: 0, 1: 0}], "EP115", id="two become one"),
            pytest.param([{0: 1, 1: -1}], "EP115", id="down, to a rank that is not there"),
            pytest.param([{0: 2}], "EP115", id="up, to a rank that is not there"),
            pytest.param([{0: -2, 1: 0}], "EP115", id="a rank below -1"),
            pytest.param([{0: -1, 1: -1}], "EP115", id="all leave"),
            pytest.param([{}], "EP115", id="empty"),
            pytest.param([{0: 0, 1: 1}, {0: 1, 1: 0}], "EP302", id="not the same on all"),
            pytest.param([None, {0: 1, 1: 0}], "EP302", id="on one only"),
            pytest.param([{0: 0, 1: 1}, {0: 0, 1: 0}], "EP115", id="wrong on one"),
            pytest.param([{0: 0, 1: 1, 2: 2, 3: 3}], "EP115", id="more than fit"),
        ],
    )
    def test_mappings(self, ranks, mappings, code):
        """A mapping that loses a rank or puts two in one place."""
        case = problem(2, [[0, 1, 2, 3, 4, 5]], [[3, 1, 2, 0, 5, 4]])
        found = ranks.run(2, "live.refusals.refused_mapping", case, mappings * (2 // len(mappings)))
        refusals = [refusal for of_rank in found for refusal in of_rank]
        assert [refusal.code for refusal in refusals] == [code] * 4
        assert all(refusal.is_untouched for refusal in refusals)

    @pytest.mark.parametrize("num_old_slots", [2, 7, 8])
    def test_mappings_of_slots_that_do_not_divide(self, ranks, num_old_slots):
        """Slots that are no multiple of the ranks that the mapping names: fewer, or some are left over."""
        case = problem(2, [list(range(num_old_slots))], [[0, 1, 1, 0]])
        found = ranks.run(2, "live.refusals.refused_mapping", case, [{0: 0, 1: 1, 2: -1}] * 2)
        refusals = [refusal for of_rank in found for refusal in of_rank]
        assert [refusal.code for refusal in refusals] == ["EP108"] * 4


BIG = [Rows("bfloat16", (1 << 18,)), Rows("float8_e4m3fn", (1 << 18,)), Rows("float32", ())]


@pytest.mark.usefixtures("cuda")
class TestStreams:
    """On CUDA devices the order is that of streams; nobody has to wait for a device."""

    CASE = problem(2, rotate(16, by=5)[0] * 2, rotate(16, by=5)[1] * 2, BIG, buffer_size=8 << 20)

    @pytest.mark.parametrize("on_side_stream", [False, True])
    def test_what_is_read_right_after(self, ranks, on_side_stream):
        """The current stream sees new weights without any synchronisation, and may use all memory again."""
        found = ranks.run(2, "live.streams.read_at_once", self.CASE, on_side_stream)
        require_new(self.CASE, found)

    def test_many_runs_without_a_look(self, ranks):
        """Runs that are started before others have ended come after them on the device."""
        found = ranks.run(2, "live.streams.to_and_fro", self.CASE, 5)
        require_new(self.CASE.reversed(), found)

    @pytest.mark.parametrize("current", [True, False], ids=["current", "named"])
    def test_beside_a_computation(self, ranks, current):
        """`transfer_layer` on a side stream ends while the default stream computes, with the right rows."""
        case = problem(2, *rotate(16, by=5), BIG)
        found = ranks.run(2, "live.streams.beside", case, current)
        require_new(case, [memory for _, memory in found])
        assert all(is_beside for is_beside, _ in found)


class TestPool:
    """What the other tests stand on: trouble is told, a hang ends, and the pool goes on."""

    @pytest.mark.parametrize(
        ("what", "told"),
        [
            ("error", "a deliberate error"),
            ("end", "rank 1: the process ended"),
            ("message", "left on its way"),
        ],
    )
    def test_trouble_is_told(self, ranks, what, told):
        """An error, the end of a process, and a message that nobody received."""
        if what == "message" and ranks.backend == "nccl":
            pytest.skip("with nccl the rank that sent it waits, until the group's time is over")
        with pytest.raises((RankError, HungError), match=told):
            ranks.run(2, "live.runs.trouble", what)
        self.require_that_it_goes_on(ranks)

    def test_a_hang_ends(self, ranks, monkeypatch):
        """The stack of a rank that does not come back is in the message."""
        self.require_that_it_goes_on(ranks)
        monkeypatch.setattr("tests.support.ranks.CASE_TIMEOUT_S", 1.0)
        with pytest.raises(HungError, match=r"(?s)hangs on ranks .*rank 1: .*live/runs.py.* in trouble"):
            ranks.run(2, "live.runs.trouble", "hang")
        monkeypatch.undo()
        self.require_that_it_goes_on(ranks)

    @staticmethod
    def require_that_it_goes_on(ranks: Ranks) -> None:
        case = problem(2, *swap(2, 1))
        require_new(case, ranks.run(2, "live.runs.inplace", case))
