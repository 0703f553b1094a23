"""The ``boxlink`` command. Verbs are found by file name in this folder and imported when they are run.

A verb's module ``tools/cli/<verb>.py`` has a click command named ``command``. An underscore at the end of a file
name is left out of the verb (``diff_.py`` is ``diff``).
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import pkgutil
import signal
import sys

import click

from synclib import __version__
from synclib.errors import BoxlinkError, Interrupted
from tools.cli_context import flush_output, report_bug, report_error
from tools.interrupts import Interrupts

_GARBAGE_THRESHOLD = 50_000
# What these hold elsewhere (an instance, a volume, a mount) they give back, however long it takes.
_UNBOUNDED = ("launch", "mount", "snapshot", "upgrade")
_GROUPS = (
    ("Data", ("init", "publish", "restore", "ls", "cat", "log", "diff")),
    ("History", ("tag", "revert", "replicate")),
    ("Upkeep", ("verify", "compact", "gc", "repack", "doctor")),
    ("Node", ("sync", "mount", "umount", "remount", "cache", "status", "trace", "logs", "snapshot")),
    ("Servers", ("render", "proxy")),
    ("A node's life", ("up", "launch", "release", "bootstrap", "snapshot", "channel", "upgrade")),
)


def verbs() -> list[str]:
    return sorted(module.name.rstrip("_") for module in pkgutil.iter_modules(__path__))


class _Verbs(click.Group):
    """Imports a verb when it is asked for: a short command pays only for what it uses."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return verbs()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for module in pkgutil.iter_modules(__path__):
            if module.name.rstrip("_") == cmd_name:
                found: click.Command = importlib.import_module(f"{__name__}.{module.name}").command
                found.name = cmd_name
                return found
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        known = verbs()
        named = [verb for _, group in _GROUPS for verb in group]
        groups = (*_GROUPS, ("Other", tuple(verb for verb in known if verb not in named)))
        for title, group in groups:
            rows = []
            for verb in group:
                command = self.get_command(ctx, verb) if verb in known else None
                if command is not None:
                    rows.append((verb, command.get_short_help_str(80)))
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="boxlink")
@click.pass_context
def boxlink(ctx: click.Context) -> None:
    """Publish a large directory once, serve it from a whole fleet at once.

    \b
    export BOXLINK_STORE=file:///srv/store      (or --store URL after any verb)
    boxlink init
    boxlink publish covers ./covers
    boxlink sync --data ./data                  then: touch data/covers/synch.active
    """
    if ctx.invoked_subcommand not in _UNBOUNDED and isinstance(ctx.obj, Interrupts):
        ctx.obj.bound()


def main() -> None:
    """Run the command; the exit code is the error's kind (docs/operations.md)."""
    # Of the objects that imports make, which are most of a short command's, none is garbage.
    gc.set_threshold(_GARBAGE_THRESHOLD)
    ending = _Ending()
    atexit.register(ending)
    interrupts = Interrupts(_say_interrupted)
    stdout = sys.stdout
    try:
        code = boxlink.main(standalone_mode=False, obj=interrupts)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = 2
    except click.ClickException as error:
        code = report_error(_from_click(error))
    except (KeyboardInterrupt, click.exceptions.Abort):
        interrupts.say()
        code = interrupts.code
    except BoxlinkError as error:
        code = report_error(error)
    except SystemExit as stop:
        # click's own way when the reader of our output went away (`boxlink ls … | head`), of which it leaves another
        # stdout: no error of ours.
        code = 0 if sys.stdout is not stdout else stop.code
    except OSError as error:
        from synclib.disk.faults import disk_error, is_of_the_world

        code = report_error(disk_error(error)) if is_of_the_world(error) else report_bug(error)
    except Exception as error:
        code = report_bug(error)
    ending.code = code if isinstance(code, int) else 0
    if ending.code:
        # What threads still do is of no use to anybody, and may take as long as a store's deadlines.
        atexit._run_exitfuncs()
    # All is done and said: a signal while the interpreter ends changes nothing of it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(ending.code)


def _say_interrupted() -> None:
    report_error(Interrupted("interrupted", hint="nothing is broken: run the same command again"))


class _Ending:
    """Ends the process when the threads have ended and all that was registered later has run.

    Taking the interpreter apart object by object, which is what would follow, takes as long as many a verb.
    """

    code = Interrupted.exit_code  # what ends it before it has a code of its own is a signal

    def __call__(self) -> None:
        flush_output()
        os._exit(self.code)


def _from_click(error: click.ClickException) -> BoxlinkError:
    from synclib.errors import Invalid

    usage = error.ctx.get_usage() if isinstance(error, click.UsageError) and error.ctx else ""
    return Invalid(error.format_message(), hint=usage)
