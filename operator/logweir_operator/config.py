"""What the chart tells the operator: a YAML file for what is plain, mounted Secrets for the rest.

ConfigMap -> config.yaml     Secrets -> postgres/{host,port,...}, redis/{host,username,...}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import yaml
from msgspec import Meta

from logweir.backends import provision
from logweir.core import errors
from logweir.core.binding import JournalServer, Login, PostgresServer

BINDING_FOLDER: Final = "/etc/logweir/binding"
"""Where pods have the Secret with their binding."""

POSTGRES_CA: Final = "postgres-ca.crt"
REDIS_CA: Final = "redis-ca.crt"

Seconds = Annotated[float, Meta(gt=0, le=86400)]


class _Part(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Base of all parts: an unknown field is refused, not ignored."""


class Image(_Part, frozen=True):
    """The image of all roles."""

    repository: str
    tag: str = ""
    digest: str = ""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"

    @property
    def reference(self) -> str:
        """As it stands in a container."""
        return (
            f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.tag}"
        )


class Features(_Part, frozen=True):
    """Optional kinds of objects that the operator may have; each is used when it is served, too."""

    http_routes: bool = False
    keda: bool = False
    monitoring: bool = False
    namespace_quota: bool = False


class Scope(_Part, frozen=True):
    """Where resources are looked for: in the whole cluster, or in these namespaces."""

    mode: Literal["Cluster", "Namespaced"] = "Cluster"
    namespaces: tuple[str, ...] = ()


class Network(_Part, frozen=True):
    """What policies must let through. Empty namespaces: nothing comes from there."""

    postgres_port: int = 5432
    redis_port: int = 6379
    dns_ports: tuple[int, ...] = (53,)
    monitoring_namespace: str = ""
    ingress_namespace: str = ""


class LeaseTerms(_Part, frozen=True):
    """Of the Lease by which one of several operators works."""

    name: str = ""
    duration_s: Seconds = 15.0
    renew_s: Seconds = 10.0
    retry_s: Seconds = 2.0


class Evaluation(_Part, frozen=True):
    """Hosts of the databases that the chart brings along."""

    postgres_host: str
    redis_host: str


class Config(_Part, frozen=True):
    """All that the operator is told.

    Attributes:
        cluster: name of this cluster among those that share a PostgreSQL.
        namespace: of the release, where the platform's own objects are.
        release: prefix of their names.
        evaluation: the databases of the chart, which belong to this installation alone.
        bootstrap_wait_s: how long the bootstrap waits for databases that do not answer.
    """

    namespace: str
    release: str
    image: Image
    cluster: Annotated[str, Meta(min_length=1, max_length=63)] = "kubernetes"
    scope: Scope = Scope()
    image_pull_secrets: tuple[str, ...] = ()
    features: Features = Features()
    network: Network = Network()
    lease: LeaseTerms = LeaseTerms()
    resync_s: Seconds = 600.0
    spread_s: Annotated[float, Meta(ge=0, le=3600)] = 90.0
    workers: Annotated[int, Meta(ge=1, le=64)] = 8
    log_format: Literal["auto", "json", "text"] = "auto"
    postgres_folder: str = "/etc/logweir/postgres"
    redis_folder: str = "/etc/logweir/redis"
    evaluation: Evaluation | None = None
    bootstrap_wait_s: Seconds = 180.0

    def servers(self) -> Servers:
        """Return the databases, of the mounted Secrets.

        Raises:
            SetupError: something is missing there, or makes no sense.
        """
        return servers(Path(self.postgres_folder), Path(self.redis_folder))

    def superuser(self) -> tuple[PostgresServer, Login]:
        """Return who makes logins and the database, and where it logs in; for the bootstrap alone.

        It is a superuser, or a login with CREATEROLE and CREATEDB.

        Raises:
            SetupError: something is missing in the mounted Secret, or makes no sense.
        """
        folder = Path(self.postgres_folder)
        login = Login(text_of(folder, "username"), text_of(folder, "password"))
        maintenance = text_of(folder, "maintenanceDatabase", "postgres")
        return msgspec.structs.replace(self.servers().store, database=maintenance), login


