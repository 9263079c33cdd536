"""Text of one HTML page, made from a study.

Equal studies give equal texts.
"""

from base64 import b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from landscape.errors import StoreError
from landscape.figures.module_map import MAX_PANELS, module_heat_map
from landscape.figures.style import MAX_SERIES, line_styles, svg_of
from landscape.report.accuracy_charts import accuracy_charts
from landscape.report.accuracy_tables import accuracy_texts
from landscape.report.chart import Chart, dash_of
from landscape.report.epoch_charts import metric_charts
from landscape.report.spectrum_charts import density_chart, spectrum_chart
from landscape.report.study import Study
from landscape.report.tables import (
    audit_table,
    batch_table,
    certificate_table,
    checkpoint_table,
    difference_tables,
    facts,
    number,
    numbers_table,
    trained_table,
)
from landscape.store.table import combined

# Its origin is in the README beside it.
PLOTLY = Path(__file__).parent / "vendor" / "plotly-basic.min.js"
# More than the 96 pixels of an inch on a screen, which is read from farther away than paper.
_PIXELS_PER_INCH = 150


def render(study: Study, *, title: str | None = None, keep_unconverged: bool = False) -> str:
    """Write a study as an HTML page that includes everything.

    The page makes no network request.

    Args:
        title: Heading; by default the name of the store.
        keep_unconverged: Draw the values without a certificate too, as `landscape.figures.figure3`
            does.

    Raises:
        StoreError: If there are more series than distinguishable colours.
    """
    if len(study.series) > MAX_SERIES:
        raise StoreError(
            f"{study.name}: {len(study.series)} series, but more than {MAX_SERIES} curves in a "
            "chart cannot be told apart. Name those that matter with --series."
        )
    styles = dict(zip(study.series, line_styles(), strict=False))
    spectrum, layout = spectrum_chart(study, styles, keep_unconverged=keep_unconverged)
    moving = {"spectrum": spectrum, "density": density_chart(study, styles)}
    over_epochs = metric_charts(study, styles)
    remarks = {
        series: [
            "" if layout is None else _spoken(layout.remark(series, epoch))
            for epoch in study.epochs
        ]
        for series in study.series
    }
    beside = {} if study.accuracy is None else accuracy_charts(study.accuracy, study.labels, styles)
    charts = {
        name: chart
        for name, chart in {**moving, **over_epochs, **beside}.items()
        if isinstance(chart, Chart)
    }
    return (
        _environment()
        .get_template("page.html")
        .render(
            study=study,
            title=title or f"Hessian spectra in {study.name}",
            data={
                "charts": {name: chart.to_json() for name, chart in charts.items()},
                "epochs": [
                    "initialisation" if epoch == 0 else f"epoch {epoch}" for epoch in study.epochs
                ],
                "remarks": remarks,
            },
            series=[
                {"name": name, "label": study.labels[name], "style": styles[name]}
                for name in study.series
            ],
            moving=moving,
            over_epochs=over_epochs,
            beside=beside,
            accuracy=None
            if study.accuracy is None
            else accuracy_texts(study.accuracy, study.labels),
            module_pictures=list(_module_pictures(study)),
            plotly_js=_plotly_js(),
            **_texts(study),
        )
    )


def _module_pictures(study: Study) -> Iterator[tuple[str, int]]:
    """Draw the heat maps of `landscape figure --kind modules`.

    There are four series in each. Yields a data URL that holds the whole picture, and its width in
    pixels.
    """
    for first in range(0, len(study.modules), MAX_PANELS):
        try:
            drawn = module_heat_map(
                study.modules[first : first + MAX_PANELS], note=study.modules_note
            )
        except ValueError:
            # No value to draw; the page says that there is no picture.
            continue
        width = round(_PIXELS_PER_INCH * drawn.get_size_inches()[0])
        yield f"data:image/svg+xml;base64,{b64encode(svg_of(drawn)).decode()}", width


def _spoken(remark: str) -> str:
    """Complete the remark beside the name of a series.

    A share needs to say of what.
    """
    return f"{remark} negative" if remark.endswith("%") else remark


def _texts(study: Study) -> dict[str, Any]:
    """Make tables and facts for the template."""
    hessian = study.plan.protocol["hessian"]
    return {
        "k": hessian["k"],
        "hessian": hessian,
        "worst_residual": number(study.worst_residual, ".1e"),
        "numbers": numbers_table(study),
        "differences": [] if study.comparison is None else difference_tables(study.comparison),
        "certificates": certificate_table(study),
        "audits": audit_table(study),
        "trained": trained_table(study),
        "checkpoints": checkpoint_table(study),
        "batches": batch_table(study),
        "protocol": {section: facts(settings) for section, settings in study.plan.protocol.items()},
        "versions": facts(combined(table.versions for table in study.tables.values())),
        "settings": facts(
            combined(_without_model(table.settings) for table in study.tables.values())
        ),
    }


def _without_model(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out settings that have a table of their own."""
    return {key: value for key, value in settings.items() if key != "as_trained"}


def _environment() -> Any:
    """Open the templates of this room.

    Every text is escaped, since labels come from users.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("landscape.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {
        "sort_keys": True,
        "allow_nan": False,
        "separators": (",", ":"),
    }
    environment.filters["dash_array"] = lambda style: (
        dash_of(style).replace("px", "") if style.dash else "none"
    )
    return environment


def _plotly_js() -> str:
    """Read the library as a text that a script element can hold."""
    return PLOTLY.read_text(encoding="utf-8").replace("</script", r"<\/script")
