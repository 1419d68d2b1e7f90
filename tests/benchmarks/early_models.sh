#!/usr/bin/env bash
# Trains the sample-level models on the quickstart's notes, and compares them with the quickstart's Transformer.
#   tests/benchmarks/early_models.sh [runs]
# Two WaveNets and a SampleRNN take a third of an hour of one core each (families.py --longer has those of 45
# minutes). Killed and started again, it goes on. With notes in NSynth's layout instead:
#   DATA="{kind: nsynth, root: /data/nsynth}" tests/benchmarks/early_models.sh
set -euo pipefail
runs=${1:-runs}
cd "$(dirname "$0")/../.."
DATA=${DATA:-"{kind: synth, num_clips: 520, duration_s: 2.0, forms: [note], pitch_min: 48, pitch_max: 60}"}
common=("data=$DATA" "runs_dir=$runs" train.warmup_steps=50 train.ema_decay=0.99 train.precision=no train.lr=4e-3
  train.validate_every=400 train.save_every=400 generate.num_clips=48 generate.batch_size=24
  generate.duration_s=2.0)
conditions="conditions: [pitch, velocity, instrument_family]"

wavenet=("${common[@]}" train.steps=2200 train.batch_size=2 train.crop_s=0.4)

tokkata run recipes/nsynth-wavenet.yaml name=notes-wavenet "${wavenet[@]}" "model={kind: wavenet, $conditions}"
tokkata run recipes/nsynth-wavenet.yaml name=notes-wavenet-noise "${wavenet[@]}" \
  "model={kind: wavenet, input_noise: 4, $conditions}"
tokkata run recipes/nsynth-samplernn.yaml name=notes-samplernn "${common[@]}" \
  "model={kind: samplernn, dim: 256, embedding_dim: 64, $conditions}" \
  train.steps=2800 train.batch_size=16 train.schedule=cosine
tokkata run recipes/quickstart.yaml "runs_dir=$runs"
python tests/benchmarks/bits_per_sample.py "$runs"/notes-{wavenet,wavenet-noise,samplernn}
python tests/benchmarks/notes_table.py "$runs"/notes-{wavenet,wavenet-noise,samplernn} "$runs/quickstart"