class Servers(msgspec.Struct, frozen=True):
    """The databases, as the operator reaches them, and files that pods need for that."""

    store: PostgresServer
    journal: JournalServer
    journal_login: Login
    cas: Mapping[str, bytes]

    @property
    def pods_store(self) -> PostgresServer:
        """PostgreSQL as a pod reaches it."""
        file = f"{BINDING_FOLDER}/{POSTGRES_CA}" if self.store.ca_file else ""
        return msgspec.structs.replace(self.store, ca_file=file)

    @property
    def pods_journal(self) -> JournalServer:
        """Redis as a pod reaches it."""
        file = f"{BINDING_FOLDER}/{REDIS_CA}" if self.journal.ca_file else ""
        return msgspec.structs.replace(self.journal, ca_file=file)


def read(path: Path) -> Config:
    """Return the configuration in a file.

    Raises:
        SetupError: there is no such file, or it makes no sense.
    """
    try:
        document = yaml.safe_load(path.read_text())
        found = msgspec.convert(document, Config)
    except (OSError, yaml.YAMLError, msgspec.ValidationError) as cause:
        raise errors.SetupError(
            f"Cannot read the operator's configuration {path}: {cause}.",
            hint="It is made by the chart's values; 'helm upgrade' writes it anew.",
        ) from cause
    if (found.scope.mode == "Namespaced") != bool(found.scope.namespaces):
        raise errors.SetupError(
            f"{path}: scope.namespaces are needed for scope.mode Namespaced, and for it alone."
        )
    wrong = [name for name in found.scope.namespaces if "*" in name]
    if wrong:
        raise errors.SetupError(f"{path}: scope.namespaces has {wrong[0]!r}; name each in full.")
    return found


def servers(postgres: Path, journal: Path) -> Servers:
    """Return the databases that two mounted Secrets describe.

    Raises:
        SetupError: something is missing there, or makes no sense.
    """
    cas = {
        name: folder.joinpath("ca.crt").read_bytes()
        for name, folder in ((POSTGRES_CA, postgres), (REDIS_CA, journal))
        if folder.joinpath("ca.crt").is_file()
    }
    return Servers(
        store=PostgresServer(
            host=text_of(postgres, "host"),
            port=port_of(postgres, 5432),
            database=text_of(postgres, "database", provision.DATABASE),
            tls=text_of(postgres, "sslmode", "prefer"),
            ca_file=str(postgres / "ca.crt") if POSTGRES_CA in cas else "",
        ),
        journal=JournalServer(
            host=text_of(journal, "host"),
            port=port_of(journal, 6379),
            tls=text_of(journal, "tls", "false").lower() == "true",
            ca_file=str(journal / "ca.crt") if REDIS_CA in cas else "",
            replicas=int(text_of(journal, "replicas", "0")),
        ),
        journal_login=Login(text_of(journal, "username"), text_of(journal, "password")),
        cas=cas,
    )


def text_of(folder: Path, name: str, default: str | None = None) -> str:
    """Return one key of a mounted Secret.

    Raises:
        SetupError: it is missing and there is no default.
    """
    try:
        return folder.joinpath(name).read_text().strip()
    except OSError as cause:
        if default is not None:
            return default
        raise errors.SetupError(
            f"The Secret at {folder} has no key {name!r}.",
            hint="Look at the chart's README for the keys that it must have.",
        ) from cause


def port_of(folder: Path, default: int) -> int:
    """Return the port of a mounted Secret.

    Raises:
        SetupError: it is no number.
    """
    text = text_of(folder, "port", str(default))
    if not text.isdecimal():
        raise errors.SetupError(
            f"The Secret at {folder} has the port {text!r}, which is no number."
        )
    return int(text)
