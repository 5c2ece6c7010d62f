"""Whatever one rank is given, all ranks of its group are told the same, and none waits for another.

Flaws are those of tensors in host memory, so that the ranks have to be connected by gloo.
"""

from __future__ import annotations

import random

import pytest

from tests.support.live.bad_arguments import FLAWS, FUNCTIONS, IN_PLACE, TRANSFER
from tests.support.live.problems import Problem, Rows, problem, require_new

pytestmark = pytest.mark.distributed

GROUP_TIMEOUT_S = 3.0
"""Of the group in which a call is made; no result depends on it, it only ends what hangs."""


@pytest.fixture(autouse=True)
def _host(ranks) -> None:
    if ranks.backend != "gloo":
        pytest.skip("flaws are those of tensors in host memory")


def case_of(num_ranks: int) -> Problem:
    """Two layers of three tensors, whose rows go from each rank to the next."""
    slots = list(range(2 * num_ranks))
    return problem(num_ranks, [slots] * 2, [slots[-1:] + slots[:-1]] * 2, [Rows("float32", (4,))] * 3)


class TestOneBadRank:
    """Any of 2 to 4 ranks has the flaw."""

    @pytest.mark.parametrize("flaw", FLAWS)
    def test_all_are_told(self, ranks, flaw):
        """The same code and message on all ranks, with the rank that has it; nothing has been moved."""
        code, functions = FLAWS[flaw]
        draw = random.Random(flaw)
        num_ranks = draw.randint(2, 4)
        calls = [(function, draw.randrange(num_ranks)) for function in functions]
        answers = ranks.run(num_ranks, "live.flaws.told", case_of(num_ranks), flaw, calls, GROUP_TIMEOUT_S)
        for (function, bad), *found in zip(calls, *answers, strict=True):
            where = f"{function}, rank {bad} of {num_ranks}: {found}"
            assert [told.code for told in found] == [code] * num_ranks, where
            assert len({told.message for told in found}) == 1, where
            assert code == "EP302" or f"rank {bad}: " in found[0].message, where
            assert all(told.is_untouched for told in found), where

    def test_an_interrupt_stays_one(self, ranks):
        """KeyboardInterrupt is that on its own rank, and an error with its name on the others."""
        calls = [(function, 1) for function in FUNCTIONS]
        answers = ranks.run(
            3, "live.flaws.told", case_of(3), "error: KeyboardInterrupt", calls, GROUP_TIMEOUT_S
        )
        for found in zip(*answers, strict=True):
            assert [told.code for told in found] == ["EP401", "KeyboardInterrupt", "EP401"]
            assert "rank 1: KeyboardInterrupt" in found[0].message

    def test_the_message_arrives_whole(self, ranks):
        """Place, reason and remedy, though they are longer than a line."""
        for told in self.one(ranks, IN_PLACE, "weight: rows that share elements"):
            assert told.message.startswith("rank 1: layer 0, tensor 1")
            assert told.message.endswith("its rows overlap or are not contiguous")
            assert told.hint.endswith("is no expert tensor")

    @pytest.mark.parametrize(
        ("flaw", "places"),
        [
            ("a tensor in two layers", "layer 0, tensor 1 and layer 1, tensor 1 share memory"),
            ("a tensor twice in a layer", "layer 0, tensor 1 and layer 0, tensor 2 share memory"),
            ("a buffer that is a weight", "layer 0, tensor 1 and buffer 1 share memory"),
        ],
    )
    def test_who_shares_memory(self, ranks, flaw, places):
        """Both tensors are named."""
        found = self.one(ranks, TRANSFER if "buffer" in flaw else IN_PLACE, flaw)
        assert {told.message for told in found} == {f"rank 1: {places}"}

    @staticmethod
    def one(ranks, function, flaw):
        """What both of two ranks are told when the second has the flaw."""
        calls = [(function, 1)]
        answers = ranks.run(2, "live.flaws.told", case_of(2), flaw, calls, GROUP_TIMEOUT_S)
        return [told for (told,) in answers]


