"""`personae serve --backend vllm`: what it refuses before it listens to anybody."""

from __future__ import annotations

import socket

import pytest


@pytest.mark.parametrize(
    "options",
    [
        ["--backend", "vllm"],
        ["--url", "http://localhost:1"],
        ["--model", "m"],
        ["--backend", "local", "--url", "http://a"],
    ],
)
def test_the_backend_and_its_address_belong_together(run, fitted, options):
    result = run("serve", fitted, "--port", 0, *options, status=2)
    assert "--backend vllm needs --url, and --url and --model need --backend vllm" in result.stderr


def test_a_bundle_without_a_steerer_has_nobody_for_vllm(run, fitted):
    result = run("serve", fitted, "--port", 0, "--backend", "vllm", "--url", "http://localhost:1", status=1)
    assert "this bundle has nobody who speaks on vLLM; train them with: personae steer" in result.stderr


def test_a_vllm_that_is_not_there(run, steered):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    result = run("serve", steered, "--port", 0, "--backend", "vllm", "--url", url, status=1)
    assert f"vLLM cannot be reached at {url}" in result.stderr
    assert "Traceback" not in result.output
