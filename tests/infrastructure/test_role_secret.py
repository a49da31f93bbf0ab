"""The password that prepare_database gives the role where an RDS Proxy, or the application, keeps it in a secret."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import boto3
import pytest
from moto import mock_aws

FOLDER = Path(__file__).parents[2] / "functions" / "prepare_database"


@pytest.fixture(scope="module")
def preparation() -> ModuleType:
    """prepare_database's module, under a name of its own."""
    spec = importlib.util.spec_from_file_location("prepare_database_preparation", FOLDER / "preparation.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The ARN of a secret for plungepool_app."""
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    with mock_aws():
        content = json.dumps({"username": "plungepool_app", "password": "from-the-secret"})
        yield boto3.client("secretsmanager").create_secret(Name="role", SecretString=content)["ARN"]


def test_password_comes_from_the_secret(preparation: ModuleType, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With APP_ROLE_SECRET_ARN, as the template sets it, the role's password is the secret's, and no repr shows it."""
    monkeypatch.setenv("APP_ROLE_SECRET_ARN", secret)
    options = preparation.Options.read({})
    assert options.role_password == "from-the-secret"
    assert "from-the-secret" not in repr(options)


def test_secret_of_another_role_is_refused(preparation: ModuleType, secret: str) -> None:
    """A secret whose username is not the role's name is an error that names both and not the password."""
    with pytest.raises(preparation.PreparationError, match="'reader'") as caught:
        preparation.Options.read({"RoleSecretArn": secret, "RoleName": "reader"})
    assert "from-the-secret" not in str(caught.value)


def test_secret_that_cannot_be_read_is_named(preparation: ModuleType, secret: str) -> None:
    """A secret that does not exist is an error that names the setting and the secret."""
    with pytest.raises(preparation.PreparationError, match=r"role_secret_arn: .*missing"):
        preparation.Options.read({"role_secret_arn": "missing"})
