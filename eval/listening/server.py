"""The server of a listening test: one page, its style and script, and seven requests.

A listener's token is part of the link's fragment, which browsers send to no server; the page sends it in a
header. So it is in no log, and no other site can act in a listener's name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Header, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...core.errors import UserError
from . import session
from .database import Database, Result, Work
from .definition import database_path, stimuli_folder
from .questions import storage_notice
from .session import Answer, ListeningTest, Refused, load_test, register

MAX_BODY_BYTES = 16 * 1024
_TOO_LARGE = "The request is too large."
_CHUNK_BYTES = 64 * 1024
_PAGE_FILES = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js", "/player.js": "player.js"}
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}

# Nothing from anywhere else, nothing inline; audio is fetched with the token and played from memory.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; media-src blob:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


ClipId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class CheckBody(_Body):
    """Which of three tones was the quietest, once for each clip; empty if skipped."""

    answers: list[Annotated[int, Field(ge=1, le=3)]] = Field(max_length=10)


class AnswerBody(_Body):
    """One value."""

    clip: ClipId
    attribute: Annotated[str, Field(max_length=64)]
    value: Annotated[float, Field(ge=0.0, le=100.0)]


class RatingBody(_Body):
    """The answers to one trial."""

    trial: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    answers: list[AnswerBody] = Field(max_length=200)
    listened_s: dict[ClipId, Annotated[float, Field(ge=0.0, le=86400.0)]] = Field(max_length=50)


class _Guard:
    """Refuses bodies above `MAX_BODY_BYTES`, and sends the security headers with every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise HTTPException(413, _TOO_LARGE)
            return message

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > MAX_BODY_BYTES:
            await _told(413, _TOO_LARGE)(scope, receive, guarded)
        else:
            await self._app(scope, limited, guarded)


def _told(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"detail": reason}, status, headers={"Cache-Control": "no-store"})


def make_app(test: ListeningTest, database: Database, open_enrolment: bool) -> FastAPI:
    """The application that serves `test` and keeps its answers in `database`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_Guard)
    _add_refusals(app)
    _add_page(app)
    _add_requests(app, test, database, open_enrolment)
    return app


def _add_refusals(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return _told(error.status, error.reason)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        return _told(400, "The request is not of the form that the page sends.")

    @app.exception_handler(sqlite3.Error)
    async def unsaved(request: Request, error: sqlite3.Error) -> Response:
        logging.getLogger("uvicorn.error").error("the database cannot be written: %s", error)
        return _told(503, "This could not be saved. Please try again later.")

    @app.exception_handler(AnyHTTPException)
    async def unknown(request: Request, error: AnyHTTPException) -> Response:
        return _told(error.status_code, str(error.detail))


def _add_page(app: FastAPI) -> None:
    for route, name in _PAGE_FILES.items():
        content = Path(__file__).with_name(name).read_bytes()
        media_type = _MEDIA_TYPES[Path(name).suffix]

        def page(content: bytes = content, media_type: str = media_type) -> Response:
            return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

        app.add_api_route(route, _without_parameters(page), methods=["GET"])


def _without_parameters(page: Any) -> Any:
    async def endpoint() -> Response:
        response: Response = page()
        return response

    return endpoint


def _token(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme != "Bearer" or not re.fullmatch(r"[A-Za-z0-9_-]{10,64}", token):
        raise Refused(401, "This link is not valid. Please use the whole link that you were given.")
    return token


Authorization = Annotated[str | None, Header()]


def _add_requests(app: FastAPI, test: ListeningTest, database: Database, open_enrolment: bool) -> None:
    async def do(work: Work[Result]) -> Result:
        return await asyncio.wrap_future(database.submit(work))

    def fresh(content: dict[str, Any]) -> Response:
        return JSONResponse(content, headers={"Cache-Control": "no-store"})

    @app.get("/api/test")
    async def about() -> Response:
        definition = test.definition
        return fresh(
            {
                "name": definition.name,
                "method": definition.method,
                "introduction": definition.introduction,
                "storage": storage_notice(definition),
                "minutes": session.estimated_minutes(test),
                "open": open_enrolment,
            }
        )

    @app.post("/api/enrol")
    async def enrol() -> Response:
        if not open_enrolment:
            raise Refused(403, "This test is by invitation. Please use the link that you were given.")
        return fresh({"token": await do(lambda connection: session.enrol(connection, test))})

    @app.post("/api/consent")
    async def consent(authorization: Authorization = None) -> Response:
        token = _token(authorization)

        def work(connection: Any) -> dict[str, Any]:
            session.consent(connection, test, token)
            return session.state(connection, test, token)

        return fresh(await do(work))

    @app.get("/api/state")
    async def state(authorization: Authorization = None) -> Response:
        token = _token(authorization)
        return fresh(await do(lambda connection: session.state(connection, test, token)))

    @app.post("/api/check")
    async def check(body: CheckBody, authorization: Authorization = None) -> Response:
        token = _token(authorization)

        def work(connection: Any) -> dict[str, Any]:
            session.check(connection, test, token, body.answers)
            return session.state(connection, test, token)

        return fresh(await do(work))

    @app.post("/api/ratings")
    async def rate(body: RatingBody, authorization: Authorization = None) -> Response:
        token = _token(authorization)
        answers = [Answer(answer.clip, answer.attribute, answer.value) for answer in body.answers]

        def work(connection: Any) -> dict[str, Any]:
            session.rate(connection, test, token, body.trial, answers, body.listened_s)
            return session.state(connection, test, token)

        return fresh(await do(work))

    @app.get("/api/audio/{clip}")
    async def audio(clip: str, request: Request, authorization: Authorization = None) -> Response:
        token = _token(authorization)
        stimulus = await do(lambda connection: session.audio_of(connection, test, token, clip))
        return _audio(stimuli_folder(test.path) / f"{stimulus.id}.wav", clip, request)


# --------------------------------------------------------------------------------------------- audio


def _audio(path: Path, clip: str, request: Request) -> Response:
    """The file, or the range of it that was asked for.

    Neither its name nor its time goes out, and the tag is the clip's: two clips of one file look different.
    """
    size, tag = path.stat().st_size, f'"{clip}"'
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=86400, immutable",
        "ETag": tag,
        "Vary": "Authorization",
    }
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    wanted = request.headers.get("range")
    if wanted is None or request.headers.get("if-range", tag) != tag:
        headers["Content-Length"] = str(size)
        return StreamingResponse(_chunks(path, 0, size), 200, headers, "audio/wav")
    span = parse_range(wanted, size)
    if span is None:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{size}"})
    start, stop = span
    headers |= {"Content-Length": str(stop - start), "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    return StreamingResponse(_chunks(path, start, stop), 206, headers, "audio/wav")


def parse_range(wanted: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last of a single range; None if it is none, or outside the file."""
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", wanted)
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1 if last else size)
    return (start, stop) if start < stop else None


