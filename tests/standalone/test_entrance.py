"""What `logweir up` is told of how clients come in: taken, checked, kept, looked at again."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import certificates
import pytest

from logweir.core import errors
from logweir.runtime.settings import Tls
from logweir.standalone import entrance
from logweir.standalone.entrance import Entrance
from logweir.standalone.folder import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "data")


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return certificates.make(tmp_path)


def test_without_options_it_is_plain_http_on_the_loopback_address(folder):
    assert entrance.choose(folder) == Entrance()
    assert Entrance().url(7080) == "http://127.0.0.1:7080"
    assert not folder.path.exists()


def test_what_was_chosen_is_kept_until_it_is_chosen_otherwise(folder, tls):
    chosen = entrance.choose(
        folder,
        host="0.0.0.0",
        tls_cert=tls.certificate,
        tls_key=tls.key,
        trusted_proxies=["10.0.0.0/8", "::1"],
        with_nginx=False,
    )

    assert chosen == Entrance("0.0.0.0", tls, ("10.0.0.0/8", "::1/128"), with_nginx=False)
    assert entrance.choose(folder) == entrance.read(folder) == chosen
    assert entrance.choose(folder, with_nginx=True) == Entrance(
        "0.0.0.0", tls, ("10.0.0.0/8", "::1/128")
    )
    assert entrance.choose(folder, host="", tls_cert="", trusted_proxies=[""]) == Entrance()


@pytest.mark.parametrize(
    ("host", "with_tls", "url"),
    [
        ("127.0.0.1", False, "http://127.0.0.1:1"),
        ("0.0.0.0", True, "https://127.0.0.1:1"),
        ("::", False, "http://[::1]:1"),
        ("192.0.2.7", True, "https://192.0.2.7:1"),
    ],
)
def test_the_url_is_one_that_works_on_this_machine(host, with_tls, url, tls):
    assert Entrance(host, tls if with_tls else None).url(1) == url


@pytest.mark.parametrize(
    ("host", "with_tls", "warns"),
    [
        ("127.0.0.1", False, False),
        ("::1", False, False),
        ("0.0.0.0", False, True),
        ("0.0.0.0", True, False),
    ],
)
def test_plain_text_for_other_machines_is_warned_of(host, with_tls, warns, tls):
    assert bool(Entrance(host, tls if with_tls else None).warning) == warns


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "logs.example"}, "takes an address of this machine"),
        ({"trusted_proxies": ["10.0.0.1/8"]}, "takes a network"),
        ({"trusted_proxies": ["nginx"]}, "takes a network"),
        ({"trusted_proxies": ["10.0.0.0/8; evil on"]}, "takes a network"),
        ({"tls_cert": "/no/such.crt"}, "go together"),
        ({"tls_key": "/no/such.key"}, "go together"),
        ({"tls_cert": "/no/such.crt", "tls_key": "/no/such.key"}, "no certificate and its key"),
    ],
)
def test_what_cannot_work_is_told_and_not_kept(folder, options, words):
    with pytest.raises(errors.SetupError, match=words):
        entrance.choose(folder, **options)

    assert entrance.read(folder) == Entrance()


def test_a_key_of_another_certificate_is_told(folder, tls, tmp_path):
    (tmp_path / "other").mkdir()
    other = certificates.make(tmp_path / "other")

    with pytest.raises(errors.SetupError, match="no certificate and its key"):
        entrance.choose(folder, tls_cert=tls.certificate, tls_key=other.key)


def test_an_encrypted_key_is_told_and_nobody_is_asked_for_a_password(folder, tls, tmp_path):
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "pkey", "-in", tls.key, "-aes256", "-passout", "pass:x", "-out", locked],
        check=True,
    )

    with pytest.raises(errors.SetupError, match="is encrypted"):
        entrance.choose(folder, tls_cert=tls.certificate, tls_key=str(locked))


def test_the_entrance_of_a_running_up_is_not_changed(folder):
    folder.take()

    with pytest.raises(errors.SetupError, match="in use"):
        entrance.choose(folder, with_nginx=False)
    assert entrance.read(folder) == Entrance()


class Watched:
    def __init__(self, tls: Tls | None, problem: Exception | None = None) -> None:
        self.uses = 0
        self.told: list[str] = []
        self.problem = problem
        self.watch = entrance.Watch(tls, self.use, self.told.append)

    def use(self) -> None:
        self.uses += 1
        if self.problem:
            raise self.problem


def renew(tls: Tls, age_s: float) -> None:
    """New files, written `age_s` ago."""
    certificates.make(Path(tls.certificate).parent)
    at_s = Path(tls.certificate).stat().st_mtime - age_s
    for one in (tls.certificate, tls.key):
        os.utime(one, (at_s, at_s))


def test_a_new_certificate_is_used_once_when_both_files_are_there(tls):
    watched = Watched(tls)
    watched.watch.look()
    renew(tls, age_s=0)
    watched.watch.look()
    early = watched.uses
    renew(tls, age_s=60)
    watched.watch.look()
    watched.watch.look()

    assert (early, watched.uses) == (0, 1)
    assert watched.told == ["the gateway has a new certificate"]


@pytest.mark.parametrize("kind", [errors.SetupError, ProcessLookupError])
def test_a_certificate_that_cannot_be_used_is_told_of_once_and_the_next_one_tried(tls, kind):
    watched = Watched(tls, problem=kind("They do not fit."))
    renew(tls, age_s=60)
    watched.watch.look()
    watched.watch.look()
    watched.problem = None
    renew(tls, age_s=50)
    watched.watch.look()

    assert watched.told == [
        "the new certificate is not used: They do not fit.",
        "the gateway has a new certificate",
    ]


def test_a_certificate_that_is_away_for_a_moment_is_waited_for(tls):
    watched = Watched(tls)
    Path(tls.key).unlink()
    watched.watch.look()
    renew(tls, age_s=60)
    watched.watch.look()

    assert watched.uses == 1


def test_without_tls_nothing_is_looked_at():
    watched = Watched(None)
    watched.watch.look()

    assert watched.uses == 0
