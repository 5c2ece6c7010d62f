"""A tensor that a rank lacks is noticed before any byte moves, whatever its key carries."""

from __future__ import annotations

import numpy as np
import pytest

from eplb_cli.checkpoint.sharded import bind
from eplb_cli.checkpoint.shards import open_shards
from eplb_cli.errors import CheckpointError
from eplb_cli.placements.placement import Placement
from tests.support.checkpoints import ExpertTensor, Model, read_file, write_file, write_tree

OLD = Placement(np.array([[0, 1, 2, 3]]), np.array([0, 2, 4]), 4, np.array([3]))
PREFIXES = {
    "stacked": ("model.layers.{layer}.mlp.experts.", "w{}_weight", "w{}_weight_scale"),
    "row": ("model.layers.{layer}.mlp.experts.", "w{}.weight", "w{}.weight_scale"),
    "expert": ("layers.{layer}.ffn.experts.", "w{}.weight", "w{}.scale"),
}


def tensors_of(weight: str, scale: str) -> tuple[ExpertTensor, ...]:
    """Two projections, each with a weight and a scale."""
    return tuple(
        tensor
        for projection in (1, 2)
        for tensor in (
            ExpertTensor(weight.format(projection), "F8_E4M3", (4,)),
            ExpertTensor(scale.format(projection), "F32"),
        )
    )


@pytest.mark.parametrize("style", PREFIXES)
@pytest.mark.parametrize(("which", "code"), [("scale", "EP210"), ("weight", "EP209")])
def test_a_rank_without_a_tensor_is_refused(tmp_path, style, which, code):
    """Rank 1 has no scale, or no weight, at all; the message names the rank."""
    prefix, weight, scale = PREFIXES[style]
    write_tree(tmp_path, Model(style, prefix, {3: tensors_of(weight, scale)}, (), 2), OLD)
    (file,) = (file for file in tmp_path.iterdir() if file.name.startswith(("model1", "model-rank-1")))
    lacking = (scale if which == "scale" else weight).format(1)
    write_file(file, {key: held for key, held in read_file(file).items() if not key.endswith(lacking)})
    with pytest.raises(CheckpointError, match="rank 1") as raised:
        bind(open_shards(tmp_path), OLD)
    assert raised.value.code == code


def test_a_rank_whose_rows_are_empty_needs_no_keys(tmp_path):
    """With the expert in the key, a rank without experts has no tensor, and is complete."""
    prefix, weight, scale = PREFIXES["expert"]
    placement = Placement(np.array([[0, 1, -1, -1]]), np.array([0, 2, 4]), 2, np.array([3]))
    write_tree(tmp_path, Model("expert", prefix, {3: tensors_of(weight, scale)}, (), 2), placement)
    found = bind(open_shards(tmp_path), placement)
    assert (found.extents.file >= 0).tolist() == [[[True, True, False, False]] * 4]