async def _chunks(path: Path, start: int, stop: int) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while start < stop:
            chunk = file.read(min(_CHUNK_BYTES, stop - start))
            if not chunk:
                return
            start += len(chunk)
            yield chunk


# --------------------------------------------------------------------------------------------- serving


@contextlib.contextmanager
def listen_on(host: str, port: int) -> Iterator[socket.socket]:
    """A socket bound to `host` and `port` (0: any that is free); raises `UserError` if that cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"{host}:{port} cannot be served on: {error.strerror}") from error
    with bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except OSError as error:
            reason = (error.strerror or "unknown").lower()
            raise UserError(f"{host}:{port} cannot be served on: {reason}; choose another --port") from error
        bound.listen(2048)  # who comes now waits until the server runs
        yield bound


def serve(path: Path, host: str, port: int, invitations: int | None, url: str | None) -> None:
    """Serve the test defined in `path` until interrupted; prints the links.

    Without `invitations` anybody who reaches the page can take part. With a number, only those who have a
    link can, and so many new links are printed first; `url` is how they begin.
    """
    test = load_test(path)
    with listen_on(host, port) as bound, Database(database_path(path)) as database:
        database.submit(lambda connection: register(connection, test)).result()
        base = (url or _address(bound)).rstrip("/") + "/"
        for _ in range(invitations or 0):
            print(f"{base}#{database.submit(session.invite).result()}")
        app = make_app(test, database, open_enrolment=invitations is None)
        who = "anybody who reaches it" if invitations is None else "invited listeners"
        print(f"{base} is open to {who}; Ctrl-C ends it", flush=True)
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        config = uvicorn.Config(
            app,
            access_log=False,
            server_header=False,
            log_level="warning",
            lifespan="off",
            proxy_headers=False,
            timeout_keep_alive=75,  # longer than a clip and a thought, or each answer would connect anew
        )
        uvicorn.Server(config).run(sockets=[bound])


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
