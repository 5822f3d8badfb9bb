# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's web application with clear answers to mistakes, and the call for similar cases."""

from __future__ import annotations

import json
import logging
from typing import Annotated

from fastapi import Depends, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from monailabel.app import app
from monailabel.config import RBAC_USER, settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.utils.app import app_instance

__all__ = ["app"]

logger = logging.getLogger(__name__)

# MONAI Label lets pages of any origin read what the server answers, so any page that an annotator opens could read the
# images. Clients that are no pages (3D Slicer) and pages of the same origin need no such permission.
app.user_middleware = [one for one in app.user_middleware if one.cls is not CORSMiddleware]


def _answer(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status_code=status)


@app.exception_handler(MONAILabelException)
async def _refused(_: Request, error: MONAILabelException) -> JSONResponse:
    return _answer(400, str(error.msg))


@app.exception_handler(json.JSONDecodeError)
async def _no_json(_: Request, error: json.JSONDecodeError) -> JSONResponse:
    return _answer(400, "params is no JSON")


@app.exception_handler(ValueError)
async def _wrong(_: Request, error: ValueError) -> JSONResponse:
    return _answer(400, str(error))


@app.exception_handler(OSError)
async def _missing(_: Request, error: OSError) -> JSONResponse:
    logger.exception("a request failed")
    return _answer(500, str(error) if error.errno is None else "a file could not be read or written; see the log")


_Reader = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))]


@app.get("/similar", tags=["Others"], summary=f"{RBAC_USER}Images most like one of the studies")
async def similar(image: str, user: _Reader, num: int = 5) -> dict:
    """Return the ids of the images most like one, with the cosines of their features."""
    return {"image": image, "similar": app_instance().similar(image, num)}
