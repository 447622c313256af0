"""The web page, a folder of static files beside this file, and Plotly's script from the installed package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent / "page"
_FRESH = {"Cache-Control": "no-cache"}  # asked for each time: after an upgrade no old file meets a new one


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        reply = await super().get_response(path, scope)
        reply.headers.update(_FRESH)
        return reply


def mount_page(app: FastAPI, folder: Path = FOLDER) -> None:
    """Serve ``index.html`` at ``/``, its files at ``/page/`` and Plotly at ``/plotly.min.js``, if there is a page."""
    if not (folder / "index.html").is_file():
        return
    plotly = Path(str(files("plotly") / "package_data" / "plotly.min.js"))

    @app.get("/", include_in_schema=False)
    def index() -> FileResponse:
        return FileResponse(folder / "index.html", headers=_FRESH)

    @app.get("/plotly.min.js", include_in_schema=False)
    def script() -> FileResponse:
        return FileResponse(plotly, media_type="text/javascript", headers={"Cache-Control": "max-age=86400"})

    app.mount("/page", _Files(directory=folder), name="page")
