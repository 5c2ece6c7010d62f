#!/usr/bin/env bash
# vllm-ascend reads a map (expert_map_path) and arranges the experts itself, while it loads: it needs only the map.
#
#   configs/examples/ascend.sh HF_DIR MAP RANKS OUT.json
#
# MAP is a placement in any dialect. Never give it shards that were arranged before: that would be twice.
set -euo pipefail
hf=$1 map=$2 ranks=$3 out=$4

eplb convert "$map" "$out" --to ascend --num-ranks "$ranks" --model "$hf/config.json"
eplb validate "$out" --num-ranks "$ranks" --model "$hf/config.json"
