#!/usr/bin/env bash
# vLLM by itself takes no map from outside (with eplb in it it does: vllm-any-placement.sh). A map without replicas can be baked: the experts of the checkpoint are put into
# its order, routers included, and what vLLM does by default is then that placement.
#
#   configs/examples/vllm.sh HF_DIR MAP RANKS OUT
#
# MAP is a placement in any dialect, such as [[3, 0, 2, 1], ...], a row for each MoE layer.
set -euo pipefail
hf=$1 map=$2 ranks=$3 out=$4

eplb validate "$map" --num-ranks "$ranks" --model "$hf/config.json"
eplb bake "$hf" "$out" --placement "$map" --num-ranks "$ranks"

# Then: vllm serve OUT --enable-expert-parallel, with RANKS expert-parallel ranks and no options of EPLB.
# What it counts is by the new numbers; this shows it by the model's own:
#   eplb inspect LOAD --baked "$out"
