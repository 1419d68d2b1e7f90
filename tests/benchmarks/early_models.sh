#!/usr/bin/env bash
# Trains the sample-level models and a Transformer for about ten minutes each on the same notes, and compares
# them in one table: bits a sample beside counting, FAD and pitch.
#   tests/benchmarks/early_models.sh /data/nsynth [runs]
# Two cores, about three quarters of an hour in all; killed and started again, it goes on. `CPU` below are the CPU lines of the
# recipes' headers.
set -euo pipefail
root=$1 runs=${2:-runs}
cd "$(dirname "$0")/../.."
CPU=(train.warmup_steps=50 train.ema_decay=0.99 train.precision=no train.validate_every=400 train.save_every=400
  generate.num_clips=40 generate.batch_size=20)
common=("data.root=$root" "runs_dir=$runs")

tokkata run recipes/nsynth-wavenet.yaml "${common[@]}" "${CPU[@]}" \
  "model={kind: wavenet, conditions: [pitch, velocity, instrument_family]}" \
  train.steps=2200 train.batch_size=2 train.crop_s=0.4 train.lr=4e-3
tokkata run recipes/nsynth-samplernn.yaml "${common[@]}" "${CPU[@]}" model.dim=256 model.embedding_dim=64 \
  train.steps=2800 train.batch_size=16 train.lr=4e-3 train.schedule=cosine
tokkata run recipes/nsynth-encodec-lm.yaml name=nsynth-pocket-lm "${common[@]}" "${CPU[@]}" \
  "codec={kind: pocket}" model.dim=192 model.num_layers=4 model.num_heads=4 model.dropout=0 \
  "train.steps=${TRANSFORMER_STEPS:-1400}" train.batch_size=16 train.lr=3e-3 train.ema_every=1 \
  generate.cfg_scale=1.0 eval.copies=false
for kind in rnn causal_conv; do
  tokkata run recipes/nsynth-encodec-lm.yaml "name=nsynth-$kind" "${common[@]}" "${CPU[@]}" \
    "codec={kind: pocket}" "model={kind: $kind, conditions: [pitch, velocity, instrument_family]}" \
    train.steps=300 train.batch_size=16 train.lr=3e-3 generate.cfg_scale=1.0 eval.copies=false
done
python tests/benchmarks/bits_per_sample.py "$runs"/nsynth-{wavenet,samplernn,pocket-lm,rnn,causal_conv}
