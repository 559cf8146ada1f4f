"""The `dnassm` command: every file beside this one is a command of the same name.

A command's module imports only click at its top; torch and friends load inside the command, so that
``--help`` answers at once. A DnassmError, or a path that the system refuses, becomes one line on
stderr and exit code 1.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

import click

from dnassm.errors import DnassmError, Interrupted
from dnassm.registry import did_you_mean

_HERE = Path(__file__).resolve().parent


class LazyGroup(click.Group):
    """Finds its commands by file name and loads one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Command names in alphabetical order."""
        modules = (m.name for m in pkgutil.iter_modules([str(_HERE)]))
        return sorted(name.replace("_", "-") for name in modules if name != "cli")

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load the command's module, or None when there is no such file."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"dnassm.pipelines.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        command.name = cmd_name
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest name in the error."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            names = self.list_commands(ctx)
            raise click.UsageError(f"no command {args[0]!r}.{did_you_mean(args[0], names)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dnassm", prog_name="dnassm")
def cli() -> None:
    """State space models for DNA: from a FASTA file to a trained model, embeddings and a report."""


def main() -> None:
    """Entry point: runs the command; a DnassmError, or a path the system refuses, is one line."""
    try:
        cli.main(prog_name="dnassm", standalone_mode=False)
    except Interrupted as stop:
        click.echo(f"\ndnassm: {stop}", err=True)
        sys.exit(130)
    except DnassmError as error:
        click.echo(f"dnassm: error: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        if error.filename is None:  # of no file: not the user's to mend
            raise
        reason = f"{error.filename}: {error.strerror}; check the path and the disk"
        click.echo(f"dnassm: error: {reason}", err=True)
        sys.exit(1)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("\ndnassm: stopped", err=True)
        sys.exit(130)
