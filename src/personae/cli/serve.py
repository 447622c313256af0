"""`personae serve`: meet the personas over HTTP."""

from __future__ import annotations

import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from personae.cli.common import BundlePath, command, doing, hub_name, open_bundle, print_json

if TYPE_CHECKING:
    from personae.bundle import Bundle
    from personae.serving.backend import Backend
    from personae.serving.guard import Rules


@command("serve")
@click.argument("folder", metavar="[BUNDLE]", type=BundlePath, required=False)
@click.option("--host", metavar="NAME", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--port", metavar="N", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes any free one."
)
@click.option("--keys", metavar="FILE", type=click.Path(path_type=Path), help="API keys; needed beyond this machine.")
@click.option("--new-key", metavar="NAME", help="Add a key to the file, print it once, and end.")
@click.option(
    "--store",
    metavar="URL",
    help="Where personas made here are kept, e.g. postgresql://user@host/database; "
    "BUNDLE-personas.sqlite beside the bundle by default, in your data folder for one of the hub.",
)
@click.option(
    "--backend",
    type=click.Choice(["local", "vllm"]),
    default="local",
    show_default=True,
    help="Who runs the language model: this process, or a vLLM server at --url.",
)
@click.option(
    "--url", metavar="URL", help="Of vLLM, e.g. http://localhost:8001; its API key is taken from VLLM_API_KEY."
)
@click.option("--model", metavar="NAME", help="The language model's name there, where it serves several.")
@click.option("--rate", metavar="N/TIME", default="600/minute", show_default=True, help="Requests of one key.")
@click.option(
    "--max-concurrent",
    metavar="N",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Replies made at the same time; others wait.",
)
@click.option(
    "--deadline",
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    default=120.0,
    show_default=True,
    help="Of one request.",
)
@click.option(
    "--grace",
    metavar="SECONDS",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="For running replies when it is stopped.",
)
@click.option("--allow-origin", "origins", metavar="URL", multiple=True, help="Another web page that may use it.")
def serve(
    folder: Path | None,
    host: str,
    port: int,
    keys: Path | None,
    new_key: str | None,
    store: str | None,
    backend: str,
    url: str | None,
    model: str | None,
    rate: str,
    max_concurrent: int,
    deadline: float,
    grace: float,
    origins: tuple[str, ...],
    as_json: bool,
) -> None:
    """Serve the personas of BUNDLE to a browser and to OpenAI's clients.

    Without --keys only this machine is served. A bundle without a steerer answers the survey's questions by the opinion
    model alone. Ctrl-C, or SIGTERM, ends it once running replies are complete.

    \b
    personae serve sample-bundle
    personae serve --keys keys.json --new-key ann
    personae serve sample-bundle --keys keys.json --host 0.0.0.0
    personae serve sample-bundle --backend vllm --url http://localhost:8001
    """
    if new_key is not None:
        _new_key(keys, new_key, as_json)
        return
    if folder is None:
        raise click.UsageError("give a BUNDLE", click.get_current_context())
    if (backend == "vllm") != (url is not None) or (model is not None and url is None):
        raise click.UsageError(
            "--backend vllm needs --url, and --url and --model need --backend vllm", click.get_current_context()
        )
    bundle = open_bundle(folder)
    try:
        import uvicorn

        from personae.serving.app import create_app
        from personae.serving.directory import model_of
        from personae.serving.store import PersonaStore
    except ImportError as error:
        raise click.ClickException(
            f"the server needs libraries that are not installed ({error}); run: pip install 'personae[serve]'"
        ) from error
    rules = _rules(host, keys, rate, origins)
    listening = _listen(host, port)
    here = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    speaker = _backend(bundle, max_concurrent, url, model)
    url_of_store = store or f"sqlite:///{_store_of(folder, bundle)}"
    with doing("drawing the map"):
        app = create_app(bundle, PersonaStore(url_of_store, model_of(bundle)), speaker, rules, deadline, grace)
    _log_to_stderr()
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=max(1, round(grace)),
            server_header=False,
        )
    )
    _say(here, bundle, keys is not None, as_json)
    server.run(sockets=[listening])


