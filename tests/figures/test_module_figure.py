"""`landscape figure --kind modules`: from stored spectra of modules to the values in the heat
map.
"""

import base64
import re

import numpy as np
import pytest

from landscape.errors import StoreError
from landscape.figures import modules_from_store as module_figure
from landscape.pipeline import draw_modules, write_report
from landscape.store import SpectrumWriter
from tests.helpers.browser import chromium, set_width
from tests.helpers.store_records import manifest_of
from tests.pipeline.test_module_spectra import MODULES, digest_of, fill, modules_record
from tests.pipeline.test_pipeline import invoke

BATCHES = 3


@pytest.fixture
def store(tmp_path):
    """One series whose modules have the largest eigenvalue 10 (module + 1) + batch + 100 epoch, all
    within the tolerance of 1e-3 but that of module 1 in batch 2, and those of module 2 at the last
    epoch in every batch.
    """
    manifest = manifest_of(tmp_path, epochs=(0, 2), num_batches=BATCHES)
    path = tmp_path / "spectra.h5"
    with SpectrumWriter(path, manifest) as writer:
        for key in writer.plan.keys():
            _, epoch, batch = key.split("/")
            template = modules_record(key)
            largest, residuals = template.largest.copy(), np.full_like(template.largest, 1e-6)
            largest[:, 0] = 10.0 * np.arange(1, 4) + int(batch) + 100 * int(epoch)
            if batch == "2":
                largest[1, 0], residuals[1, 0] = 1e6, 0.5
            if epoch == "2":
                residuals[2, 0] = 0.5
            changes = {"largest": largest, "largest_residuals": residuals}
            writer.add_modules(
                modules_record(key, checkpoint_sha256=digest_of(manifest, key), **changes)
            )
        writer.merge()
    return path


@pytest.fixture
def drawn(monkeypatch):
    figures = []
    monkeypatch.setattr(module_figure, "save_figure", lambda fig, path: figures.append(fig))
    return figures


def note_of(fig):
    return " ".join(text.get_text() for text in fig.texts).replace("\n", " ")


def test_values_are_medians_over_the_batches_that_met_the_tolerance(store, tmp_path, drawn):
    said = draw_modules(store, tmp_path / "modules.png")
    assert "with 3 modules at epochs 0, 2" in said
    image = drawn[0].axes[0].images[0].get_array()
    # Rows are modules, columns epochs. Module 1 is the median of two batches; module 2 has none
    # left at epoch 2.
    np.testing.assert_array_equal(image.filled(-1), [[11, 211], [20.5, 220.5], [31, -1]])
    assert [text.get_text() for text in drawn[0].axes[0].get_yticklabels()] == list(MODULES)
    (hatched,) = drawn[0].axes[0].patches
    assert hatched.get_hatch() and hatched.get_xy() == (0.5, 1.5)
    num_series = len(drawn[0].axes) - 1
    assert f"Left out: {num_series * (2 + BATCHES)} of {num_series * 18} values" in note_of(
        drawn[0]
    )


def test_values_without_a_certificate_are_drawn_on_request_and_counted(store, tmp_path, drawn):
    draw_modules(store, tmp_path / "modules.png", keep_unconverged=True, epochs=[2])
    np.testing.assert_array_equal(
        drawn[0].axes[0].images[0].get_array().filled(-1), [[211], [221], [231]]
    )
    assert "Drawn: " in note_of(drawn[0]) and not drawn[0].axes[0].patches


def test_unaudited_spectra_are_stamped(tmp_path, drawn):
    manifest = manifest_of(tmp_path, epochs=(0,), num_batches=1)
    with SpectrumWriter(tmp_path / "x.h5", manifest) as writer:
        for key in writer.plan.keys():
            facts = {
                "checkpoint_sha256": digest_of(manifest, key),
                "extras": {"audit": {"passed": False, "reason": "no"}},
            }
            values = np.abs(modules_record(key).largest)
            writer.add_modules(
                modules_record(key, largest=values, largest_residuals=0 * values, **facts)
            )
        writer.merge()
    draw_modules(tmp_path / "x.h5", tmp_path / "modules.png")
    assert "NOT AUDITED" in note_of(drawn[0])


def test_a_store_without_spectra_of_modules_says_how_to_get_them(tmp_path):
    manifest = manifest_of(tmp_path)
    with SpectrumWriter(tmp_path / "x.h5", manifest) as writer:
        fill(writer, manifest, modules=False)
        writer.merge()
    with pytest.raises(StoreError, match="--per-module"):
        draw_modules(tmp_path / "x.h5", tmp_path / "modules.png")


def test_the_command_draws_them_and_refuses_what_it_cannot(store, tmp_path):
    for suffix in ("png", "pdf", "svg"):
        assert (
            invoke(
                "figure", store, "--kind", "modules", "-o", tmp_path / f"modules.{suffix}"
            ).exit_code
            == 0
        )
        assert (tmp_path / f"modules.{suffix}").stat().st_size > 1000
    result = invoke("figure", store, "--kind", "modules", "-o", tmp_path / "x.png", "--epochs", "7")
    assert result.exit_code == 2 and "of epochs 7" in result.stderr
    assert invoke("figure", store, "--kind", "modules", "-o", tmp_path / "x.docx").exit_code == 2
    assert not list(tmp_path.glob("x.*"))


def test_the_page_of_a_study_holds_the_same_picture_and_none_without_modules(tmp_path):
    manifest = manifest_of(tmp_path)
    pages = {}
    for modules in (False, True):
        path = tmp_path / f"{modules}.h5"
        with SpectrumWriter(path, manifest) as writer:
            fill(writer, manifest, modules=modules)
            writer.merge()
        write_report(path, tmp_path / f"{modules}.html", keep_unconverged=True, num_resamples=99)
        pages[modules] = (tmp_path / f"{modules}.html").read_text()
    draw_modules(tmp_path / "True.h5", tmp_path / "modules.svg", keep_unconverged=True)
    (picture,) = re.findall(
        r'<img class="picture" width="\d+" src="data:image/svg\+xml;base64,([^"]+)"', pages[True]
    )
    assert base64.b64decode(picture) == (tmp_path / "modules.svg").read_bytes()
    assert "Sharpness of modules" in pages[True] and "Sharpness of modules" not in pages[False]


@pytest.mark.browser
def test_a_browser_shows_the_picture_and_a_phone_scrolls_it_alone(tmp_path):
    manifest = manifest_of(tmp_path)
    with SpectrumWriter(tmp_path / "spectra.h5", manifest) as writer:
        fill(writer, manifest)
        writer.merge()
    write_report(
        tmp_path / "spectra.h5", tmp_path / "page.html", keep_unconverged=True, num_resamples=99
    )
    with chromium(tmp_path) as driver:
        set_width(driver, 390)
        driver.get((tmp_path / "page.html").as_uri())
        size = (
            "const one = document.querySelector('.picture'); return [one.complete, "
            "one.naturalWidth, one.clientWidth]"
        )
        complete, natural, shown = driver.execute_script(size)
        # Text keeps its size: the picture is not squeezed, and nothing but its own frame scrolls.
        assert complete and shown > natural > 300
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
        assert not driver.get_log("browser")
