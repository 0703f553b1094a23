"""Say what this machine and the store can do."""

from __future__ import annotations

import click

from tools.cli_context import Context, node_option, verb


@click.command()
@node_option
@verb
def command(context: Context) -> None:
    """Say what this machine and the store can do, and what is wrong.

    \b
    boxlink doctor --store s3://bucket/prefix

    Exit code 0: everything that boxlink needs is there. The probe of the store writes an object of its own and removes
    it.
    """
    from synclib.errors import BoxlinkError
    from tools.cli_engine import open_host
    from tools.doctor import Finding, check_machine, check_store

    findings: list[Finding] = check_machine(open_host(context))
    try:
        findings += check_store(context.open_store())
    except BoxlinkError as error:
        findings.append(Finding("store", False, error.message, error.hint, error.exit_code))
    bad = [finding for finding in findings if not finding.is_good]
    lines = [f"{'ok ' if finding.is_good else 'BAD'} {finding.what}: {finding.found}" for finding in findings]
    lines += [f"    hint: {finding.hint}" for finding in bad if finding.hint]
    rows = [
        {
            "what": finding.what,
            "ok": finding.is_good,
            "found": finding.found,
            "hint": finding.hint,
            **({"mode": finding.mode, "why": finding.why} if finding.mode else {}),
        }
        for finding in findings
    ]
    context.emit({"node": context.node, "ok": not bad, "findings": rows}, "\n".join(lines))
    if bad:
        raise click.exceptions.Exit(bad[0].exit_code)
