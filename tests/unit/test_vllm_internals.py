"""What the loader does inside vLLM, on a stand-in for it: which of its objects are set, and when."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

import eplb_cli
from eplb_cli.engines.vllm import register
from tests.cli.tree import NEW
from tests.support import vllm_stand_in
from tests.support.vllm_trees import CONFIG, EMBED, FOUR, LINEAR, PLACED, make, part_of

torch = pytest.importorskip("torch")

TABLE = PLACED["physical_to_logical_map"]


@pytest.fixture
def vllm(monkeypatch):
    """The stand-in, and the loader registered in it."""
    told = vllm_stand_in.install(monkeypatch)
    register()
    yield told
    sys.modules.pop(vllm_stand_in.MODULE, None)


class Served:
    """A rank of a tree in the stand-in."""

    def __init__(self, vllm, path, rank=0, *, eplb=False, extra=None):
        dtypes = {"BF16": torch.bfloat16, "F32": torch.float32, "F8_E4M3": torch.float8_e4m3fn}
        from safetensors.torch import load_file

        self.there = load_file(path / f"model-rank-{rank}-part-0.safetensors")
        assert {at.dtype for at in self.there.values()} <= set(dtypes.values())
        shapes = {key: (at.dtype, at.shape) for key, at in self.there.items()}
        content = json.loads((path / "eplb.json").read_text())["placement"]
        slots = len(content["physical_to_logical_map"][0])
        self.model = vllm_stand_in.build(shapes, rank, slots, content["num_ranks"])
        text = SimpleNamespace(to_dict=lambda: dict(CONFIG))
        self.config = SimpleNamespace(
            model=str(path), model_weights="", hf_text_config=text, empty=self.model
        )
        self.parallel = SimpleNamespace(
            enable_eplb=eplb, pipeline_parallel_size=1, enable_elastic_ep=False, num_ubatches=0
        )
        load_config = SimpleNamespace(load_format="eplb", model_loader_extra_config=extra or {})
        self.told = vllm
        self.loader = vllm.loaders["eplb"](load_config)

    def load(self):
        """What vLLM does at its start."""
        return self.loader.load_model(
            SimpleNamespace(parallel_config=self.parallel, told=self.told), self.config
        )

    def slots(self):
        """By layer, the slot that each expert is sent to; None where the router has no map."""
        states = [runner.router.eplb_state for runner in self.model.runners]
        return [state and state.logical_to_physical_map[:, 0].tolist() for state in states]


def raises(match):
    """An error of eplb as vLLM shows it."""
    return pytest.raises(RuntimeError, match=match)


@pytest.mark.parametrize("rank", [0, 1])
def test_weights_and_maps(vllm, tmp_path, rank):
    """Every parameter has the bytes of this rank's shard, every router the map of its layer."""
    served = Served(vllm, make(tmp_path), rank)
    model = served.load()
    for key, parameter in model.named_parameters():
        here, there = (each.reshape(-1).view(torch.uint8) for each in (parameter, served.there[key]))
        assert torch.equal(here, there), key
    assert [[row.index(expert) for expert in range(4)] for row in TABLE] == served.slots()
    assert any("rank" in line for line in vllm.said)


@pytest.mark.parametrize("rank", range(4))
def test_a_host_with_the_shards_of_its_ranks(vllm, tmp_path, monkeypatch, rank):
    """Weights and the map of all ranks are those that the whole tree gives, its digests compared."""
    monkeypatch.setenv("EPLB_VERIFY", "1")
    dst = make(tmp_path, FOUR)
    host = part_of(dst, tmp_path / "host", {rank, rank ^ 1})
    there, path = Served(vllm, dst, rank, eplb=True).there, tmp_path / "now.json"
    for tree in (dst, host):
        served = Served(vllm, tree, rank, eplb=True, extra={"current_map": str(path)})
        model = served.load()
        vllm_stand_in.eplb_state().EplbState().add_model(model, served.config)
        assert vllm.table == FOUR["physical_to_logical_map"]
        weights = dict(model.named_parameters())
        assert weights.keys() == there.keys()
        for key, tensor in there.items():
            here, whole = (each.reshape(-1).view(torch.uint8) for each in (weights[key], tensor))
            assert torch.equal(here, whole), key
        assert path.exists() == (rank == 0)
    if rank == 0:
        assert eplb_cli.read_placement(path)[0].physical_to_logical.tolist() == vllm.table


def test_the_default_order_sets_nothing(vllm, tmp_path):
    """No router is touched."""
    served = Served(vllm, make(tmp_path, LINEAR))
    served.model.runners[0].is_monolithic = True
    served.load()
    assert served.slots() == [None, None]


