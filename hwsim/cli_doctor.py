"""The commands that help to begin: `doctor` and `init`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from hwsim import completion
from hwsim.terminal import Json, print_json, printable, say, target

if TYPE_CHECKING:
    from hwsim.doctor import Finding


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: hwsim doctor --json")(doctor)
    app.command(epilog="Example: hwsim init mine --engine systolic --engine lutgemm")(init)


def doctor(as_json: Json = False) -> None:
    """Say what is installed and works, what is missing, what that is for, and the command that mends it.

    Ends with 1 where the core is incomplete or something that is installed does not work; extras may be absent.
    """
    from hwsim.doctor import examine

    findings = list(examine())
    healthy = not any(finding.failed for finding in findings)
    if as_json:
        print_json({"ok": healthy, "findings": findings})
    else:
        say(*_lines(findings))
        say("all that is needed is here" if healthy else "not all that is needed is here; see above")
    raise typer.Exit(0 if healthy else 1)


def _lines(findings: Iterable[Finding]) -> Iterator[str]:
    """Part by part, in the order in which parts first appear."""
    parts = list(dict.fromkeys(finding.part for finding in findings))
    ordered = sorted(findings, key=lambda finding: parts.index(finding.part))
    for part, group in groupby(ordered, key=lambda finding: finding.part):
        yield part
        for finding in group:
            purpose = f" ({finding.purpose})" if finding.purpose else ""
            yield printable(f"  {finding.state.value:8} {finding.name}: {finding.found}{purpose}")
            if finding.mend:
                yield printable(f"           {finding.mend}")


def init(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="of the study; `study` by default")] = None,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="sweeps/NAME.yaml by default")] = None,
    engine: Annotated[
        list[str] | None, typer.Option(metavar="UNIT", help="repeat for several", autocompletion=completion.engines)
    ] = None,
    network: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="repeat for several", autocompletion=completion.networks)
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a new sweep file that explains its keys, ready for `hwsim sweep`; no file is overwritten."""
    import shlex

    from hwsim.init import write_study

    path = write_study(name, target("--out", out), engines=engine or [], networks=network or ["digits-mlp"])
    command = shlex.join(["hwsim", "sweep", str(path), "--dry-run"])
    if as_json:
        print_json({"file": str(path), "next": command})
    else:
        say(printable(str(path)), printable(f"next: {command}"))