def _new_key(keys: Path | None, name: str, as_json: bool) -> None:
    from personae.serving.keys import Keys

    if keys is None:
        raise click.UsageError("--new-key needs --keys FILE, where its hash goes", click.get_current_context())
    key = Keys.new(keys, name)
    if as_json:
        print_json({"name": name, "key": key, "file": keys})
    else:
        click.echo(key)
        click.echo(f"{keys} holds its hash; the key itself is shown only here", err=True)


def _store_of(folder: Path, bundle: Bundle) -> Path:
    """A file beside the bundle; of one of the hub in the user's data folder, as a cache may be emptied at any time."""
    from platformdirs import user_data_path

    name = hub_name(folder)
    if name is None:
        return bundle.folder.with_name(f"{bundle.folder.name}-personas.sqlite")
    return user_data_path("personae", ensure_exists=True) / f"{name.replace('/', '--')}-personas.sqlite"


def _rules(host: str, keys: Path | None, rate: str, origins: tuple[str, ...]) -> Rules:
    from limits import parse

    from personae.serving.guard import LOOPBACK, Rules
    from personae.serving.keys import Keys

    try:
        parse(rate)
    except ValueError:
        raise click.ClickException(f'"{rate}" is no rate; write it as 600/minute or 10/second') from None
    if keys is not None:
        return Rules(Keys.read(keys), None, origins, rate)
    if host not in LOOPBACK:
        raise click.ClickException(
            f"without keys only this machine may be served, not {host}; make a key with: "
            "personae serve --keys keys.json --new-key NAME"
        )
    return Rules(None, LOOPBACK, origins, rate)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)  # from here on clients wait instead of being refused
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise click.ClickException(
            f"cannot listen on {host}:{port} ({reason}); give another --port or --host"
        ) from None
    return listening


def _backend(bundle: Bundle, max_concurrent: int, url: str | None, model: str | None) -> Backend | None:
    if "steerer" not in bundle and url is not None:
        raise click.ClickException("this bundle has nobody who speaks on vLLM; train them with: personae steer BUNDLE")
    if "steerer" not in bundle:
        click.echo(
            "no language model in this bundle; the opinion model answers (add one with: personae steer)", err=True
        )
        return None
    with doing("loading the language model"), ThreadPoolExecutor(1) as loading:
        # In a thread that ends: as long as one that used the LM lives, its OpenMP threads are counted with those of the
        # thread that will decode, and where they are more than the cores, every thread sleeps at every barrier
        steerer = loading.submit(lambda: bundle.steerer).result()
    if url is None:
        from personae.serving.local import LocalBackend

        return LocalBackend(steerer, max_concurrent)
    from personae.serving.backend import Unavailable
    from personae.serving.vllm import VllmBackend

    with doing(f"trying vLLM at {url}"):
        try:
            return VllmBackend(steerer, url, os.environ.get("VLLM_API_KEY"), model, max_concurrent)
        except Unavailable as error:
            raise click.ClickException(str(error)) from error


def _say(url: str, bundle: Bundle, with_keys: bool, as_json: bool) -> None:
    name = bundle.cohorts[0].name if "cohorts" in bundle else "everybody"
    key = " -H 'Authorization: Bearer KEY'" if with_keys else ""
    if "steerer" in bundle:
        body = {"model": name, "messages": [{"role": "user", "content": "What worries you?"}]}
        route = "chat/completions"
    else:
        body = {"personas": [name], "questions": [bundle.people.questions_[0].id]}
        route = "answers"
    text = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
    curl = f"curl {url}/v1/{route}{key} -H 'Content-Type: application/json' -d '{text}'"
    if as_json:
        click.echo(json.dumps({"url": url, "try": curl}, ensure_ascii=False))  # one line, as the server goes on
    else:
        click.echo(f"{url}\n\n{curl}\n")


def _log_to_stderr() -> None:
    import logging

    handler: Any = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("personae.serving")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
