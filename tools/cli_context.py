"""What every verb shares: its common flags, its settings, its one JSON object, its errors."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

from synclib.errors import BoxlinkError, Invalid

if TYPE_CHECKING:
    from synclib.config import Settings
    from synclib.store.base import Store
    from synclib.store.meter import Meter

F = TypeVar("F", bound=Callable[..., Any])
CONFIG_FILE = "boxlink.toml"


@dataclass
class Context:
    """One run of a verb."""

    store_url: str | None = None
    node_name: str | None = None
    is_json: bool = False
    is_quiet: bool = False
    is_verbose: bool = False
    started: float = field(default_factory=time.monotonic)
    meters: list[Meter] = field(default_factory=list)  # of every store that was opened
    is_answered: bool = False  # the one JSON object is out

    @functools.cached_property
    def settings(self) -> Settings | None:
        """What ``boxlink.toml`` says; None where there is none, so that pydantic is not imported for nothing."""
        return _read_settings()

    @property
    def node(self) -> str:
        """This node's name: ``--node``, else ``BOXLINK_NODE``, else the configured one, else the host name."""
        from synclib.core.names import check_node

        name = self.node_name or os.environ.get("BOXLINK_NODE")
        if not name and self.settings is not None:
            name = self.settings.node
        name = name or os.uname().nodename
        return check_node(name)

    @property
    def role(self) -> str:
        """What this node is for, and :attr:`release`, which programs it runs, as whoever started us said."""
        return os.environ.get("BOXLINK_ROLE", "")[:128]

    @property
    def release(self) -> str:
        return os.environ.get("BOXLINK_RELEASE", "")[:128]

    @property
    def url(self) -> str:
        """The store's URL: ``--store``, else ``BOXLINK_STORE``, else ``store =`` in ``boxlink.toml``."""
        url = self.store_url or os.environ.get("BOXLINK_STORE")
        if not url and self.settings is not None:
            url = self.settings.store
        if not url:
            raise Invalid(
                "no store is named",
                hint="use --store file:///DIR or s3://BUCKET/PREFIX, or set BOXLINK_STORE, or store = in boxlink.toml",
            )
        return url

    @property
    def url_source(self) -> str:
        """Which of these it is from."""
        if self.store_url:
            return "--store"
        return "BOXLINK_STORE" if os.environ.get("BOXLINK_STORE") else _config_path()

    def open_store(self) -> Store:
        """The store with retry and metering; the meter's figures go into the verb's result."""
        from synclib.store.open import open_store

        store, meter = open_store(self.url, self.s3_settings())
        self.meters.append(meter)
        return store

    @property
    def meter(self) -> Meter | None:
        """Of the store that was opened last; None where none was."""
        return self.meters[-1] if self.meters else None

    def costs(self) -> Meter | None:
        """What was asked of all stores that were opened; None where none was."""
        if len(self.meters) < 2:
            return self.meter
        from synclib.store.meter import Meter

        total = Meter()
        for meter in self.meters:
            total.add(meter)
        return total

    def s3_settings(self) -> dict[str, str | None]:
        """Endpoint, region and profile: the usual AWS variables, else ``[s3]`` in ``boxlink.toml``."""
        s3 = self.settings.s3 if self.settings is not None else None
        environ = os.environ
        endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
        region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
        profile = environ.get("AWS_PROFILE")
        return {
            "endpoint": endpoint or (s3.endpoint if s3 else None),
            "region": region or (s3.region if s3 else None),
            "profile": profile or (s3.profile if s3 else None),
        }

    def emit(self, result: dict[str, object], text: str = "") -> None:
        """The verb's answer: one JSON object with ``--json``, else ``text`` for a person (unless quiet)."""
        if self.is_json:
            import json

            click.echo(json.dumps(self.with_costs(result)))
            self.is_answered = True
        elif text and not self.is_quiet:
            click.echo(shown(text))

    def with_costs(self, result: dict[str, object]) -> dict[str, object]:
        meter = self.costs()
        costs: dict[str, object] = {} if meter is None else dict(meter.as_dict())
        return {**result, **costs, "seconds": round(time.monotonic() - self.started, 3)}

    def note_costs(self) -> None:
        """With ``-v``, when all is done or has failed: what was chosen, and what was asked of the store."""
        meter = self.costs()
        if not self.is_verbose or meter is None:
            return
        path = _config_path()
        settings = path if os.path.exists(path) else "none"
        self.note(f"boxlink: store {self.url} ({self.url_source}); settings: {settings}")
        requests = ", ".join(f"{number} {verb.upper()}" for verb, number in meter.requests.items())
        traffic = f"{meter.bytes_up:,} bytes up, {meter.bytes_down:,} down"
        seconds = time.monotonic() - self.started
        self.note(f"boxlink: {requests}; {traffic}; ${meter.usd:.6f}; {seconds:.2f} s")

    def note(self, text: str) -> None:
        """A line for a person on stderr."""
        if not self.is_quiet:
            click.echo(shown(text), err=True)


