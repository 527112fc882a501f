"""The page itself: a tab for everything that one of the given models does, served until Ctrl-C."""

import contextlib
import importlib.util
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from hf_vlm.demo.folders import Ability, look_at_folders
from hf_vlm.demo.serving import OnlyFromHere, free_port

if TYPE_CHECKING:
    import gradio

_MOST_UPLOADED = "64mb"
_LOOK_SECONDS = 0.5  # between looks for a Ctrl-C, which some systems don't deliver to a thread that waits


def build_page(folders: Iterable[str | os.PathLike]) -> "gradio.Blocks":
    """The page for the models in folders; none is loaded before it is used.

    Args:
        folders: folders or Hub names of models and adapters.

    Raises:
        ImportError: if gradio is missing.
        OSError: if a folder is not there.
        ValueError: if there is none, or one holds no model that the page has a tab for.
    """
    models = look_at_folders(folders)
    _check_installed()
    import gradio

    from hf_vlm.demo.loaded_models import LoadedModels
    from hf_vlm.demo.tabs import Tab

    loaded = LoadedModels()
    with gradio.Blocks(title="hf-vlm demo", analytics_enabled=False) as page:
        gradio.HTML("<h1>Try a model</h1>", padding=False)
        with gradio.Tabs():
            for ability in Ability:
                able = [folder for folder in models if folder.does(ability)]
                if able:
                    with gradio.Tab(ability.value):
                        Tab(ability, able, loaded).build()
    return page


def start(page: "gradio.Blocks", *, host: str = "127.0.0.1", port: int | None = None, share: bool = False) -> str:
    """Serve a page from threads of its own, until its `close`; gives back where: `http://HOST:PORT`.

    The browser is told to load nothing from other hosts, and the server asks none, unless `share` asks gradio's.

    Args:
        host: address of this machine to listen on; by default only itself can reach it.
        port: by default the first free one from 7860 on.
        share: whether to open a public address for it at gradio's servers.

    Raises:
        OSError: if the port is in use, or the host is none of this machine.
        ValueError: if it is no port.
    """
    import gradio
    from starlette.middleware import Middleware

    port = free_port(host, port)
    fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    _, local, shared = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=True,
        quiet=True,
        inbrowser=False,
        show_error=True,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        max_file_size=_MOST_UPLOADED,
        app_kwargs={"middleware": [Middleware(OnlyFromHere)]},
        theme=gradio.themes.Default(primary_hue="blue", **fonts),
        css=files("hf_vlm.demo").joinpath("style.css").read_text(encoding="utf-8"),
    )
    return (shared or local).rstrip("/")


def launch(
    folders: Iterable[str | os.PathLike], *, host: str = "127.0.0.1", port: int | None = None, share: bool = False
) -> None:
    """Serve the page of models until Ctrl-C; what was uploaded is then deleted.

    Args:
        folders: as for `build_page`.
        host, port, share: as for `start`.

    Raises:
        ImportError: if gradio is missing.
        OSError: if a folder is not there, the port is in use, or the host is none of this machine.
        ValueError: if there is no folder, one holds no model that the page has a tab for, or it is no port.
    """
    free_port(host, port)  # before gradio's seconds of import
    with tempfile.TemporaryDirectory(prefix="hf-vlm-demo-") as uploads, _uploads_in(uploads):
        page = build_page(folders)
        try:
            print(f"The page is at {start(page, host=host, port=port, share=share)} (Ctrl-C ends it)", flush=True)
            running = threading.Event()
            while not running.wait(_LOOK_SECONDS):
                pass
        except KeyboardInterrupt as stopped:
            if type(stopped) is not KeyboardInterrupt:  # such as SIGTERM, which the command line tells by its exit code
                raise
            print("Ended.", flush=True)
        finally:
            page.close(verbose=False)


@contextlib.contextmanager
def _uploads_in(folder: str) -> Iterator[None]:
    """Gradio puts uploads into a folder; what the environment said of it stands again afterwards."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = folder
    try:
        yield
    finally:
        del os.environ["GRADIO_TEMP_DIR"]
        if before is not None:
            os.environ["GRADIO_TEMP_DIR"] = before


def _check_installed() -> None:
    missing = [name for name in ("gradio", "markdown_it") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"The page wants the package {missing[0]}, got none. Run `pip install 'hf-vlm[demo]'`.", name=missing[0]
        )
