#!/bin/sh
# The main job at its smallest size, on real OpenMoji pairs, as a user would type it.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

landscape train --model vit_tiny_64 --output runs/tiny --recipe openmoji_demo --epochs 1
cat > checkpoints.yaml <<'YAML'
version: 1
data: {source: openmoji, image_size: 64, num_samples: 30, batch_size: 15}
hessian: {objective: contrastive}
series:
  - {name: tiny, model: vit_tiny_64, from: runs/tiny/checkpoints.yaml}
YAML
landscape spectra checkpoints.yaml -o spectra.h5 --dry-run
landscape spectra checkpoints.yaml -o spectra.h5
landscape spectra checkpoints.yaml -o spectra.h5 | grep -q "4 before"
landscape figure spectra.h5 -o figure3.png
landscape report spectra.h5 -o report.html
landscape info spectra.h5
landscape info checkpoints.yaml
landscape info runs/tiny/checkpoints/epoch_1.pt
test "$(head -c 4 figure3.png | tail -c 3)" = PNG
# A wrong input is one line, exit status 2, and nothing left behind.
status=0
landscape spectra missing.yaml -o nothing.h5 2> error.txt || status=$?
test "$status" = 2
test "$(wc -l < error.txt)" = 1
test ! -e nothing.h5
test ! -e nothing.h5.parts
echo "smoke test passed"
