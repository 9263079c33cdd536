"""The examples in the docstrings of the public names print what they say."""

import doctest
import inspect
import shutil
import types

import pytest

import landscape
from tests.helpers.folders import SMALL_STORE

PUBLIC = {
    name: value
    for name in landscape.__all__
    if not isinstance(value := getattr(landscape, name), str | types.ModuleType)
}
# They need several processes; docs/sharded.md has a program that its own tests run.
WITHOUT = {"ShardedHessianOperator", "ShardedFiniteDifferenceOperator"}


def examples_of(name: str) -> doctest.DocTest:
    text = inspect.getdoc(PUBLIC[name]) or ""
    return doctest.DocTestParser().get_doctest(text, {}, name, None, 0)


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - WITHOUT))
def test_every_public_name_has_an_example_that_prints_what_it_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(SMALL_STORE, tmp_path)
    test = examples_of(name)
    printed = [example for example in test.examples if example.want]
    assert printed, f"{name} has no example with output"
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(
        test, out=said.append
    )
    assert result.failed == 0, "".join(said)
