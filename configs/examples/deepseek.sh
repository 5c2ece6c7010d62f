#!/usr/bin/env bash
# From what DeepSeek's balancer returned, saved with torch.save((phy2log, log2phy, logcnt), "map.pt"), to shards.
#
#   configs/examples/deepseek.sh HF_DIR MAP.pt RANKS DST
set -euo pipefail
hf=$1 map=$2 ranks=$3 dst=$4

eplb validate "$map" --from deepseek --num-ranks "$ranks" --model "$hf/config.json"
eplb shard "$hf" "$dst" --placement "$map" --from deepseek --num-ranks "$ranks" --engine sglang
