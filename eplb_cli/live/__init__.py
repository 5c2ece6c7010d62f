"""Experts that are live in memory, rearranged with the names of vLLM's `rebalance_execute`.

A caller of that module changes the import and nothing else. Of the shapes, K is the number of tensors that a
layer's experts consist of; all of one layer have as many rows. These names need torch.
"""

# rearrange     all layers at once, or as often as wanted
# buffers       one layer into buffers
# from_buffer   and from there to its weights
# agreement     what can be wrong, told to all ranks alike
# indices       which expert is in each slot, as a caller says it
# tensors       which tensors can be moved, and what shares memory
# plan          what one rank does
# room          how large buffers have to be
# rows          rows as source and sink of the exchange
# link          what carries a chunk: pushes to ranks nearby, messages to others
# connection    who is nearby, found out once for each group
# neighbours    ranks that write into each other's memory
# board         the counts that order them, and what is wrong
# watch         nobody waits for a rank that has gone
# driver        calls of the CUDA driver that torch has none for
# lanes         steps beside each other
# copies        many small copies in one step
# copy_kernel   the same on a CUDA device
# rank_mapping  placements over ranks that come, go or change their number

from eplb_cli.live.buffers import (
    MoveToBufferResult,
    RecvMetadata,
    get_ep_ranks_with_experts_batch,
    move_to_buffer,
)
from eplb_cli.live.connection import release_buffers
from eplb_cli.live.from_buffer import move_from_buffer
from eplb_cli.live.rank_mapping import (
    _map_new_expert_indices_with_rank_mapping,  # noqa: F401 - the reference has it here
    _map_old_expert_indices_with_rank_mapping,  # noqa: F401 - the reference has it here
)
from eplb_cli.live.rearrange import Rearrangement, rearrange_expert_weights_inplace, transfer_layer

__all__ = [
    "MoveToBufferResult",
    "Rearrangement",
    "RecvMetadata",
    "get_ep_ranks_with_experts_batch",
    "move_from_buffer",
    "move_to_buffer",
    "rearrange_expert_weights_inplace",
    "release_buffers",
    "transfer_layer",
]
