"""The ways in which engines write placements down: found by content, read into one form, and written.

A file of eplb's own format says so itself; the others are imported only for a file that is none.

::

    registry       all of them by name
    find           which of them a value is of
    dialect        what the package calls a dialect; layer numbers; what cannot be said
    other_keys     what files have beside a map: compared with it, or ignored
    inverse        the slots of each expert, and their number, as they follow from a map
    by_rank        forms that say which experts a rank holds
    strangers      files that are no placement, called what they are
    eplb           eplb-placement/1
    vllm           physical_to_logical_map, initial_expert_map_path, initial_mapping_path; by rank
    sglang         --init-expert-location
    tensorrt_llm   moe_load_balancer.yaml, and the options of the engine that have it inside
    ascend         expert_map_path; OmniPlacement's pattern
    deepseek       rebalance_experts
"""
