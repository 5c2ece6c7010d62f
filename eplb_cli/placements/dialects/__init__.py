"""The ways in which engines write placements down: found by content, read into one form, and written.

A file of eplb's own format says so itself; the others are imported only for a file that is none.

::

    registry       all of them by name
    find           which of them a value is of
    dialect        what the package calls a dialect; layer numbers; what cannot be said
    eplb           eplb-placement/1
    vllm           physical_to_logical_map, initial_expert_map_path, initial_mapping_path
    sglang         --init-expert-location
    tensorrt_llm   moe_load_balancer.yaml
    ascend         expert_map_path
    deepseek       rebalance_experts
"""
