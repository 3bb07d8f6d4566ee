"""Keeps secrets out of everything written and shown: keys, passwords, and addresses that contain them."""

import os
import re
from collections.abc import Iterator
from os.path import exists
from typing import Any

HIDDEN = "***"
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET = re.compile(
    r"(?:^|_)(?:(?:db|pg|ssh|root|user|admin|mail|smtp|ftp)?pass|[a-z]*(?:password|passwd|passphrase)|[a-z]*secret"
    r"|credential|cred|[a-z]*creds|api_?key|(?:access|private|secret|auth|account)_key|authorization|bearer"
    r"|[a-z]*token|[a-z]*jwt|cookie|conn(?:ection)?_?str(?:ing)?)s?$"
    r"|[a-z]pwd$|_(?:pwd|pat|auth|key)$"
)
_HARMLESS = re.compile(
    r"(?:^|_)(?:pad|eos|bos|unk|sep|cls|class|reg|mask|image|audio|video|text|start|end|stop|first|last|next|special|per"
    r"|each|sub|pre|multi)_?token$"
    r"|tokens$|^oldpwd$|^cookies$"
    r"|(?:^|_)(?:public|primary|foreign|partition|sort|cache|hash|vocab|vocabulary|dict|json|yaml|map|index|id|name|step|row"
    r"|column|field|query|attention|image|picture|caption|text|label|question|answer|data|sample|shard|config|metric"
    r"|measure|state|weight|tensor|task|full|missing|unexpected|unknown|entity|project|reference)_key$"
)
"""Names that sound like secrets and are none: those of text tokens, of the last folder, and of keys of tables."""
_SECRET_VARIABLE = re.compile(r"_(?:PWD|PAT|KEY|AUTH)$")
"""Names of environment variables that count whatever stands before, such as PROJECT_KEY."""
_USER_IN_ADDRESS = re.compile(r"(?P<before>\b[a-z][a-z0-9+.-]*://)(?P<secret>[^/\s@\"']+)@", re.IGNORECASE)
_SIGNATURE = re.compile(
    r"(?P<before>[?&](?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|Signature|sig|AWSAccessKeyId"
    r"|GoogleAccessId|access_token|token|api_?key|password)=)(?P<secret>[^&\s\"']+)",
    re.IGNORECASE,
)
_SHAPES = re.compile(
    r"\b(?:hf_\w{20,}|gh[pousr]_\w{20,}|wandb_v1_\w{20,}|sk-[\w-]{20,})"
    r"|(?<![A-Za-z0-9])(?:A(?:KIA|SIA)[0-9A-Z]{16}|gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|soat)-[\w-]{16,}(?:\.[\w-]+)*"
    r"|github_pat_\w{20,}|xox[a-z]-[\w-]{10,}|xapp-[\w-]{10,}|AIza[\w-]{30,}|npm_[A-Za-z0-9]{30,}"
    r"|eyJ[\w-]{5,}(?:\.[\w-]+){2,4})"
    r"|-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
    r".*?(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|\Z)",
    re.DOTALL,
)
"""The form of well-known services' keys, of JSON web tokens, and of private keys."""
_CONNECTION = re.compile(
    r"(?P<before>(?<![a-z])(?:(?:Account|SharedAccess)Key|SharedAccessSignature|(?<=;)\s*(?:Password|Pwd))\s*=\s*)"
    r"(?P<secret>[^\s\"',;}]+)",
    re.IGNORECASE,
)
"""The secret part of a connection string, such as ``AccountName=me;AccountKey=...``."""
_NAMED = re.compile(
    r"(?P<key>[\w.-]+)(?P<between>[\"']?\s*[=:]\s*[\"']?)(?P<secret>(?:(?:Bearer|Basic) +)?[^\s\"',;}]+)"
)
_LEAST = 8
"""Shorter values, of the environment or behind ``=``, are not treated as secrets: too much else would be hidden."""


def is_secret_key(key: str) -> bool:
    """Whether ``key`` names a secret. ``WANDB_API_KEY`` and ``hub.token`` do; ``num_tokens`` does not."""
    name = "_".join(_WORDS.findall(key.rsplit(".", 1)[-1])).lower()
    return bool(_SECRET.search(name)) and not _HARMLESS.search(name)


def redact(text: str) -> str:
    """Return ``text`` with everything hidden that looks like a secret."""
    for value in _secrets_of_environment():
        text = text.replace(value, HIDDEN)
    text = _USER_IN_ADDRESS.sub(rf"\g<before>{HIDDEN}@", text)
    text = _SIGNATURE.sub(rf"\g<before>{HIDDEN}", text)
    text = _SHAPES.sub(HIDDEN, text)
    text = _CONNECTION.sub(rf"\g<before>{HIDDEN}", text)
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
        elif _holds_secret(values):
            yield key, "holds a secret"


def _counts(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and value not in ("", 0)


def _has_password(text: str) -> bool:
    """Whether there is a ``user:password@`` anywhere, or any user in a web address, which is then a token."""
    found = _USER_IN_ADDRESS.search(text)
    return found is not None and (":" in found["secret"] or found["before"].lower().startswith("http"))


def _holds_secret(text: str) -> bool:
    """Whether ``text`` holds a secret: of a known shape, behind its name and ``=``, or of the environment."""
    if _SHAPES.search(text) or _CONNECTION.search(text):
        return True
    named = any(
        "=" in found["between"] and len(found["secret"]) >= _LEAST and is_secret_key(found["key"])
        for found in _NAMED.finditer(text)
    )
    return named or any(value in text for value in _secrets_of_environment())


def _secrets_of_environment() -> list[str]:
    values = {
        value
        for name, value in os.environ.items()
        if (is_secret_key(name) or _SECRET_VARIABLE.search(name)) and len(value) >= _LEAST and not exists(value)
    }
    return sorted(values, key=len, reverse=True)


def _hide(found: re.Match[str]) -> str:
    return f"{found['key']}{found['between']}{HIDDEN}"
