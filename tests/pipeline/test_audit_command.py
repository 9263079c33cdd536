"""`landscape audit`, and what `landscape spectra` and `landscape figure` do with a verdict."""

import pytest

from landscape.clip import trained as trained_module
from landscape.clip.model import build_model
from landscape.manifest import Manifest
from landscape.pipeline.audit import stored_verdict
from landscape.pipeline.spectra_output import known_series
from landscape.store import SpectrumStore
from tests.curvature.test_audit import OnceSine
from tests.helpers.spectra_study import make_study
from tests.pipeline.test_pipeline import invoke


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path, epochs=(0, 1), names=("one",))


@pytest.fixture
def spoiled_models(monkeypatch):
    def build(name, **options):
        model = build_model(name, **options)
        model.visual.ln_post.forward = lambda x: OnceSine.apply(x)
        return model

    monkeypatch.setattr(trained_module, "build_model", build)


def audits(output):
    with SpectrumStore.open(output) as store:
        return [store.records("one", epoch).extras["audit"] for epoch in store.epochs("one")]


def test_a_manifest_is_audited_at_its_last_checkpoint(study):
    result = invoke("audit", study)
    assert result.exit_code == 0, result.output
    assert (
        "one (tiny_vit), epoch 1" in result.stdout
        and "symmetry" in result.stdout
        and "failed" not in result.stdout
    )


def test_a_failed_audit_names_the_module_and_exits_with_1(study, spoiled_models):
    result = invoke("audit", study)
    assert result.exit_code == 1 and "visual.ln_post" in result.stdout.replace("\n", "")


def test_wrong_input_exits_with_2(tmp_path):
    for target in (tmp_path / "none.yaml", "no_such_model"):
        result = invoke("audit", target)
        assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1


def test_spectra_store_the_verdict_and_do_not_repeat_the_audit(study, tmp_path):
    output = tmp_path / "out.h5"
    assert invoke("spectra", study, "-o", output).exit_code == 0

    def known():
        (series,) = Manifest.load(study).series
        told = known_series(output, [series])["one"]
        return stored_verdict(series, told.verdicts, told.last_digest)

    assert known() == audits(output)[0]
    # Weights that the audit has not seen are audited anew.
    (tmp_path / "one_1.pt").write_bytes((tmp_path / "one_0.pt").read_bytes())
    assert known() is None
    for verdict in audits(output):
        assert verdict["passed"] and verdict["epoch"] == 1 and 0 <= verdict["worst_error"] < 0.1


def test_a_failed_audit_refuses_before_anything_is_written(study, tmp_path, spoiled_models):
    result = invoke("spectra", study, "-o", tmp_path / "out.h5")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    for fragment in ("visual.ln_post", "landscape audit", "--unaudited"):
        assert fragment in result.stderr
    assert not list(tmp_path.glob("out.h5*"))


def test_unaudited_records_are_marked_and_their_figure_is_stamped(study, tmp_path):
    output = tmp_path / "out.h5"
    assert invoke("spectra", study, "-o", output, "--unaudited").exit_code == 0
    assert not any(verdict["passed"] for verdict in audits(output))
    assert invoke("figure", output, "-o", tmp_path / "figure.svg").exit_code == 0
    assert "NOT AUDITED" in (tmp_path / "figure.svg").read_text()


def test_an_audited_figure_is_not_stamped(study, tmp_path):
    output = tmp_path / "out.h5"
    invoke("spectra", study, "-o", output)
    assert invoke("figure", output, "-o", tmp_path / "figure.svg").exit_code == 0
    assert "NOT AUDITED" not in (tmp_path / "figure.svg").read_text()


def test_products_by_differences_measure_what_has_first_derivatives_only(
    study, tmp_path, spoiled_models
):
    output = tmp_path / "out.h5"
    result = invoke("spectra", study, "-o", output, "--hvp", "finite-difference")
    assert result.exit_code == 0, result.output
    with SpectrumStore.open(output) as store:
        assert "central differences" in store.records("one", 0).settings["product"]
    assert (
        invoke(
            "spectra",
            study,
            "-o",
            tmp_path / "o.h5",
            "--hvp",
            "finite-difference",
            "--method",
            "pyhessian",
        ).exit_code
        == 2
    )