class Finite(click.FloatRange):
    """A number within bounds, of which "nan" is outside all."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is no number of seconds.", param, ctx)
        return number


def shown(text: str) -> str:
    """Text for a person: what is not printable, line ends apart, is shown with escapes and not sent to a terminal."""
    return "".join(
        character if character.isprintable() or character == "\n" else repr(character)[1:-1] for character in text
    )


def shown_in_line(text: str) -> str:
    """As :func:`shown`, for a part of a line: what a store or a node says makes no line of its own."""
    return shown(text).replace("\n", "\\n")


_running = Context()


def verb(function: F) -> Callable[..., Any]:
    """Give a click command the flags that every verb has; its first argument is the Context."""

    @click.option(
        "--store", metavar="URL", help="file:///DIR or s3://BUCKET/PREFIX (else BOXLINK_STORE, boxlink.toml)."
    )
    @click.option("--json", "is_json", is_flag=True, help="JSON on stdout: one object (daemons, logs -f: one a line).")
    @click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
    @click.option("-v", "--verbose", is_flag=True, help="Say more: what was chosen, and each request, on stderr.")
    @functools.wraps(function)
    def run(*args: Any, store: str | None, is_json: bool, quiet: bool, verbose: bool, **kwargs: Any) -> Any:
        context = _running
        context.store_url, context.is_json, context.is_quiet, context.is_verbose = store, is_json, quiet, verbose
        context.node_name = kwargs.pop("node_name", None)
        try:
            return function(context, *args, **kwargs)
        finally:
            context.note_costs()

    return run


class ByteCount(click.ParamType):  # type: ignore[type-arg] # generic in some versions of click alone
    """A number of bytes: 5000000, 20G. K, M, G and T are powers of 1024."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip().upper()
        power = "KMGT".find(text[-1:]) + 1 if text else 0
        digits = text[:-1] if power else text
        if not (digits.isascii() and digits.isdigit()):
            self.fail(f"{value!r} is no number of bytes: write 5000000 or 20G", param, ctx)
        return int(digits) << 10 * power


BYTES = ByteCount()


def cache_size_option(function: F) -> F:
    """``--cache-size BYTES`` for verbs that mount."""
    return click.option(
        "--cache-size",
        type=BYTES,
        metavar="BYTES",
        help="What the cache of a dataset may take (8M or more); else all but 1 GiB of its partition.",
    )(function)


def mode_option(function: F) -> F:
    """``--mode erofs|fuse`` for verbs that mount."""
    return click.option(
        "--mode",
        type=click.Choice(["erofs", "fuse"]),
        help="How to mount: an EROFS image, or a FUSE tree; by default the best that this machine can.",
    )(function)


def node_option(function: F) -> F:
    """``--node NAME`` for verbs that act as a node."""
    return click.option(
        "--node", "node_name", metavar="NAME", help="This node's name (else BOXLINK_NODE, else the host name)."
    )(function)


def report_error(error: BoxlinkError) -> int:
    """Say an error on stderr, or as the one JSON object on stdout, unless the answer is there already: then a signal
    came after it; returns its exit code."""
    if not _running.is_answered and (_running.is_json or "--json" in sys.argv):
        with contextlib.suppress(OSError):
            import json

            click.echo(json.dumps({"error": error.as_dict()}))
            return error.exit_code
        # Nobody can be told there.
    where = error.key or error.path
    click.echo(shown(f"boxlink: {error.kind}: {where + ': ' if where else ''}{error.message}"), err=True)
    if error.hint:
        click.echo(shown(f"  hint: {error.hint}"), err=True)
    return error.exit_code


def flush_output() -> None:
    """Before the interpreter does, which would say in its own way that stdout cannot be written: that was said."""
    try:
        if sys.stdout is not None:  # where we were started without one
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report_bug(error: Exception) -> int:
    """Show where a bug of ours happened; returns its exit code."""
    import traceback

    traceback.print_exception(error)
    if _running.is_json or "--json" in sys.argv:
        import json

        shown = {"kind": "bug", "message": f"{type(error).__name__}: {error}", "hint": "report it with the traceback"}
        click.echo(json.dumps({"error": shown}))
    return BoxlinkError.exit_code


def _config_path() -> str:
    return os.environ.get("BOXLINK_CONFIG", CONFIG_FILE)


def _read_settings() -> Settings | None:
    path = _config_path()
    if not os.path.exists(path):
        return None
    import tomllib

    from pydantic import ValidationError

    from synclib.config import Settings

    try:
        with open(path, "rb") as file:
            return Settings.model_validate(tomllib.load(file))
    except (ValidationError, ValueError, OSError, RecursionError) as error:
        from tools.settings_error import settings_error

        raise settings_error(path, error) from error
