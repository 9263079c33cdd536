#!/bin/sh
# torch 2.14.1: torch._inductor.standalone_compile of a graph that holds a constant tensor (a get_attr node) gives a function that is
# right; saved with CompiledArtifact.save and loaded in another process it asks for the constant as one more argument.
#
# Expected: the loaded artifact takes the same arguments as the one that was saved, or saving it is refused. A pipeline that compiles
# once and loads in its workers works in the process that compiled, and in no other. Constants that are inputs of the graph are safe.
# Output seen: compiled [1.0, 2.0, 3.0]; loaded: ValueError: not enough values to unpack (expected 2, got 1)
# PYTHON=... uses a Python that has torch 2.14.1 instead of installing it. Needs a C++ compiler. Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$PYTHON" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.14.1
    "$folder/venv/bin/pip" install --quiet numpy setuptools
    PYTHON="$folder/venv/bin/python"
fi
cat > "$folder/artifact.py" <<'P'
import sys

import torch
from torch import fx
from torch._inductor import standalone_compile
from torch._inductor.standalone_compile import CompiledArtifact

assert torch.__version__.startswith("2.14.1"), torch.__version__
action, path = sys.argv[1:]
x = torch.ones(3)
if action == "save":
    module = torch.nn.Module()
    module.register_buffer("constant", torch.tensor([1.0, 2.0, 3.0]))
    graph = fx.Graph()
    factor = graph.placeholder("x"), graph.get_attr("constant")
    graph.output((graph.call_function(torch.ops.aten.mul.Tensor, factor),))
    artifact = standalone_compile(fx.GraphModule(module, graph), [x], dynamic_shapes="from_example_inputs")
    artifact.save(path=path, format="binary")
    print("compiled", artifact(x)[0].tolist())
else:
    try:
        print("loaded", CompiledArtifact.load(path=path)(x)[0].tolist())
    except ValueError as error:
        print("loaded: ValueError:", error)
P
for action in save load; do
    TORCHINDUCTOR_CACHE_DIR="$folder/cache_of_$action" "$PYTHON" -W ignore "$folder/artifact.py" $action "$folder/artifact" \
        2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
done > "$folder/output"
cat "$folder/output"
printf '%s\n' 'compiled [1.0, 2.0, 3.0]' 'loaded: ValueError: not enough values to unpack (expected 2, got 1)' | cmp - "$folder/output"
