#!/usr/bin/env bash
# From an SGLang map and a Hugging Face checkpoint to shards that SGLang loads without reading the rest.
#
#   configs/examples/sglang.sh HF_DIR MAP RANKS DST
#
# MAP is what --init-expert-location takes: {"physical_to_logical_map": [...]}, as .json or .pt.
set -euo pipefail
hf=$1 map=$2 ranks=$3 dst=$4

eplb validate "$map" --num-ranks "$ranks" --model "$hf/config.json"
eplb shard "$hf" "$dst" --placement "$map" --num-ranks "$ranks" --engine sglang
eplb verify "$dst"

# Later, with a new map: only what changes ranks moves, and old and new are both in their eplb.json.
#   eplb reshard "$dst" "$dst-2" --new new-map.json --num-ranks "$ranks"
# And back to Hugging Face, byte for byte:
#   eplb merge "$dst-2" "$hf-again"
