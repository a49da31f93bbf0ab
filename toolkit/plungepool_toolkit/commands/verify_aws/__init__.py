"""
`plungepool verify-aws`: settle on an account what only an account can settle, and leave nothing behind.

It deploys the application with a demo database behind an RDS Proxy, or with a cluster of Aurora's express
configuration, and beside it functions that look (probe/), prints what was expected and what was seen, and deletes
everything: after a failure and Ctrl-C, too. It begins only with credentials and an explicit yes, given after the prices
were shown.
"""

from __future__ import annotations

import re
import secrets
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from plungepool_toolkit.commands.console import interrupt_on
from plungepool_toolkit.commands.verify_aws.account import NO_NETWORK, TAG, Account, Network, Refusal, find_sam
from plungepool_toolkit.commands.verify_aws.facts import judge
from plungepool_toolkit.commands.verify_aws.prices import PRICES, Mode, show_prices
from plungepool_toolkit.commands.verify_aws.report import show_findings, write_findings
from plungepool_toolkit.commands.verify_aws.verification import Verification


def verify_aws(
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Accept the costs without being asked.")] = False,
    database: Annotated[str, typer.Option(help="aurora (Serverless v2), instance, or express.")] = "aurora",
    region: Annotated[str | None, typer.Option(help="The Region. Default: AWS_REGION.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="The profile of the AWS credentials. Default: AWS_PROFILE.")
    ] = None,
    vpc_id: Annotated[str | None, typer.Option(help="The VPC. Default: the default VPC.")] = None,
    subnet_ids: Annotated[str, typer.Option(help="Two or more subnets in different zones, separated by commas.")] = "",
    architecture: Annotated[str, typer.Option(help="The architecture of the functions: arm64 or x86_64.")] = "arm64",
    delete: Annotated[str | None, typer.Option(help="Only delete what the run with this name left behind.")] = None,
    folder: Annotated[
        Path, typer.Option(help="The directory that contains template.yaml.", exists=True, file_okay=False)
    ] = Path(),
    sam: Annotated[Path | None, typer.Option(help="The SAM CLI.", exists=True, dir_okay=False)] = None,
    patience_s: Annotated[
        float, typer.Option(help="How many seconds to wait for an environment to be shut down (SIGTERM).")
    ] = 900.0,
    output: Annotated[
        Path | None, typer.Option(help="Also write the findings and the evidence to this file, as JSON.")
    ] = None,
) -> None:
    """
    Deploy to an AWS account, settle what only an account can settle, and delete everything again. It costs money.

    Exits with 0 if all is as expected and deleted, 1 if not, 2 if it refused to begin, 130 if it was interrupted.
    """
    console = Console()
    mode: Mode = next((known for known in PRICES if known == database), "aurora")
    try:
        if database not in PRICES:
            raise Refusal(f"--database is aurora or instance or express, not {database!r}")
        account = Account(region, profile)
        name = delete or f"{TAG}-{secrets.token_hex(4)}"
        program = find_sam(folder, sam)
        run = Verification(account, name, console, folder=folder.resolve(), sam=program, mode=mode)
        if delete:
            if not re.fullmatch(rf"{TAG}-[0-9a-f]{{8}}", delete):
                raise Refusal(f"{delete!r} is not the name of a run: {TAG}- and eight digits")
            raise typer.Exit(0 if run.delete() else 1)
        if not (folder / "template.yaml").exists():
            raise Refusal(
                f"there is no {folder / 'template.yaml'}: run this in Plungepool's repository, or give --folder"
            )
        show_prices(console, mode)
        console.print(f"In account [bold]{account.number}[/], region [bold]{account.region}[/], as {account.arn}")
        _agree(console, yes)
        given = tuple(part for part in subnet_ids.split(",") if part)
        network = NO_NETWORK if mode == "express" else account.network(vpc_id, given)
    except Refusal as refusal:
        console.print(f"[red]Refused[/]: {escape(str(refusal))}", highlight=False)
        raise typer.Exit(2) from None
    interrupt_on(signal.SIGINT, signal.SIGTERM)  # what was made has to be deleted all the same
    raise typer.Exit(carry_out(run, network, architecture, output, patience_s=patience_s))


def _agree(console: Console, yes: bool) -> None:
    """Return if the costs are agreed to. Raises: Refusal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Refusal("there is no terminal to ask whether you accept the costs: give --yes. Nothing was created")
    answer = console.input("This creates what is listed above and costs money. Type [bold]yes[/] to continue: ")
    if answer.strip() != "yes":
        raise Refusal("the answer was not yes. Nothing was created")


def carry_out(
    run: Verification, network: Network, architecture: str, output: Path | None, *, patience_s: float = 900.0
) -> int:
    """Deploy, look, show and delete; return the exit code. Whatever happens, deletion is tried."""
    from botocore.exceptions import BotoCoreError, ClientError

    console = run.console
    console.print(f"This run is [bold]{run.name}[/]; if all else fails: plungepool verify-aws --delete {run.name}")
    code = 1
    try:
        run.deploy(network, architecture)
        evidence = run.look(patience_s=patience_s)
        findings = judge(evidence, run.mode)
        show_findings(console, findings)
        if output is not None:
            write_findings(output, findings, evidence)
        if all(finding.verdict in ("as expected", "measured") for finding in findings):
            code = 0
    except KeyboardInterrupt:
        console.print("[yellow]Interrupted.[/]")
        code = 130
    except (Refusal, BotoCoreError, ClientError, OSError, KeyError) as error:
        console.print(f"[red]Failed[/]: {escape(f'{type(error).__name__}: {error}')}", highlight=False)
    finally:
        if not run.delete():
            code = code or 1
    return code
