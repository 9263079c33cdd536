"""Which checkpoints of a series are audited before it is measured, and what is stored of it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from landscape.curvature.audits import WHOLE, ZERO_TO_ROUNDING, AuditReport, AuditRow
from landscape.errors import ManifestError, ObjectiveError
from landscape.manifest import Checkpoint
from landscape.pipeline import audit, spectra_output

PASSED = AuditReport((AuditRow(WHOLE, "gradient", 1e-9, "passed"),), torch.float64, 0, 0)
FAILED = AuditReport(
    (AuditRow("visual (Scan)", "product", 0.3, "failed", "wrong"),), torch.float32, 0, 0
)
ZERO = AuditReport(
    (AuditRow(WHOLE, "gradient", 0.5, "undecided", ZERO_TO_ROUNDING),), torch.float64, 0, 0
)
MANIFEST = SimpleNamespace(path=Path("study.yaml"), hessian=SimpleNamespace(method="slq", seed=0))


class Subject:
    """Loads checkpoints of no weights, each with the report that its audit gives."""

    def __init__(self, **reports):
        self.reports, self.loaded = reports, []

    def load(self, checkpoint):
        self.loaded.append(checkpoint.epoch)
        return SimpleNamespace(sha256=f"digest of {checkpoint.epoch}")

    def report(self):
        return self.reports.get(f"at_{self.loaded[-1]}", self.reports["report"])

    def verdict(self, *, unaudited=False, hvp="double-backward", num_epochs=5):
        checkpoints = [
            Checkpoint(epoch=epoch, path=Path(f"{epoch}.pt")) for epoch in range(num_epochs)
        ]
        series = SimpleNamespace(name="one", model="tiny", checkpoints=checkpoints)
        return audit.verdict_of(self, MANIFEST, series, unaudited=unaudited, hvp=hvp)


@pytest.fixture(autouse=True)
def gone(monkeypatch):
    """The epochs without a file; audits give what the subject says."""
    epochs = set()
    monkeypatch.setattr(audit, "is_gone", lambda checkpoint: checkpoint.epoch in epochs)
    monkeypatch.setattr(audit, "audit_series", lambda subject, hessian: subject.report())
    return epochs


def test_the_last_checkpoint_is_audited_and_its_digest_is_stored():
    subject = Subject(report=PASSED)
    assert subject.verdict() == {
        "passed": True,
        "worst_error": 1e-9,
        "dtype": "float64",
        "epoch": 4,
        "checkpoint_sha256": "digest of 4",
    }
    assert subject.loaded == [4]


def test_a_perfect_fit_turns_to_the_middle_and_the_first_checkpoint():
    subject = Subject(report=ZERO, at_0=PASSED)
    verdict = subject.verdict()
    assert verdict["passed"] and verdict["epoch"] == 0 and subject.loaded == [4, 2, 0]
    subject = Subject(report=ZERO, at_2=PASSED)
    assert subject.verdict()["epoch"] == 2 and subject.loaded == [4, 2]


def test_a_series_of_perfect_fits_is_measured_and_marked():
    verdict = Subject(report=ZERO).verdict()
    assert not verdict["passed"] and verdict["reason"] == f"undecided: {ZERO_TO_ROUNDING}"
    assert verdict["checkpoint_sha256"] == "digest of 0"


def test_a_failed_audit_ends_the_run_at_once_with_what_to_do():
    subject = Subject(report=FAILED)
    with pytest.raises(
        ObjectiveError,
        match=r"series 'one' \(tiny\): the audit failed for visual \(Scan\) "
        r"\(test of the product\).*--unaudited",
    ):
        subject.verdict()
    assert subject.loaded == [4]


def test_a_fault_behind_a_perfect_fit_is_no_pass():
    with pytest.raises(ObjectiveError, match="the audit failed"):
        Subject(report=ZERO, at_2=FAILED).verdict()


def test_unaudited_series_and_products_by_differences_are_not_audited():
    subject = Subject(report=FAILED)
    assert subject.verdict(unaudited=True) == {
        "passed": False,
        "reason": "not audited, by --unaudited",
    }
    verdict = subject.verdict(hvp="finite-difference")
    assert (
        verdict["passed"] and "differences of the loss" in verdict["reason"] and not subject.loaded
    )
    assert subject.verdict(hvp="finite-difference", unaudited=True) == verdict


def test_checkpoints_that_are_gone_are_not_turned_to_unless_all_are(gone):
    gone |= {3, 4}
    subject = Subject(report=ZERO)
    subject.verdict()
    assert subject.loaded == [2, 1, 0]
    gone |= {0, 1, 2}
    subject = Subject(report=PASSED)
    assert subject.verdict()["epoch"] == 4


def test_only_pyhessian_refuses_products_by_differences():
    pyhessian = SimpleNamespace(
        path=Path("study.yaml"), hessian=SimpleNamespace(method="pyhessian")
    )
    with pytest.raises(ManifestError, match="pyhessian takes its own products"):
        audit.check_hvp(pyhessian, "finite-difference")
    audit.check_hvp(pyhessian, "double-backward")
    audit.check_hvp(MANIFEST, "finite-difference")


def test_a_manifest_is_audited_with_the_weights_of_its_last_checkpoints(monkeypatch):
    from landscape.clip import image_text, loaded_series

    subject = Subject(report=PASSED)
    checkpoints = [Checkpoint(epoch=epoch, path=Path(f"{epoch}.pt")) for epoch in (0, 7)]
    series = [
        SimpleNamespace(name=name, model="tiny", checkpoints=checkpoints) for name in ("one", "two")
    ]
    manifest = SimpleNamespace(
        data=None, hessian=SimpleNamespace(objective="contrastive"), series=series
    )
    monkeypatch.setattr(audit.Manifest, "load", lambda path, **options: manifest)
    monkeypatch.setattr(image_text, "open_pairs", lambda data: None)
    monkeypatch.setattr(loaded_series, "device_of", lambda device: torch.device("cpu"))
    monkeypatch.setattr(loaded_series.LoadedSeries, "of", lambda *args, **options: subject)
    assert [audited.title for audited in audit.audit_target("study.YML")] == [
        "one (tiny), epoch 7",
        "two (tiny), epoch 7",
    ]
    assert subject.loaded == [7, 7]
    monkeypatch.setattr(audit, "_audit_model", lambda name, device: (name, device))
    assert list(audit.audit_target("tiny")) == [("tiny", torch.device("cpu"))]


class Store:
    """The verdicts of epochs of one series, without a file."""

    def __init__(self, **verdicts):
        self.verdicts = verdicts

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def series(self):
        return ["one"]

    def epochs(self, name):
        return range(len(self.verdicts[name]))

    def records(self, name, epoch):
        return SimpleNamespace(extras={"audit": self.verdicts[name][epoch]}, settings={})

    def stored(self):
        return {("one", 3): "b" * 64}


@pytest.mark.parametrize(
    "sha256, digest", [("a" * 64, "a" * 64), (None, "b" * 64)], ids=["listed", "stored"]
)
def test_a_stored_verdict_holds_where_it_passed_on_the_weights_that_are_listed(
    sha256, digest, monkeypatch, tmp_path
):
    # A digest that is listed is believed here: the file is read when it is loaded.
    path = tmp_path / "3.pt"
    if sha256:
        path.write_bytes(b"other weights")
    last = Checkpoint(epoch=3, path=path, sha256=sha256)
    series = SimpleNamespace(name="one", checkpoints=[last])
    passed, other = ({"passed": True, "checkpoint_sha256": one} for one in (digest, "c" * 64))

    def known(*verdicts):
        monkeypatch.setattr(
            spectra_output.SpectrumStore, "open", lambda output: Store(one=verdicts)
        )
        told = spectra_output.known_series(Path("out.h5"), [series])["one"]
        return audit.stored_verdict(series, told.verdicts, told.last_digest)

    assert known(passed, other) == passed
    assert known(other) is None
    assert (
        known({**passed, "passed": False}, {"passed": True, "product": "finite-difference"}) is None
    )
