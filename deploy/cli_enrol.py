"""Joining a federation: the commands of a coordinator who makes one and of a hospital that enters it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.passphrase import ask_passphrase, new_passphrase
from shared_models.errors import BadInput

if TYPE_CHECKING:
    from server.federation import Federation

CoordinatorHome = Annotated[Path, typer.Option("--home", metavar="DIR", help="The coordinator's folder.")]
SiteHome = Annotated[Path, typer.Option("--home", metavar="DIR", help="The hospital's folder.")]
PassphraseFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Holds the passphrase; so can CONSILIUM_PASSPHRASE.")
]
AskPassphrase = Annotated[bool, typer.Option("--ask-passphrase", help="Type a passphrase, twice.")]
SiteName = Annotated[str, typer.Argument(metavar="SITE")]

COORDINATOR = Path("coordinator")
SITE = Path("site")


def coordinator_init(
    name: Annotated[str, typer.Option(help="Of the federation: a-z 0-9 _ . - and at most 63 of them.")],
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where hospitals will dial.")],
    home: CoordinatorHome = COORDINATOR,
    san: Annotated[
        list[str] | None, typer.Option(metavar="HOST", help="One more host name or IP address; can be repeated.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    ask_passphrase: AskPassphrase = False,
) -> None:
    """Make a federation: its certificate authority, keys and registry.

    The address stands in every kit and in the server certificate, so give the
    name that hospitals will reach. Keys are readable by you alone; with a
    passphrase they are encrypted as well. The folder must not exist yet.

    consilium coordinator init --name liver --address fl.example.org:443
    consilium coordinator init --name liver --address 192.0.2.7:443 --ask-passphrase

    Exit codes
      0  made
      2  bad input: a name, the address, the passphrase or an existing folder
    """
    from deploy.provision import init

    passphrase = new_passphrase(passphrase_file, ask_passphrase)
    federation = init(home, name, address, passphrase, san or ())
    typer.echo(f"Made the federation {name} in {home}. Keep a copy of this folder in a safe place.")
    typer.echo(f"Fingerprint of its signing key, for hospitals to compare: {_fingerprint(federation.signing_public)}")
    if passphrase is None:
        typer.echo("The keys are not encrypted; with --ask-passphrase they would be.")
    typer.echo("Next: a hospital sends its request.json; consilium coordinator admit request.json")


def coordinator_admit(
    request: Annotated[Path, typer.Argument(metavar="REQUEST.json")],
    home: CoordinatorHome = COORDINATOR,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The kit to write; default kit-SITE.json. None is overwritten.")
    ] = None,
) -> None:
    """Take a hospital in, and write the kit to send back to it.

    A kit holds nothing secret. Compare the printed fingerprint with the one
    that the hospital sees, by telephone: a request may have been exchanged on
    its way. No other site notices anything.

    consilium coordinator admit request.json
    consilium coordinator admit request.json --out kit.json

    Exit codes
      0  admitted, and the kit is written
      2  bad input: the request is forged or damaged, or its name or key is taken
    """
    from deploy.provision import admit
    from server.federation import open_federation
    from shared_models.enrolment import read_request, write

    out = out or Path(f"kit-{read_request(request).site}.json")
    if out.exists():
        raise BadInput(f"{out} exists already; give another --out")
    kit = admit(home, request)
    write(out, kit)
    federation = open_federation(home)
    entry = next(entry for entry in federation.registry.entries() if entry.name == kit.site)
    state = "" if entry.state == "active" else f"; it is {entry.state}"
    typer.echo(f"Admitted {kit.site} to {kit.federation}{state}. Wrote {out}; send it to the hospital.")
    typer.echo(f"Compare by telephone, the hospital's key:  {_fingerprint(entry.public_key)}")
    typer.echo(f"and the key that this federation signs by: {_fingerprint(kit.signing_key)}")
    typer.echo(f"If the first differs: consilium coordinator remove {kit.site}")
    _warn(federation)


def coordinator_list(home: CoordinatorHome = COORDINATOR) -> None:
    """List the sites: name, state, day of admission, fingerprint of the key.

    Warns when a certificate has less than 30 days left.

    consilium coordinator list

    Exit codes
      0  listed
      2  bad input: no federation in this folder, or something in it is damaged
    """
    from server.federation import open_federation

    federation = open_federation(home)
    entries = federation.registry.entries()
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        fingerprint = _fingerprint(entry.public_key)
        typer.echo(f"{entry.name:<{width}}  {entry.state:<9}  {entry.admitted[:10]}  {fingerprint}")
    if not entries:
        typer.echo("No site yet; consilium coordinator admit request.json")
    _warn(federation)


def coordinator_suspend(site: SiteName, home: CoordinatorHome = COORDINATOR) -> None:
    """Keep a site out until it is readmitted. Works at once.

    consilium coordinator suspend berlin

    Exit codes
      0  suspended
      2  bad input: no such site
    """
    from server.federation import open_federation

    open_federation(home).registry.suspend(site)
    typer.echo(f"Suspended {site}. Let it back in with: consilium coordinator readmit {site}")


def coordinator_readmit(site: SiteName, home: CoordinatorHome = COORDINATOR) -> None:
    """Let a suspended site take part again. Works at once.

    consilium coordinator readmit berlin

    Exit codes
      0  active
      2  bad input: no such site
    """
    from server.federation import open_federation

    open_federation(home).registry.readmit(site)
    typer.echo(f"{site} is active again.")


def coordinator_remove(site: SiteName, home: CoordinatorHome = COORDINATOR) -> None:
    """Forget a site: its key opens nothing any more. Works at once.

    What it has already contributed to models stays in them.

    consilium coordinator remove berlin

    Exit codes
      0  removed
      2  bad input: no such site
    """
    from server.federation import open_federation

    open_federation(home).registry.remove(site)
    typer.echo(f"Removed {site}. Its name is free; it comes back only through `consilium coordinator admit`.")


def coordinator_renew(home: CoordinatorHome = COORDINATOR, passphrase_file: PassphraseFile = None) -> None:
    """Renew the server certificate for another year.

    It comes from the same authority, so no site has to do anything.

    consilium coordinator renew

    Exit codes
      0  renewed; restart the coordinator to use it
      2  bad input: the authority's key, its passphrase, or the folder
    """
    from deploy.provision import renew
    from server.federation import open_federation

    federation = open_federation(home)
    certificate = renew(home, ask_passphrase(federation.paths.ca_key, passphrase_file))
    typer.echo(
        f"The server certificate is valid until {certificate.not_valid_after_utc:%Y-%m-%d}. "
        "Restart the coordinator to use it; sites need nothing."
    )
    _warn(federation)


def site_init(
    name: Annotated[str, typer.Option(help="Of this site: a-z 0-9 _ . - and at most 63 of them.")],
    home: SiteHome = SITE,
    passphrase_file: PassphraseFile = None,
    ask_passphrase: AskPassphrase = False,
) -> None:
    """Make this hospital's key, and the request to send to the coordinator.

    The key is made here and never leaves. The folder must not exist yet.

    consilium site init --name berlin
    consilium site init --name berlin --home /etc/consilium/site --ask-passphrase

    Exit codes
      0  made
      2  bad input: the name, the passphrase or an existing folder
    """
    from deploy.provision import init_site

    passphrase = new_passphrase(passphrase_file, ask_passphrase)
    request = init_site(home, name, passphrase)
    typer.echo(f"Made the key of {name} in {home}; it stays there.")
    typer.echo(f"Send {home / 'request.json'} to the coordinator. It holds nothing secret.")
    typer.echo(f"Fingerprint of this key, for the coordinator to compare: {_fingerprint(request.public_key)}")
    if passphrase is None:
        typer.echo("The key is not encrypted; with --ask-passphrase it would be.")
    typer.echo("Next, with the kit that comes back: consilium site join kit.json --manifest manifest.csv")


def site_join(
    kit: Annotated[Path, typer.Argument(metavar="KIT.json")],
    manifest: Annotated[Path, typer.Option(metavar="MANIFEST.csv", help="One row for each case.")],
    data_root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="No image outside it is opened; default the manifest's folder.")
    ] = None,
    home: SiteHome = SITE,
    trust: Annotated[
        str | None, typer.Option(metavar="SHA256:...", help="The fingerprint that the coordinator told you.")
    ] = None,
) -> None:
    """Enter the federation of a kit, and write site.yaml to edit.

    Whoever signs with the key in the kit may ask this site for training, as far
    as the policy in site.yaml goes. So have its fingerprint told by telephone;
    without --trust you are asked for it. A site.yaml that exists is kept.

    consilium site join kit.json --manifest manifest.csv --trust SHA256:...
    consilium site join kit.json --manifest cases.csv --data-root /data/images

    Exit codes
      0  joined; nothing runs yet
      2  bad input: a kit for another site, another fingerprint, no manifest
    """
    from deploy.provision import join, kit_for

    opened = kit_for(home, kit)
    fingerprint = _fingerprint(opened.signing_key)
    _compare(fingerprint, trust, f"{kit}: federation {opened.federation} at {opened.address}")
    wrote = join(home, opened, manifest, data_root if data_root else manifest.parent)
    typer.echo(f"{opened.site} has joined {opened.federation} at {opened.address}.")
    config = home / "site.yaml"
    if wrote:
        typer.echo(f"Wrote {config}. Its policy allows nothing yet: edit it. Next: consilium site doctor")
    else:
        typer.echo(f"Kept {config} as it was; see that its policy lists the coordinator {fingerprint}")


def _compare(found: str, told: str | None, what: str) -> None:
    """Raises BadInput unless a person vouches for the fingerprint of a kit's signing key."""
    if told is not None:
        if told.strip() != found:
            raise BadInput(f"{what} signs by {found}, but you were told {told[:80]}; do not use this kit, ask again")
        return
    if not sys.stdin.isatty():
        raise BadInput(f"{what} signs by {found}; compare by telephone, then give --trust with what you were told")
    typer.echo(f"{what} signs by\n  {found}")
    if not typer.confirm("Is this the fingerprint that the coordinator told you?"):
        raise BadInput("not joined; ask the coordinator for the fingerprint, by telephone")


def _fingerprint(line: str) -> str:
    from shared_models.keys import key_fingerprint

    return key_fingerprint(line)


def _warn(federation: Federation) -> None:
    for warning in federation.warnings(datetime.now(UTC)):
        typer.echo(f"warning: {warning}", err=True)


COORDINATOR_COMMANDS: dict[str, Callable[..., None]] = {
    "init": coordinator_init,
    "admit": coordinator_admit,
    "list": coordinator_list,
    "suspend": coordinator_suspend,
    "readmit": coordinator_readmit,
    "remove": coordinator_remove,
    "renew": coordinator_renew,
}
SITE_COMMANDS: dict[str, Callable[..., None]] = {"init": site_init, "join": site_join}