class TestUnusual:
    """What looks odd and is right."""

    @pytest.mark.parametrize(
        "form",
        [
            *("int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64", "arrays", "lists"),
            "parameters",
            "parameters of an engine",
            "views of parameters",
            "inference tensors",
            "rows between rows",
            "more buffers",
        ],
    )
    def test_forms(self, ranks, form):
        """Integers of any width, weights that learn or may not, and rows in the gaps of other tensors."""
        slots = list(range(6))
        case = problem(3, [slots], [slots[-1:] + slots[:-1]], [Rows("float32", (4,)), Rows("float32", (3,))])
        found = ranks.run(3, "live.flaws.accepted", case, form)
        for memory in zip(*found, strict=True):
            require_new(case, memory)

    def test_tensors_without_elements(self, ranks):
        """They have no memory, and share none."""
        case = problem(2, [[0, 1, 2, 3]], [[3, 0, 1, 2]], [Rows("float32", (0,))] * 2 + [Rows()])
        for memory in zip(*ranks.run(2, "live.flaws.accepted", case, "int64"), strict=True):
            require_new(case, memory)


class TestOneRankAlone:
    """Functions that ask no other rank refuse what they cannot use before they write."""

    @pytest.mark.parametrize(
        ("flaw", "code"),
        [
            ("weight: meta", "EP228"),
            ("weight: freed", "EP228"),
            ("weight: no rows", "EP208"),
            ("weight: expanded", "EP221"),
            ("buffer: meta", "EP228"),
            ("buffer: no rows", "EP222"),
            ("buffer: transposed", "EP221"),
            ("a buffer too few", "EP222"),
            ("a buffer that is a weight", "EP221"),
            ("indices: float", "EP104"),
            ("indices: too few", "EP109"),
            ("a mask too short", "EP222"),
            ("a mask of numbers", "EP222"),
            ("a row that is not there", "EP222"),
            ("more received than there are rows", "EP222"),
        ],
    )
    def test_move_from_buffer(self, ranks, flaw, code):
        """Tensors as `move_to_buffer` takes them, and what that returned for them."""
        found = ranks.run(2, "live.flaws.from_buffer", case_of(2), flaw)
        assert [told.code for told in found] == [code] * 2
        assert all(told.is_untouched for told in found)

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            (([0.5], 2, [0, 1], [1, 0]), "EP104"),
            (([0], 2, [0.0, 1.0], [1, 0]), "EP104"),
            (([0], 0, [0, 1], [1, 0]), "EP108"),
            (([0], 2, [[0, 1]], [1, 0]), "EP109"),
        ],
    )
    def test_senders_and_receivers(self, arguments, code):
        """`get_ep_ranks_with_experts_batch`."""
        from eplb_cli.errors import EplbError
        from eplb_cli.live import get_ep_ranks_with_experts_batch

        with pytest.raises(EplbError) as told:
            get_ep_ranks_with_experts_batch(*arguments)
        assert told.value.code == code

    @pytest.mark.parametrize(
        ("shape", "mapping", "code"),
        [
            ((1, 4), [0, 1], "EP115"),
            ((1, 4), {0: 0, 1: 0.5}, "EP115"),
            ((1, 4), {0: 0, 2: -1}, "EP115"),
            ((4,), {0: 0, 1: 1}, "EP109"),
            ((1, 5), {0: 0, 1: 1}, "EP108"),
        ],
    )
    def test_mapping_of_indices(self, shape, mapping, code):
        """Old ranks to new, and the reverse."""
        import torch

        from eplb_cli.errors import EplbError
        from eplb_cli.live import rank_mapping

        indices = torch.zeros(shape, dtype=torch.int64)
        with pytest.raises(EplbError) as old:
            rank_mapping._map_old_expert_indices_with_rank_mapping(indices, mapping, 2)
        with pytest.raises(EplbError) as new:
            rank_mapping._map_new_expert_indices_with_rank_mapping(indices, mapping)
        assert [old.value.code, new.value.code] in ([code, code], [code, ""])
