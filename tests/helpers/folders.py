"""Folders that tests read from."""

from pathlib import Path

HELPERS = Path(__file__).parent
TESTS = HELPERS.parent
ROOT = TESTS.parent
EXPERIMENTS = ROOT / "experiments"
SMALL_STORE = EXPERIMENTS / "figure3" / "small" / "spectra.h5"
# Facts and trial data beside the repository; tests that need them are skipped without.
SHARED = ROOT.resolve().parent / "shared"
