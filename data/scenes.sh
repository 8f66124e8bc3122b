#!/bin/sh
# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
# Narrated scenes -> records and a vocabulary. What is finished is not redone.
#
#   pixel-llm scenes --out SCENES --seed 0 --train 8000 --val 200
#   sh data/scenes.sh SCENES RECORDS [PIXEL_LLM]
#
# PIXEL_LLM is the command to call, by default the one on the path.
set -eu
if [ $# -lt 2 ]; then
  echo "usage: sh $0 SCENES RECORDS [PIXEL_LLM]" >&2
  exit 2
fi
scenes=$1
records=$2
pixel_llm=${3:-pixel-llm}
annotations=$scenes/annotations

for split in train val; do
  images=$scenes/images/$split
  "$pixel_llm" build localized_narratives --split "$split" \
    --annotations "$annotations/scenes_${split}_localized_narratives.jsonl" \
    --images "$images" --out "$records/narratives"
  "$pixel_llm" build refcoco --split "$split" \
    --annotations "$annotations/refer/refs(scenes).p" \
    --instances "$annotations/refer/instances.json" \
    --images "$images" --out "$records/refer"
  "$pixel_llm" build visual_genome --split "$split" \
    --annotations "$annotations/region_descriptions_$split.json" \
    --image-data "$annotations/image_data_$split.json" \
    --images "$images" --out "$records/regions"
done

# The size is the vocab_size of configs/demo.py, which it must not exceed.
"$pixel_llm" vocabulary --out "$records/spiece.model" --size 384 \
  --records "$records/narratives" "$records/refer" "$records/regions" \
  --text 'A long image caption: ' 'an object of '
