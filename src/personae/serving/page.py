"""The web page, a folder of static files beside this file, and Plotly's script from the installed package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parent / "page"


def mount_page(app: FastAPI, folder: Path = FOLDER) -> None:
    """Serve ``index.html`` at ``/``, its files at ``/page/`` and Plotly at ``/plotly.min.js``, if there is a page."""
    if not (folder / "index.html").is_file():
        return
    plotly = Path(str(files("plotly") / "package_data" / "plotly.min.js"))

    @app.get("/", include_in_schema=False)
    def index() -> FileResponse:
        return FileResponse(folder / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/plotly.min.js", include_in_schema=False)
    def script() -> FileResponse:
        return FileResponse(plotly, media_type="text/javascript", headers={"Cache-Control": "max-age=86400"})

    app.mount("/page", StaticFiles(directory=folder), name="page")
