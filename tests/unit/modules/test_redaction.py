"""Secrets are hidden wherever they stand; what merely sounds like one is left alone."""

from pathlib import Path

import pytest

from modules.redaction import find_secrets, is_secret_key, redact, redacted

SECRET = "7Hq2planted9Zx"


@pytest.mark.parametrize(
    "key",
    [
        *("api_key", "WANDB_API_KEY", "apiKey", "hub.token", "HF_TOKEN", "access_token", "password", "db_password"),
        *("secret", "client_secret", "AWS_SECRET_ACCESS_KEY", "aws_session_token", "credentials", "private_key"),
    ],
)
def test_names_of_secrets(key: str) -> None:
    assert is_secret_key(key)
    assert redacted({key: SECRET, "x": 1}) == {key: "***", "x": 1}
    assert list(find_secrets({"tracking": {key: SECRET}})) == [(f"tracking.{key}", "is named like a secret")]
    assert redact(f"{key}={SECRET} is unknown") == f"{key}=*** is unknown"
    assert SECRET not in redact(f'{{"{key}": "{SECRET}"}}')


@pytest.mark.parametrize(
    "key",
    [
        *("num_tokens", "tokens", "max_new_tokens", "image_tokens", "tokenizer", "token_dropout", "pad_token"),
        *("eos_token", "tokens_per_s", "key", "monkey", "keys", "password_file", "train/tokens_per_s", "compass"),
    ],
)
def test_harmless_names(key: str) -> None:
    assert not is_secret_key(key)
    assert redacted({key: "tokenizer.json"}) == {key: "tokenizer.json"}
    assert list(find_secrets({key: "tokenizer.json"})) == []
    assert redact(f"{key}=5 and {key}: 6") == f"{key}=5 and {key}: 6"


@pytest.mark.parametrize("value", [None, "", False, True, 0])
def test_nothing_under_a_secrets_name_is_no_secret(value: object) -> None:
    assert redacted({"token": value}) == {"token": value}
    assert list(find_secrets({"token": value})) == []


@pytest.mark.parametrize(
    ("address", "shown", "why"),
    [
        (
            f"https://me:{SECRET}@host.org/mmu/manifest.json",
            "https://***@host.org/mmu/manifest.json",
            "an address with a user's password in it",
        ),
        (f"https://{SECRET}@host.org/x", "https://***@host.org/x", "an address with a user's password in it"),
        (f"s3://key:{SECRET}@bucket/x", "s3://***@bucket/x", "an address with a user's password in it"),
        (
            f"https://host/x.tar?X-Amz-Date=2&X-Amz-Signature={SECRET}&y=1",
            "https://host/x.tar?X-Amz-Date=2&X-Amz-Signature=***&y=1",
            "a signed address",
        ),
        (f"https://host/x?se=1&sig={SECRET}", "https://host/x?se=1&sig=***", "a signed address"),
    ],
)
def test_addresses_that_carry_a_secret(address: str, shown: str, why: str) -> None:
    assert redact(f"cannot open {address} now") == f"cannot open {shown} now"
    assert redacted({"data": [{"mmu": address}]}) == {"data": [{"mmu": shown}]}
    assert list(find_secrets({"data": {"shards": [address]}})) == [("data.shards", f"is {why}")]


@pytest.mark.parametrize(
    "address",
    ["s3://bucket/mmu/manifest.json", "https://host/x?version=3", "ssh://git@host/x.git", "/data/a@b/manifest.json"],
)
def test_plain_addresses(address: str) -> None:
    assert list(find_secrets({"data": {"mmu": address}})) == []


def test_what_the_environment_keeps_secret_is_known_by_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    assert redact(f"header {SECRET}") == f"header {SECRET}"
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    assert redact(f"header {SECRET} abc") == "header *** abc"
    assert list(find_secrets({"name": f"run-{SECRET}"})) == [("name", "holds a secret")]
    assert list(find_secrets({"name": "run-abc"})) == []


@pytest.mark.parametrize("name", ["PGPASSWORD", "DB_PWD", "GITHUB_PAT", "OPENAI_KEY", "MYSQL_ROOT_PASSWORD"])
def test_variables_of_well_known_programs_hold_secrets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "correct-horse")
    assert redact("group: correct-horse") == "group: ***"
    assert list(find_secrets({"group": "correct-horse"})) == [("group", "holds a secret")]


@pytest.mark.parametrize("name", ["PWD", "OLDPWD", "SSL_KEY"])
def test_variables_that_name_a_place_hold_none(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, str(tmp_path))
    assert redact(f"in {tmp_path}") == f"in {tmp_path}"


def test_keys_of_well_known_services_are_known_by_their_shape() -> None:
    key = "hf_" + "aB3" * 10
    assert redact(f"model {key}.") == "model ***."
    assert list(find_secrets({"pretrained": key})) == [("pretrained", "holds a secret")]
