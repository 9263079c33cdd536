"""A whole study as one HTML page that needs no network: charts, tables, certificates, provenance.

Opens no store and writes no file: `render` takes a `Study` and returns the page. jinja2 is imported when a page is made.
"""

from landscape.report.page import render
from landscape.report.study import Study

__all__ = ["Study", "render"]
