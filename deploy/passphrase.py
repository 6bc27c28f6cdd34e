"""The passphrase of a key: from a file, from the environment, or from a person at a terminal."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

from shared_models.errors import BadInput

VARIABLE = "CONSILIUM_PASSPHRASE"


def ask_passphrase(key_path: Path, file: Path | None) -> bytes | None:
    """The passphrase of a key: from ``file``, else from CONSILIUM_PASSPHRASE, else typed; None for a key without one.

    Raises:
        BadInput: the key cannot be read, the file holds no passphrase, or there is neither of them and no terminal.
    """
    from shared_models.keys import is_encrypted

    if not is_encrypted(key_path):
        return None
    if given := _given(file):
        return given
    if not sys.stdin.isatty():
        raise BadInput(
            f"the key {key_path} is encrypted; give its passphrase in a file with --passphrase-file, "
            f"in the environment variable {VARIABLE}, or at a terminal"
        )
    return _not_empty(getpass.getpass(f"Passphrase of {key_path}: ").encode(), "what was typed")


def new_passphrase(file: Path | None, ask: bool) -> bytes | None:
    """The passphrase for new keys: from ``file``, typed twice with ``ask``, else from CONSILIUM_PASSPHRASE, else None.

    Raises:
        BadInput: the file holds no passphrase, the two typed ones differ, or there is no terminal to type them at.
    """
    if not ask:
        return _given(file)
    if file:
        raise BadInput("give either --passphrase-file or --ask-passphrase, not both")
    if not sys.stdin.isatty():
        raise BadInput(f"--ask-passphrase needs a terminal; use --passphrase-file or {VARIABLE} instead")
    typed = _not_empty(getpass.getpass("Passphrase for the new keys: ").encode(), "what was typed")
    if getpass.getpass("The same again: ").encode() != typed:
        raise BadInput("the two passphrases differ; nothing was made, try again")
    return typed


def _given(file: Path | None) -> bytes | None:
    """From the file or the environment. The mode of the file is not judged: containers mount secrets readable."""
    if file:
        try:
            with file.open("rb") as opened:
                return _not_empty(opened.read(4096).rstrip(b"\r\n"), str(file))
        except OSError as error:
            raise BadInput(f"the passphrase in {file} cannot be read: {error.strerror or error}") from None
    if VARIABLE in os.environ:
        return _not_empty(os.fsencode(os.environ[VARIABLE]), VARIABLE)
    return None


def _not_empty(passphrase: bytes, source: str) -> bytes:
    if not passphrase:
        raise BadInput(f"{source}: an empty passphrase; expected at least one character")
    return passphrase
