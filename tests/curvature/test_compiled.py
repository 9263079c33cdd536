"""Compiled product graphs: the same values whatever becomes of the compiler and its cache, and the
reason where it is not used.

The reference is torch's own double backward on the plain model. A compiled graph adds in another
order: 1e-12 of float64.
"""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from landscape.curvature import hessian
from landscape.curvature.hvp import compiled as compiled_module
from landscape.curvature.hvp import traced_graph
from landscape.curvature.hvp.compiled import CannotCompile, compile_cache
from tests.curvature.test_traced import (
    BATCHES,
    EXACT,
    mean_square,
    normal,
    of_the_zoo,
    perceptron,
    plain_product,
)
from tests.helpers.processes import ROOT, environment_of_scripts

# What a process compiles, or loads, and multiplies; prints the choice.
SCRIPT = """
import json, warnings
warnings.simplefilter("error", category=UserWarning)
from tests.curvature.test_traced import BATCHES, mean_square, normal, perceptron, plain_product
from landscape.curvature import hessian
model = perceptron()
for x in BATCHES[:2]:
    H = hessian(model, mean_square, x, hvp="compiled", check=False)
    v = normal(H.n)
    truth = plain_product(model, mean_square, x, v)
    error = float((H @ v - truth).norm() / truth.norm())
    trials = [[trial.product, trial.failure] for trial in H.choice.trials]
    chosen = {"product": H.choice.product, "reason": H.choice.reason}
    print(json.dumps(chosen | {"error": error, "trials": trials}))
"""


