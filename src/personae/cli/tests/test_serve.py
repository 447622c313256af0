"""The server as a process: how it starts, what it refuses, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

_WAIT = 120  # seconds for a process to start or end on a busy machine


@contextlib.contextmanager
def served(folder: Path, *options: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """URL and process of ``personae serve`` on a free port."""
    command = [
        sys.executable,
        "-m",
        "personae.cli.main",
        "serve",
        str(folder),
        "--port",
        "0",
        "--json",
        *map(str, options),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    said: list[str] = []
    threading.Thread(target=lambda: said.extend(process.stderr), daemon=True).start()  # type: ignore[arg-type]
    process.said = said  # type: ignore[attr-defined]
    try:
        line = process.stdout.readline()
        assert line, "".join(said)
        yield json.loads(line)["url"], process
    finally:
        process.kill()
        process.wait()


def chat(url: str, **how: object) -> dict:
    return {
        "url": f"{url}/v1/chat/completions",
        "json": {"model": "cohort-0", "messages": [{"role": "user", "content": "hello"}], **how},
        "timeout": _WAIT,
    }


# refusals --------------------------------------------------------------------------------------------------------
def test_without_keys_only_this_machine_is_served(run, fitted):
    result = run("serve", fitted, "--host", "0.0.0.0", "--port", 0, status=1)
    assert result.stderr.splitlines()[-1].startswith(
        "without keys only this machine may be served, not 0.0.0.0; make a key"
    )


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        (["--rate", "often"], 1, '"often" is no rate; write it as 600/minute'),
        (["--keys", "nowhere.json"], 1, "--new-key NAME"),
        (["--new-key", "ann"], 2, "--new-key needs --keys FILE"),
        (["--store", "sqlite:////nowhere/x.sqlite"], 1, "there is no folder /nowhere"),
        (["--port", "70000"], 2, "see personae serve --help"),
        (["--host", "no.such.host.invalid", "--keys", "KEYS"], 1, ""),
    ],
)
def test_slips(run, fitted, tmp_path, options, status, sentence):
    run("serve", "--keys", tmp_path / "keys.json", "--new-key", "ann")
    options = [str(tmp_path / "keys.json") if o == "KEYS" else o for o in options]
    result = run("serve", fitted, "--port", 0, *options, status=status)
    assert "Traceback" not in result.output
    assert sentence in result.stderr


def test_what_it_needs(run, tmp_path):
    assert "give a BUNDLE" in run("serve", status=2).stderr
    assert "there is no bundle" in run("serve", tmp_path / "nowhere", status=1).stderr


def test_a_port_that_is_taken(run, fitted):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", fitted, "--port", port, status=1)
    assert f"cannot listen on 127.0.0.1:{port} (address already in use)" in result.stderr


def test_a_host_that_is_nowhere(run, fitted, tmp_path):
    run("serve", "--keys", tmp_path / "keys.json", "--new-key", "ann")
    result = run("serve", fitted, "--host", "nosuchhost.invalid", "--keys", tmp_path / "keys.json", status=1)
    assert re.search(r"cannot listen on nosuchhost\.invalid:8000 \(.+\); give another", result.stderr)


def test_a_key_is_shown_once(run, tmp_path):
    file = tmp_path / "keys.json"
    key = run("serve", "--keys", file, "--new-key", "ann").stdout.strip()
    other = json.loads(run("serve", "--keys", file, "--new-key", "bob", "--json").stdout)
    assert key.startswith("pk-")
    assert (other["name"], other["key"].startswith("pk-")) == ("bob", True)
    assert key not in file.read_text()
    assert set(json.loads(file.read_text())["keys"]) == {"ann", "bob"}


def test_personas_are_kept_beside_a_bundle_but_not_in_the_hubs_cache(run, fitted, tmp_path, monkeypatch):
    cached, data = tmp_path / "cache" / "town", tmp_path / "data"
    shutil.copytree(fitted, cached)
    monkeypatch.setattr("personae.export.hub.snapshot_download", lambda name, **how: str(cached))
    monkeypatch.setattr("platformdirs.user_data_path", lambda app, ensure_exists: data / app)
    monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: None)
    (data / "personae").mkdir(parents=True)
    run("serve", "hf:ann/town", "--port", 0)
    assert [file.name for file in cached.parent.iterdir()] == ["town"]
    assert [file.name for file in (data / "personae").iterdir()] == ["ann--town-personas.sqlite"]
    run("serve", cached, "--port", 0)
    assert (cached.parent / "town-personas.sqlite").exists()


# the process -----------------------------------------------------------------------------------------------------
def test_it_says_what_to_try_and_that_works(fitted, tmp_path):
    with served(fitted, "--store", f"sqlite:///{tmp_path}/p.sqlite") as (url, process):
        assert httpx.get(f"{url}/healthz", timeout=_WAIT).json() == {"status": "ok"}
        assert httpx.get(f"{url}/healthz", timeout=_WAIT, headers={"host": "evil.example"}).status_code == 403
        body = {"personas": ["cohort-0"], "questions": ["q0"]}
        lines = httpx.post(f"{url}/v1/answers", json=body, timeout=_WAIT).text.splitlines()
        assert json.loads(lines[0])["by"] == "opinion model"
        assert "server" not in httpx.get(f"{url}/healthz", timeout=_WAIT).headers
        process.send_signal(signal.SIGINT)
        assert process.wait(_WAIT) in (130, -signal.SIGINT)
    assert "Traceback" not in "".join(process.said)  # type: ignore[attr-defined]


def test_the_curl_line_is_one_a_shell_understands(fitted, tmp_path):
    command = [sys.executable, "-m", "personae.cli.main", "serve", str(fitted), "--port", "0"]
    command += ["--store", f"sqlite:///{tmp_path}/p.sqlite"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        url, _, curl = (process.stdout.readline().strip() for _ in range(3))
        program, address, *rest = shlex.split(curl)
        assert (program, address) == ("curl", f"{url}/v1/answers")
        body = rest[rest.index("-d") + 1]
        reply = httpx.post(address, content=body, headers={"content-type": "application/json"}, timeout=_WAIT)
        assert reply.status_code == 200
    finally:
        process.kill()
        process.wait()


def test_kill_loses_no_persona_that_was_acknowledged(fitted, tmp_path):
    store = f"sqlite:///{tmp_path}/p.sqlite"
    acknowledged: list[str] = []

    def make(url: str) -> None:
        with contextlib.suppress(httpx.HTTPError), httpx.Client(timeout=_WAIT) as client:
            while True:
                reply = client.post(f"{url}/v1/personas", json={"answers": {"q0": "yes"}})
                if reply.status_code == 201:
                    acknowledged.append(reply.json()["id"])

    for round in (1, 2):
        with served(fitted, "--store", store, "--rate", "100000/second") as (url, process):
            makers = [threading.Thread(target=make, args=(url,)) for _ in range(4)]
            for maker in makers:
                maker.start()
            while len(acknowledged) < 25 * round and makers[0].is_alive():
                makers[0].join(0.02)
            os.kill(process.pid, signal.SIGKILL)
            for maker in makers:
                maker.join()
    with served(fitted, "--store", store) as (url, _):
        found: list[str] = []
        after: dict[str, str] = {}
        while True:
            page = httpx.get(f"{url}/v1/personas", params={"limit": 1000, **after}, timeout=_WAIT).json()
            found += [p["id"] for p in page["data"]]
            if not page["has_more"]:
                break
            after = {"after": page["last_id"]}
    assert len(acknowledged) >= 50
    assert set(acknowledged) <= set(found)


def test_sigterm_lets_a_running_reply_end(steered, tmp_path):
    with served(steered, "--store", f"sqlite:///{tmp_path}/p.sqlite", "--grace", 60) as (url, process):
        alone = httpx.post(**chat(url, max_tokens=60, temperature=0)).json()
        said, finish, ended = "", None, False
        with httpx.stream("POST", **chat(url, max_tokens=60, temperature=0, stream=True)) as reply:
            for line in reply.iter_lines():
                if not line.startswith("data: "):
                    continue
                if not said:
                    process.send_signal(signal.SIGTERM)
                ended = line == "data: [DONE]"
                if not ended:
                    (choice,) = json.loads(line[6:])["choices"]
                    said += choice["delta"].get("content", "")
                    finish = choice["finish_reason"] or finish
        assert ended
        assert finish == alone["choices"][0]["finish_reason"]
        assert said.strip() == alone["choices"][0]["message"]["content"]
        assert process.wait(_WAIT) == -signal.SIGTERM
    assert "Traceback" not in "".join(process.said)  # type: ignore[attr-defined]
