"""The role as a process of its own, as a pod runs it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys

import httpx2
import msgspec
from serving import until

from logweir.standalone import servers


def start(*options: str) -> subprocess.Popen[str]:
    words = (sys.executable, "-m", "logweir.cli", "run", "auth", *options)
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True)


async def test_the_role_runs_by_its_command_until_it_is_told_to_stop(binding, tmp_path):
    path = tmp_path / "auth.json"
    path.write_bytes(msgspec.json.encode(binding))
    api, ops = (f"127.0.0.1:{servers.free_port()}" for _ in range(2))
    process = start("--binding", str(path), "--listen", api, "--ops", ops)

    async def is_ready() -> bool:
        assert process.poll() is None, process.stderr.read()
        with contextlib.suppress(httpx2.TransportError):
            return (await http.get(f"http://{ops}/readyz")).status_code == 200
        return False

    try:
        async with httpx2.AsyncClient() as http:
            await until(is_ready, 60)
            answer = await http.get(f"http://{api}/api/v1/keys")
            metrics = await http.get(f"http://{ops}/metrics")
        process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(process.wait, 20)
    finally:
        process.kill()
        said = process.communicate()[1]

    assert (answer.status_code, code) == (401, 0)
    assert 'logweir_auth_requests_total{endpoint="list",status="401"} 1.0' in metrics.text
    assert 'logweir_refused_keys_total{reason="missing"} 1.0' in metrics.text
    assert not [password for password in _secrets(binding) if password in said]


def _secrets(binding) -> list[str]:
    return [
        *binding.sign_roots.values(),
        binding.control_login.password,
        binding.journal_login.password,
    ]
