"""Serve a page on which a trained run draws captions and answers questions about pictures.

    python -m pipelines.page RUN [--port 7860] [--host 127.0.0.1] [key=value ...]

Examples:
    python -m pipelines.page runs/demo_unified
    python -m pipelines.page runs/demo_unified --port 8000 hardware.accelerator=cpu

Only this machine can open the page, unless --host says otherwise. It needs the extra `.[page]`.
"""

import argparse
from pathlib import Path

from pipelines.run.console import run_verb, say, split_overrides

PORT = 7860


def main() -> None:
    """Parse the command line and serve until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="a run folder, a checkpoint, an exported folder, or a YAML file"
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: anyone who reaches this machine may use it")
    arguments, rest = parser.parse_known_args()
    overrides = split_overrides(parser, rest)
    # imported here to keep --help fast; it tells a wrong word before torch is loaded
    from pipelines.run.words import check_trained

    check_trained(arguments.run, overrides)
    serve(arguments.run, overrides, arguments.host, arguments.port)


def serve(run: Path, overrides: list[str], host: str, port: int) -> None:
    """Load the run and serve its page.

    Raises:
        ValueError: gradio is not installed, or the address cannot be served.
    """
    from pipelines.page.server import open_socket, require_gradio
    from pipelines.page.server import serve as serve_page
    from pipelines.run.trained import load_trained, trained_config

    # all of it is checked before the weights are loaded, which may take minutes
    require_gradio()
    config = trained_config(run, overrides)
    with open_socket(host, port) as socket:
        trained = load_trained(run, overrides, draws=bool(config.model.vq))
        serve_page(trained, socket, say)


if __name__ == "__main__":
    run_verb(main)
