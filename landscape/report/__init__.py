"""A whole study as one HTML page: charts, tables, certificates, provenance.

The page needs no network. This room opens no store and writes no file: `render` takes a `Study` and
returns the page. jinja2 is imported when a page is made.
"""

from landscape.report.page import render
from landscape.report.study import Study

__all__ = ["Study", "render"]
