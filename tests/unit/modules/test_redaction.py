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
        *("DB_PWD", "dbPwd", "GITHUB_PAT", "OPENAI_KEY", "openai_key", "AWS_CREDS", "SESSION_JWT", "my_cookie"),
        *("AZURE_STORAGE_CONNECTION_STRING", "connectionString", "MYTOKEN", "CLIENTSECRET", "dbpass", "BASIC_AUTH"),
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
        *("TOKENIZER", "PATH", "KEYBOARD", "MONKEY", "PATTERN", "vocab_key", "vocabKeys", "image_key", "missing_keys"),
        *("pwd", "OLDPWD", "patience", "per_token", "padtoken", "bypass", "sacred", "cookies", "author", "connection"),
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


@pytest.mark.parametrize(
    "name",
    [
        *("PGPASSWORD", "DB_PWD", "GITHUB_PAT", "OPENAI_KEY", "MYSQL_ROOT_PASSWORD", "AWS_CREDS", "SESSION_JWT"),
        *("MY_COOKIE", "AZURE_STORAGE_CONNECTION_STRING", "DBPWD", "MYTOKEN", "CLIENTSECRET", "PROJECT_KEY"),
    ],
)
def test_variables_of_well_known_programs_hold_secrets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "correct-horse")
    assert redact("group: correct-horse") == "group: ***"
    assert list(find_secrets({"group": "correct-horse"})) == [("group", "holds a secret")]


@pytest.mark.parametrize("name", ["TOKENIZER", "KEYBOARD", "MONKEY", "PATTERN", "NLTK_PATH", "MAX_NEW_TOKENS"])
def test_other_variables_hold_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "correct-horse")
    assert redact("group: correct-horse") == "group: correct-horse"
    assert list(find_secrets({"group": "correct-horse"})) == []


@pytest.mark.parametrize("name", ["PWD", "OLDPWD", "SSL_KEY"])
def test_variables_that_name_a_place_hold_none(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, str(tmp_path))
    assert redact(f"in {tmp_path}") == f"in {tmp_path}"


PEM = "-----BEGIN {0}-----\nMIIEpAIBAAKCAQEA7\nq3+/==\n-----END {0}-----"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dBjftJeZ4CVP-mB92K_uhbUJU1p1r"


@pytest.mark.parametrize(
    "key",
    [
        "hf_" + "aB3" * 10,
        "ghp_" + "aB3" * 12,
        "AKIAIOSFODNN7EXAMPLE",
        "ASIAIOSFODNN7EXAMPLE",
        "glpat-" + "aB3-_" * 4,
        "glpat-" + "aB3-_" * 5 + ".01.0w1abcdef",
        "github_pat_11ABCDEFG0" + "aB3_" * 15,
        "xoxb-123456789012-abcdefABCDEF",
        "xoxp-1234567890-1234567890-abcdef",
        "AIza" + "SyA-_" * 7,
        "npm_" + "aB3" * 12,
        JWT,
        PEM.format("PRIVATE KEY"),
        PEM.format("RSA PRIVATE KEY"),
        PEM.format("OPENSSH PRIVATE KEY").replace("\n", "\\n"),
        PEM.format("PGP PRIVATE KEY BLOCK"),
        PEM.format("EC PRIVATE KEY").partition("\n-----END")[0],
    ],
)
def test_keys_of_well_known_services_are_known_by_their_shape(key: str) -> None:
    shown = redact(f"model {key}.")
    assert shown.rstrip(".") == "model ***"
    assert list(find_secrets({"pretrained": key})) == [("pretrained", "holds a secret")]


@pytest.mark.parametrize("key", ["glpat-" + "aB3-" * 5, "npm_" + "aB3" * 12, JWT])
def test_a_key_may_follow_a_name(key: str) -> None:
    assert redact(f"runs/x_{key}/y") == "runs/x_***/y"
    assert list(find_secrets({"data": [f"runs/x_{key}/y"]})) == [("data", "holds a secret")]


@pytest.mark.parametrize(
    "text",
    [
        *("glpat-short", "github_pattern_of_names_that_is_long", "npm_config_registry_of_this_machine_here", "xoxb-1"),
        *(
            "AIzawa",
            "eyJ.a.b",
            "s3://bucket/eyJa",
            "-----BEGIN CERTIFICATE-----",
            "-----BEGIN PUBLIC KEY-----",
            "a=b;c=d",
        ),
        *(
            "sha=0123456789abcdef",
            "num_tokens=12345678",
            "tokenizer=files/tokenizer.json",
            "token=none",
            "pwd=/a/folder/x",
        ),
    ],
)
def test_what_only_begins_like_a_key_is_left_alone(text: str) -> None:
    assert list(find_secrets({"name": text})) == []
    if "token=" not in text:
        assert redact(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("AccountName=me;AccountKey=abc+/==;Suffix=x", "AccountName=me;AccountKey=***;Suffix=x"),
        ("AccountKey=abc", "AccountKey=***"),
        ("Endpoint=sb://x/;SharedAccessKey=ab1=", "Endpoint=sb://x/;SharedAccessKey=***"),
        ("Server=db;Uid=me;Pwd=horse", "Server=db;Uid=me;Pwd=***"),
        ("WANDB_API_KEY=correct-horse", "WANDB_API_KEY=***"),
        ("a --password='correct-horse'", "a --password='***'"),
        ("Authorization=Bearer correct-horse", "Authorization=***"),
    ],
)
def test_a_secret_behind_its_name_is_hidden_and_not_taken(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert list(find_secrets({"group": text})) == [("group", "holds a secret")]
