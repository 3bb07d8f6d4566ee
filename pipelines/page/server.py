"""Serves the page: loopback alone unless told otherwise, and nothing from anywhere else."""

import errno
import os
import re
import signal
import socket
import tempfile
from collections.abc import Callable, Collection
from contextlib import suppress
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pipelines.run.trained import Trained

LARGEST_UPLOAD = "50mb"
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'"
"""A browser then loads nothing from another address, whatever a release of Gradio may ask for."""
LEAVE_SECONDS = 2


def require_gradio() -> None:
    """Raise ValueError if Gradio is not installed. It is not imported yet: it reads the environment when it is."""
    if find_spec("gradio") is None:
        raise ValueError("the page needs gradio, which is not installed: pip install '.[page]'")


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at ``host`` and ``port``; port 0 takes any that is free.

    Raises:
        ValueError: the port is in use, or the address is not one of this machine.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"--port {port} must lie in [0, 65535]")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except socket.gaierror as error:
        raise ValueError(f"--host {host} is no address ({error}); leave it out to serve this machine alone") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"port {port} of {host} is in use; name another, for example --port {port + 1}") from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise ValueError(f"--host {host} is no address of this machine; 0.0.0.0 means all it has") from error
        if error.errno == errno.EACCES:
            raise ValueError(f"port {port} is for the system; name one above 1023, for example --port 7860") from error
        raise


def serve(trained: Trained, listening: socket.socket, say: Callable[[str], None]) -> None:
    """Serve the page of ``trained`` until Ctrl-C or TERM; uploads and pictures are deleted at the end."""
    import uvicorn

    with tempfile.TemporaryDirectory(prefix="omnimamba-page-") as folder:
        app = build_app(trained, Path(folder), listening)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=LEAVE_SECONDS)
        # uvicorn stops at both signals, and then raises them again: as Ctrl-C, so that the folder is deleted
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        say(f"{trained.folder} at http://{_address(listening)} (Ctrl-C ends it)")
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def build_app(trained: Trained, folder: Path, listening: socket.socket) -> Any:
    """The web application; it keeps its files in ``folder``."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder)}
    import gradio as gr
    from fastapi import FastAPI

    from pipelines.page.examples import examples_of
    from pipelines.page.layout import CSS, build
    from pipelines.run.scores import scores_of

    page = build(trained, examples_of(trained.config, folder), scores_of(trained.folder, trained.step))
    page.has_launched = True  # otherwise Gradio would read any file of this machine that a client names
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    host = listening.getsockname()[0]
    # a page from elsewhere could give its own name our address, and then speak to us through the user's browser
    names = {host, f"[{host}]", "localhost"} if ip_address(host).is_loopback else set()
    app.add_middleware(Confined, names=names)
    fonts = ["system-ui", "sans-serif"]
    return gr.mount_gradio_app(
        app,
        page,
        path="",
        theme=gr.themes.Default(font=fonts, font_mono=["monospace"]),
        css=CSS,
        footer_links=[],
        show_error=False,
        max_file_size=LARGEST_UPLOAD,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )


class Confined:
    """Answers to its own names alone. Adds to every response that browsers load nothing from elsewhere."""

    def __init__(self, app: Any, names: Collection[str]) -> None:
        """``names``: those of the host, without the port; none: any."""
        self.app, self.names = app, names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""

        async def confined(message: Any) -> None:
            if message["type"] == "http.response.start":
                found = [*message.get("headers", []), (b"content-security-policy", POLICY.encode())]
                message = {**message, "headers": [*found, (b"referrer-policy", b"no-referrer")]}
            await send(message)

        from starlette.responses import PlainTextResponse

        if self.names and scope["type"] != "lifespan":
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if re.sub(r":\d+$", "", host) not in self.names:
                await PlainTextResponse("this page answers to its own name alone", 400)(scope, receive, send)
                return
        await self.app(scope, receive, confined)


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if listening.family == socket.AF_INET6 else f"{host}:{port}"
