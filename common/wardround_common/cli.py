"""`wardround`: one command, the roles as sub-commands, and how every error looks.

Rules.
- A role is imported only when it is asked for, so the reviewer's install needs no torch, flwr or
  grpc; a role whose extra is missing says which one to install (exit 2).
- An error is two lines on stderr, `error: what happened` and `next: what to do`; with `--json` it is
  {"error": {"code", "message", "next_step"}} on stdout. Exit codes: 1 refused or failed,
  2 wrong usage or missing role, 70 a bug, 130 interrupted; a command may have its own beside these.
- A traceback may show values, so it appears only with WARDROUND_DEBUG=1.
Not done here: the roles' own commands (`wardround_server.cli`, `wardround_client.cli`, `audit.cli`).

    $ wardround audit verify audit/ --trust trust.yaml
"""

import importlib
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import click
import typer

from wardround_common import __version__
from wardround_common.errors import ConfigError, WardroundError, memory_exhausted
from wardround_common.output import Output
from wardround_common.process import forbid_core_dumps

ROLES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "server": ("wardround_server.cli", "server_app", ("grpc", "flwr", "safetensors")),
    "client": ("wardround_client.cli", "client_app", ("grpc", "flwr", "safetensors", "torch", "peft", "opacus")),
    "audit": ("wardround_common.audit.cli", "audit_app", ()),
}
"""Role -> module, name of its Typer app, packages by which its extra (of the same name) is recognised."""

DEBUG_VARIABLE = "WARDROUND_DEBUG"

# Everything behind the role's name belongs to the role, `--help` included.
_PASS_ON: dict[str, Any] = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "allow_interspersed_args": False,
    "help_option_names": [],
}

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"wardround {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Hospitals fine-tune one language model together; patient records never leave the ward."""


@app.command("server", context_settings=_PASS_ON)
def _server(ctx: typer.Context) -> None:
    """Run the aggregation server: enrol hospitals, propose studies, release models."""
    _run_role("server", ctx.args)


@app.command("client", context_settings=_PASS_ON)
def _client(ctx: typer.Context) -> None:
    """Run a hospital's client: enrol, approve studies, train beside the data."""
    _run_role("client", ctx.args)


@app.command("audit", context_settings=_PASS_ON)
def _audit(ctx: typer.Context) -> None:
    """Check the audit trail offline: signatures, history and the spent ε."""
    _run_role("audit", ctx.args)


def _run_role(role: str, arguments: Sequence[str]) -> None:
    role_app = load_role(role)
    outcome = role_app(args=list(arguments), prog_name=f"wardround {role}", standalone_mode=False)
    raise typer.Exit(outcome if isinstance(outcome, int) else 0)


def load_role(role: str) -> typer.Typer:
    """Import and return the Typer app of `role`.

    Raises:
        ConfigError: a package that the role needs is not installed.
    """
    module, name, packages = ROLES[role]
    # Looked for, not imported: the commands import what they need when they need it.
    if not all(_is_installed(package) for package in packages):
        raise ConfigError(
            "role-not-installed", f"the {role} role is not installed", next_step=f"pip install 'wardround[{role}]'"
        )
    found: typer.Typer = getattr(importlib.import_module(module), name)
    return found


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def run(call: Callable[[], object], *, as_json: bool = False) -> int:
    """Return the exit code of `call`, after showing its error if it has one."""
    try:
        outcome = call()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), nl=False)
        return 2
    except click.ClickException as error:
        return _show(as_json, ConfigError("usage", error.format_message(), next_step=_usage_help(error)), 2)
    except (click.exceptions.Abort, KeyboardInterrupt):
        Output().note("stopped")
        return 130
    except WardroundError as error:
        return _show(as_json, error, 2 if error.code == "role-not-installed" else error.exit_code)
    except MemoryError:
        return _show(as_json, memory_exhausted(), 1)
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("wardround"):
            return _show(as_json, _bug(error), 70)
        return _show(as_json, _missing_package(error.name), 2)
    except Exception as error:
        return _show(as_json, _bug(error), 70)
    return outcome if isinstance(outcome, int) else 0


def main() -> None:
    """Run the command line; the entry point `wardround`."""
    forbid_core_dumps()
    arguments = sys.argv[1:]
    sys.exit(
        run(lambda: app(args=arguments, prog_name="wardround", standalone_mode=False), as_json="--json" in arguments)
    )


def _usage_help(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'wardround'} --help"


def _show(as_json: bool, error: WardroundError, exit_code: int) -> int:
    if as_json:
        document = {"error": {"code": error.code, "message": error.message, "next_step": error.next_step}}
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
    else:
        Output().note(f"error: {error.message}")
        Output().note(f"next: {error.next_step}")
    return exit_code


def _missing_package(name: str) -> WardroundError:
    return ConfigError(
        "package-not-installed",
        f"the package {name} is not installed",
        next_step="install the extra of your role: pip install 'wardround[client]' or 'wardround[server]'",
    )


def _bug(error: Exception) -> WardroundError:
    if os.environ.get(DEBUG_VARIABLE) == "1":
        traceback.print_exception(error)
    # Neither message nor arguments: an unforeseen exception may carry anything.
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((f for f in reversed(frames) if not f.filename.startswith("<")), frames[-1])
    return WardroundError(
        "bug",
        f"unexpected {type(error).__name__} at {os.path.basename(frame.filename)}:{frame.lineno}: this is a bug",
        next_step=f"run it again with {DEBUG_VARIABLE}=1 and report it; remove patient data and keys first",
    )
