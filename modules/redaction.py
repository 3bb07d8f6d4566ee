"""Keeps secrets out of everything written and shown: keys, passwords, and addresses that contain them."""

import os
import re
from collections.abc import Iterator
from os.path import exists
from typing import Any

HIDDEN = "***"
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET = re.compile(
    r"(?:^|_)(?:pass|[a-z]*(?:password|passwd|passphrase)|secret|credential|api_?key|(?:access|private|secret|auth|account)_key"
    r"|authorization|bearer|sas_token|token)s?$"
)
_SECRET_VARIABLE = re.compile(r"_(?:PWD|PAT|KEY|AUTH)$")
"""Further names of environment variables with secrets, such as DB_PWD, GITHUB_PAT and OPENAI_KEY."""
_TEXT_TOKEN = re.compile(r"(?:^|_)(?:pad|eos|bos|unk|sep|cls|mask|image|start|end|stop|special|per|each)_token$")
"""Names of text tokens, which are not secrets."""
_USER_IN_ADDRESS = re.compile(r"(?P<before>\b[a-z][a-z0-9+.-]*://)(?P<secret>[^/\s@\"']+)@", re.IGNORECASE)
_SIGNATURE = re.compile(
    r"(?P<before>[?&](?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|Signature|sig|AWSAccessKeyId"
    r"|GoogleAccessId|access_token|token|api_?key|password)=)(?P<secret>[^&\s\"']+)",
    re.IGNORECASE,
)
_SHAPES = re.compile(r"\b(?:hf_\w{20,}|gh[pousr]_\w{20,}|wandb_v1_\w{20,}|AKIA[0-9A-Z]{16}|sk-[\w-]{20,})")
"""The form of well-known services' keys."""
_NAMED = re.compile(r"(?P<key>[\w.-]+)(?P<between>[\"']?\s*[=:]\s*[\"']?)(?P<secret>[^\s\"',;}]+)")
_LEAST = 8
"""Environment values shorter than this are not treated as secrets: hiding them would hide too much else."""


def is_secret_key(key: str) -> bool:
    """Whether ``key`` names a secret. ``WANDB_API_KEY`` and ``hub.token`` do; ``num_tokens`` does not."""
    name = "_".join(_WORDS.findall(key.rsplit(".", 1)[-1])).lower()
    if name.endswith("tokens") or _TEXT_TOKEN.search(name):
        return False
    return bool(_SECRET.search(name))


def redact(text: str) -> str:
    """Return ``text`` with everything hidden that looks like a secret."""
    for value in _secrets_of_environment():
        text = text.replace(value, HIDDEN)
    text = _USER_IN_ADDRESS.sub(rf"\g<before>{HIDDEN}@", text)
    text = _SIGNATURE.sub(rf"\g<before>{HIDDEN}", text)
    text = _SHAPES.sub(HIDDEN, text)
    return _NAMED.sub(lambda found: _hide(found) if is_secret_key(found["key"]) else found[0], text)


def redacted(value: Any) -> Any:
    """Return plain data with its texts redacted, and values under a secret's name hidden."""
    if isinstance(value, dict):
        return {redacted(k): HIDDEN if is_secret_key(str(k)) and _counts(v) else redacted(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def find_secrets(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, what is wrong) for each secret in plain data, without the secret itself."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from find_secrets(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from find_secrets(value, key)
    elif is_secret_key(key) and _counts(values):
        yield key, "is named like a secret"
    elif isinstance(values, str):
        if _has_password(values):
            yield key, "is an address with a user's password in it"
        elif _SIGNATURE.search(values):
            yield key, "is a signed address"
        elif _SHAPES.search(values) or any(value in values for value in _secrets_of_environment()):
            yield key, "holds a secret"


def _counts(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and value not in ("", 0)


def _has_password(text: str) -> bool:
    """Whether there is a ``user:password@`` anywhere, or any user in a web address, which is then a token."""
    found = _USER_IN_ADDRESS.search(text)
    return found is not None and (":" in found["secret"] or found["before"].lower().startswith("http"))


def _secrets_of_environment() -> list[str]:
    values = {
        value
        for name, value in os.environ.items()
        if (is_secret_key(name) or _SECRET_VARIABLE.search(name)) and len(value) >= _LEAST and not exists(value)
    }
    return sorted(values, key=len, reverse=True)


def _hide(found: re.Match[str]) -> str:
    return f"{found['key']}{found['between']}{HIDDEN}"