def started(cache, **variables):
    environment = environment_of_scripts() | {"LANDSCAPE_CACHE": str(cache)} | variables
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results_of(process):
    """What the two operators of a process say; nothing is written beside it."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors, errors
    results = [json.loads(line) for line in output.splitlines()]
    assert len(results) == 2 and all(result["error"] < EXACT for result in results)
    return results


def assert_fell_to_the_graph(results, fragment):
    for result in results:
        assert result["product"] == "traced"
        (asked, failure), *_ = result["trials"]
        assert asked == "compiled" and fragment in failure and "\n" not in failure
        assert failure in result["reason"]


def product_and_error(model, loss, batch, **options):
    H = hessian(model, loss, batch, check=False, **options)
    v = normal(H.n)
    truth = plain_product(model, loss, batch, v)
    error = float((H @ v - truth).norm() / truth.norm())
    return H.choice, error


def assert_falls_to_the_graph(model, fragment):
    for x in BATCHES[:2]:
        choice, error = product_and_error(model, mean_square, x, hvp="compiled")
        assert error < EXACT and choice.product == "traced"
        assert choice.trials[0].product == "compiled" and fragment in choice.trials[0].failure
        assert choice.trials[0].failure in choice.reason and "\n" not in choice.reason


# --- with a compiler that is not there, or is replaced --------------------------------------------


@pytest.fixture
def compilations(monkeypatch):
    """Graphs are run as they are in the place of their compiled form; what was compiled, and how
    often it was run.
    """
    made = []

    def pretended(graph, example):
        strides = [tensor.stride() for tensor in example]
        made.append(0)
        index = len(made) - 1

        def run(*inputs):
            # As compiled code does.
            assert [tensor.stride() for tensor in inputs] == strides, "expected strides"
            made[index] += 1
            return graph(*inputs)

        return run

    monkeypatch.setattr(traced_graph, "compiled", pretended)
    return made


def test_a_graph_is_compiled_once_for_all_batches_and_checkpoints(compilations):
    model = perceptron()
    for shift in (0, 1):
        with torch.no_grad():
            model[0].weight.add_(shift)
        for x in BATCHES:
            choice, error = product_and_error(model, mean_square, x, hvp="compiled")
            assert error < EXACT and choice.product == "compiled" and choice.reason == "asked for"
    # Two checkpoints, and four batches of each.
    assert compilations == [2 + 8]


def test_a_graph_that_was_only_recorded_is_compiled_where_that_is_asked_for_and_only_there(
    compilations,
):
    model = perceptron()
    assert product_and_error(model, mean_square, BATCHES[0], hvp="traced")[0].product == "traced"
    assert not compilations
    assert (
        product_and_error(model, mean_square, BATCHES[0], hvp="compiled")[0].product == "compiled"
    )
    assert compilations == [2]
    assert product_and_error(model, mean_square, BATCHES[1], hvp="traced")[0].product == "traced"
    assert compilations == [2]


def test_parameters_in_any_layout_are_compiled_for_vectors_as_they_come(compilations):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)).double()
    x = normal(2, 3, 6, 6)
    model(x)
    model = model.to(memory_format=torch.channels_last)
    for batch in (x, x.to(memory_format=torch.channels_last)):
        choice, error = product_and_error(model, mean_square, batch, hvp="compiled")
        assert error < EXACT
        # Code for one layout of the batch does not run with another; something else does.
        assert choice.product == "compiled" or (
            batch is not x and "expected strides" in choice.reason
        )


@pytest.mark.parametrize(
    "wrong, fragment",
    [
        (
            lambda products: [1.000001 * product for product in products],
            "differs from double backward",
        ),
        (
            lambda products: [torch.full_like(product, torch.nan) for product in products],
            "differs from double backward",
        ),
        (
            lambda products: (_ for _ in ()).throw(AssertionError("expected size 4==5")),
            "expected size 4==5",
        ),
    ],
    ids=["off by 1e-6", "NaN", "raises"],
)
def test_a_compiled_graph_that_is_wrong_is_dropped_and_the_graph_itself_stays(
    monkeypatch, wrong, fragment
):
    calls = []

    def compiled(graph, example):
        calls.append(graph)
        return lambda *inputs: list(wrong(graph(*inputs)))

    monkeypatch.setattr(traced_graph, "compiled", compiled)
    assert_falls_to_the_graph(perceptron(), fragment)
    assert len(calls) == 1


def test_a_compilation_that_failed_is_not_tried_again(monkeypatch):
    calls = []

    def failing(graph, example):
        calls.append(graph)
        raise CannotCompile("RuntimeError: no such thing")

    monkeypatch.setattr(traced_graph, "compiled", failing)
    assert_falls_to_the_graph(perceptron(), "no such thing")
    assert len(calls) == 1


def test_a_cache_below_a_file_cannot_be_written_to(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("LANDSCAPE_CACHE", str(tmp_path / "file" / "cache"))
    assert_falls_to_the_graph(
        perceptron(), f"the cache {tmp_path / 'file' / 'cache' / 'compiled'} cannot be written to"
    )
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_cache_that_is_read_only_cannot_be_written_to(monkeypatch, tmp_path):
    (tmp_path / "compiled").mkdir(mode=0o500)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("LANDSCAPE_CACHE", str(tmp_path))
    assert_falls_to_the_graph(perceptron(), "cannot be written to (Permission denied)")


def test_a_full_disk_is_met_before_anything_is_compiled(monkeypatch, tmp_path):
    def full(**options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(compiled_module.tempfile, "TemporaryFile", full)
    monkeypatch.setenv("LANDSCAPE_CACHE", str(tmp_path))
    assert_falls_to_the_graph(perceptron(), "cannot be written to (No space left on device)")


def test_a_chosen_cache_of_torch_is_kept_and_its_default_is_not(monkeypatch, tmp_path):
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.setenv("LANDSCAPE_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "chosen"))
    assert compile_cache() == tmp_path / "chosen"
    for default in (default_cache_dir(), ""):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default)
        assert compile_cache() == tmp_path / "ours" / "compiled"


# --- with the compiler ----------------------------------------------------------------------------

needs_compiler = pytest.mark.skipif(
    not compiled_module.has_compiler(), reason="needs a C++ compiler"
)


@pytest.fixture(scope="module")
def recorder(tmp_path_factory):
    """A compiler that writes its arguments into the file `calls` beside it.

    `cache` beside it has its precompiled headers and what torch tried out, for all tests.
    """
    path = tmp_path_factory.mktemp("compiler") / "recorder"
    path.write_text(f'#!/bin/sh\necho "$@" >> {path.with_name("calls")}\nexec g++ "$@"\n')
    path.chmod(0o755)
    return path


@needs_compiler
@pytest.mark.parametrize(
    "name", ["low-rank layers", pytest.param("tied weights", marks=pytest.mark.slow)]
)
def test_compiled_products_are_those_of_the_plain_model(name, monkeypatch, recorder):
    cache = recorder.with_name("cache") / "compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    model, loss, batch_of = of_the_zoo(name)
    with torch._inductor.config.patch("cpp.cxx", (None, str(recorder))):
        for seed in (1, 2):
            choice, error = product_and_error(model, loss, batch_of(seed), hvp="compiled")
            assert error < EXACT and choice.product == "compiled", choice.reason
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache) and any(cache.rglob("*.so"))


@needs_compiler
def test_a_disk_that_is_full_when_something_is_to_be_kept(monkeypatch, tmp_path):
    import torch._inductor.codecache as codecache

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(codecache, "write_atomic", full)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = nn.Sequential(nn.Linear(3, 5), nn.Sigmoid(), nn.Linear(5, 2)).double()
    assert_falls_to_the_graph(model, "No space left on device")


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables", [{"CXX": "/nowhere/g++"}, {"PATH": "/nowhere", "CXX": ""}], ids=["CXX", "PATH"]
)
def test_without_a_compiler_the_graph_is_run_as_it_is(variables, tmp_path):
    assert_fell_to_the_graph(results_of(started(tmp_path, **variables)), "compiler")


def test_without_a_compiler_the_graph_is_run_as_it_is_in_this_process(monkeypatch, tmp_path):
    from torch._inductor.cpp_builder import cpp_compiler_search

    monkeypatch.setenv("LANDSCAPE_CACHE", str(tmp_path))
    cpp_compiler_search.cache_clear()
    with torch._inductor.config.patch("cpp.cxx", ("/nowhere/g++",)):
        assert_falls_to_the_graph(perceptron(), "compiler")


@needs_compiler
@pytest.mark.parametrize("num_processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_processes_may_fill_one_cache_and_another_uses_it(num_processes, tmp_path, recorder):
    log, cache = recorder.with_name("calls"), tmp_path / "cache"
    if recorder.with_name("cache").exists():
        shutil.copytree(recorder.with_name("cache"), cache)
    log.write_text("")
    for process in [started(cache, CXX=str(recorder)) for _ in range(num_processes)]:
        assert [result["product"] for result in results_of(process)] == ["compiled"] * 2
    assert log.read_text().count(" -c ") + log.read_text().count("-shared") > 0
    log.write_text("")
    results = results_of(started(cache, CXX=str(recorder)))
    assert [result["product"] for result in results] == ["compiled"] * 2
    assert not [line for line in log.read_text().splitlines() if ".cpp" in line]


@needs_compiler
@pytest.mark.slow
def test_a_process_survives_that_its_cache_is_spoilt(tmp_path, recorder):
    cache = tmp_path / "cache"
    assert [result["product"] for result in results_of(started(cache, CXX=str(recorder)))] == [
        "compiled"
    ] * 2
    # The beginnings of files alone: code that is spoilt in its middle may end a process.
    spoilt = [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size]
    for path in spoilt:
        with path.open("r+b") as file:
            file.write(b"\0" * min(64, path.stat().st_size))
    assert any(path.suffix == ".so" for path in spoilt) and len(spoilt) > 5
    for result in results_of(started(cache, CXX=str(recorder))):
        assert result["product"] == "compiled" or (
            result["trials"][0][0] == "compiled" and result["trials"][0][1]
        )
