#!/usr/bin/env bash
# TensorRT-LLM arranges the experts of a Hugging Face checkpoint itself, while it loads: it needs only the map.
#
#   configs/examples/tensorrt-llm.sh HF_DIR MAP RANKS OUT.yaml
#
# MAP is a placement in any dialect. Never give it shards that were arranged before: that would be twice.
set -euo pipefail
hf=$1 map=$2 ranks=$3 out=$4

eplb convert "$map" "$out" --to tensorrt-llm --num-ranks "$ranks" --model "$hf/config.json"
eplb validate "$out" --num-ranks "$ranks" --model "$hf/config.json"