def test_eplb_begins_at_the_placement(vllm, tmp_path):
    """Its own map comes first, ours follows; and the file says what is rearranged."""
    path = tmp_path / "now.json"
    served = Served(vllm, make(tmp_path, NEW), eplb=True, extra={"current_map": str(path)})
    model = served.load()
    assert not path.exists()
    state = vllm_stand_in.eplb_state().EplbState()
    state.add_model(model, served.config)
    assert vllm.table == NEW["physical_to_logical_map"]

    def written():
        return eplb_cli.read_placement(path)[0].physical_to_logical.tolist()

    assert written() == vllm.table
    rows = [[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 3]]
    of_model = SimpleNamespace(model=model)
    vllm_stand_in.eplb_state()._commit_eplb_maps(of_model, new_physical_to_logical_map=torch.tensor(rows))
    assert written() == rows
    for layer, row in enumerate(reversed(rows)):
        assert written() == rows  # a map of which some layers are old is not told
        vllm_stand_in.eplb_state()._commit_eplb_maps_for_layer(of_model, torch.tensor(row), layer=layer)
    assert written() == rows[::-1]
    vllm_stand_in.eplb_state()._commit_eplb_maps(SimpleNamespace(model=state), torch.tensor(rows))
    assert written() == rows[::-1]


def test_a_map_that_cannot_be_written_later(vllm, tmp_path):
    """Is said, and serving goes on."""
    home = tmp_path / "maps"
    home.mkdir()
    served = Served(vllm, make(tmp_path), extra={"current_map": str(home / "now.json")})
    model = served.load()
    assert json.loads((home / "now.json").read_text())["physical_to_logical_map"] == TABLE
    (home / "now.json").unlink()
    home.rmdir()
    vllm_stand_in.eplb_state()._commit_eplb_maps(SimpleNamespace(model=model), torch.tensor(TABLE))
    assert "EP604" in vllm.said[-1]


def test_only_the_first_rank_writes_the_map(vllm, tmp_path):
    """Its like on every other rank would be the same."""
    path = tmp_path / "now.json"
    Served(vllm, make(tmp_path), 1, extra={"current_map": str(path)}).load()
    assert not path.exists()


def test_a_monolithic_kernel(vllm, tmp_path):
    """Is refused before a weight is read, or as soon as it is chosen."""
    served = Served(vllm, make(tmp_path))
    served.model.runners[1].is_monolithic = True
    with raises("EP235: .*routes by itself"):
        served.load()
    assert not vllm.is_processed
    late = Served(vllm, tmp_path / "dst")
    fill = late.loader.load_weights

    def choose(model, config):
        fill(model, config)
        model.runners[1].is_monolithic = True

    late.loader.load_weights = choose
    with raises("EP235: .*routes by itself"):
        late.load()
    assert vllm.is_processed


def test_other_routers_and_fused_experts(vllm, tmp_path):
    """They have no map to put anything into."""
    dst = make(tmp_path)
    served = Served(vllm, dst)
    served.model.runners[0].router = SimpleNamespace()
    with raises("EP235: .*its router, SimpleNamespace, maps no ids"):
        served.load()
    served = Served(vllm, dst)
    served.model.runners[0].routed_experts.expert_map_manager.num_fused_shared_experts = 1
    with raises("EP235: .*fused"):
        served.load()


def test_a_router_that_does_nothing(vllm, tmp_path, monkeypatch):
    """As that of vLLM's CPU build: it is tried, not trusted."""
    router = sys.modules["vllm.model_executor.layers.fused_moe.router.base_router"].BaseRouter
    monkeypatch.setattr(router, "_apply_eplb_mapping", lambda _, ids: ids)
    with raises("EP235: .*does not map experts to slots here"):
        Served(vllm, make(tmp_path)).load()


def test_parameters_that_cut_their_part(vllm, tmp_path):
    """By their own `weight_loader`; one that cannot is EP236."""
    dst = make(tmp_path)
    for rows, cut in ((4, 4), (4, 9)):
        served = Served(vllm, dst)
        parameter = torch.nn.Parameter(torch.zeros((rows, 3), dtype=torch.bfloat16), requires_grad=False)
        parameter.weight_loader = lambda param, whole, cut=cut: param.data.copy_(whole.narrow(0, cut, 4))
        served.model.model.embed_tokens.weight = parameter
        if cut == 4:
            served.load()
            assert torch.equal(parameter.view(torch.int16), served.there[EMBED][4:].view(torch.int16))
        else:
            with raises("EP236: .*cannot cut"):
                served.load()


def test_a_vllm_that_lacks_what_is_touched(vllm, tmp_path):
    """Is EP235, and names the versions it was run with."""
    served = Served(vllm, make(tmp_path))
    del served.model.runners[0].routed_experts.moe_config
    with raises("EP235: vLLM 0.32.0 is not as eplb knows it: .*moe_config"):
        served.load()


def test_another_version_is_warned_of(monkeypatch, tmp_path):
    """With the names of those that it was run with."""
    told = vllm_stand_in.install(monkeypatch, "9.9.0")
    register()
    Served(told, make(tmp_path))
    assert "0.32.0, and this is 9.9.0" in told.said[0]


def test_errors_have_code_and_hint(vllm, tmp_path):
    """As vLLM's log shows them."""
    with raises("(?s)EP001: --load-format eplb knows no 'pattern'.*hint: "):
        Served(vllm, make(tmp_path), extra={"pattern": "x"})
