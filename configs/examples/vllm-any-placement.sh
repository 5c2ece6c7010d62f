#!/usr/bin/env bash
# vLLM under any placement, replicas included, each rank reading its own shard and nothing else. eplb is installed
# where vLLM is: it finds --load-format eplb by itself.
#
#   configs/examples/vllm-any-placement.sh HF_DIR MAP RANKS DST [OPTION]...      the first time
#   configs/examples/vllm-any-placement.sh OLD_DST MAP RANKS DST [OPTION]...     with each new map
#
# MAP is a placement in any dialect, such as [[3, 0, 2, 1, 0, 2], ...], a row for each MoE layer; RANKS is tensor
# parallel x data parallel. OPTIONs are vLLM's; without any, its command line is shown and not run.
set -euo pipefail
source=$1 map=$2 ranks=$3 dst=$4
shift 4

if [[ -f $source/eplb.json ]]; then
  eplb reshard "$source" "$dst" --new "$map" --num-ranks "$ranks" --backend "${BACKEND:-auto}"
else
  eplb validate "$map" --num-ranks "$ranks" --model "$source/config.json"
  eplb shard "$source" "$dst" --placement "$map" --num-ranks "$ranks" --engine vllm
fi
eplb verify "$dst"

# With replicas vLLM's EPLB has to be on. It begins at DST's placement and rearranges from there; where the map is
# to stay as it is, a step_interval that never comes keeps it.
serve=(vllm serve "$dst" --load-format eplb --enable-expert-parallel)
serve+=(--model-loader-extra-config "{\"current_map\": \"$dst.now.json\"}")
redundant=$(eplb inspect "$dst" --format json | python3 -c '
import json, sys
placement = json.load(sys.stdin)["placement"]
print(len(placement["physical_to_logical_map"][0]) - placement["num_logical_experts"])')
if ((redundant)); then
  serve+=(--enable-eplb --eplb-config "{\"num_redundant_experts\": $redundant}")
fi
if (($#)); then
  exec "${serve[@]}" "$@"
fi
printf '\nserve it:\n '
printf ' %q' "${serve[@]}" --tensor-parallel-size "$ranks"
printf '\n'

# DST.now.json is the map as it is now, also after vLLM has rearranged. To start there again, or under a map that a
# balancer made of this week's load:
#   configs/examples/vllm-any-placement.sh DST DST.now.json RANKS NEW_DST
