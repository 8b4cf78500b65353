"""`wardround client request` and `certificate`: for hospitals that bring certificates of their own authority.

Rules. The key is made here and stays here; only the request leaves, to the hospital's own authority.
"""

from pathlib import Path
from typing import Annotated

import typer

from wardround_client.cli_options import AsJson, HomeOption
from wardround_client.config import load
from wardround_client.enrolment import request_certificate
from wardround_client.renewal import use_own_certificate
from wardround_common.identity.authority import certificate_digest, parse_certificate
from wardround_common.identity.keys import read_file, write_public
from wardround_common.output import Output, progress


def request(
    site: Annotated[str, typer.Argument(help="This hospital's name, as in the invite.", show_default=False)],
    out_file: Annotated[Path, typer.Option("--out", help="New file for the request (PKCS #10, PEM).", metavar="FILE")],
    home: HomeOption = Path(),
    as_json: AsJson = False,
) -> None:
    """Make a key and a certificate request for this hospital's own authority to sign (client authentication, P-256).

    Example: wardround client request north-ward --home client --out north-ward.csr
    """
    out = Output(as_json=as_json)
    write_public(out_file, request_certificate(home, site))
    out.say(f"wrote {out_file}; when it is signed: wardround client enroll INVITE --certificate FILE,")
    out.say("or, if this home is enrolled already: wardround client certificate FILE")
    out.result({"file": str(out_file)})


def certificate(
    file: Annotated[Path, typer.Argument(help="The signed certificate (PEM).", show_default=False)],
    home: HomeOption = Path(),
    as_json: AsJson = False,
) -> None:
    """Replace this site's certificate by one of the hospital's own authority. A running client uses it after a restart.

    Example: wardround client certificate north-ward.pem --home client
    """
    out, config = Output(as_json=as_json), load(home)
    found = parse_certificate(read_file(file))
    with progress("telling the server"):
        use_own_certificate(home, found, site=config.site, address=config.server, proxy=config.proxy)
    out.say(f"in use: {certificate_digest(found)}, until {found.not_valid_after_utc:%Y-%m-%d}")
    out.result({"certificate": certificate_digest(found), "until": int(found.not_valid_after_utc.timestamp())})
