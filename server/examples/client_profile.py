"""Extracts a client's profile from a note: name, US phone number and US zip code; every answer meets the schema.

Run it: python -m server.examples.client_profile "Call Anna Price at (503) 555-0142; she lives in 97205."
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from quantyard.formatting.printable import printable
from server.client.client import DEFAULT_KEY_FILE, DEFAULT_URL, Client, ClientError, Sampling
from server.client.structured import structured_over_http

NOTE: Final = "Spoke with Anna Price this morning. Reach her at 503-555-0142; her office is in Portland, zip 97205."
# Few tokens, since the values are short; the schema constrains everything else.
SAMPLING: Final = Sampling(temperature=0.3, max_tokens=200)


class ClientProfile(BaseModel):
    """Whom to call, and where they are."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Z][a-z]{1,19}( [A-Z][a-z]{1,19}){1,2}$")]
    phone: Annotated[str, Field(pattern=r"^\([2-9]\d{2}\) [2-9]\d{2}-\d{4}$")]  # no area or exchange starts with 0 or 1
    zip_code: Annotated[str, Field(pattern=r"^\d{5}(-\d{4})?$")]


def client_profile_question(note: str) -> str:
    """The prompt for a note."""
    return (
        "Read this note and give the client's profile as JSON with the fields name, phone as (503) 555-0142, "
        f"and zip_code.\n\nNote: {note}"
    )


def main() -> None:
    """Entry point: the profile as JSON on stdout."""
    parser = argparse.ArgumentParser(description="Extract a client's profile from a note.")
    parser.add_argument("note", nargs="?", default=NOTE)
    parser.add_argument("--base-url", default=DEFAULT_URL)
    parser.add_argument("--key-file", type=Path, default=DEFAULT_KEY_FILE)
    args = parser.parse_args()
    try:
        client = Client(args.base_url, args.key_file)
        found = structured_over_http(client, ClientProfile, client_profile_question(args.note), SAMPLING)
    except ClientError as error:
        sys.exit(printable(str(error)))
    sys.stdout.write(json.dumps(found.model_dump(), indent=2) + "\n")


if __name__ == "__main__":
    main()
