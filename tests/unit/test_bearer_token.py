"""Where the token of HTTP clients lies, and who may read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from potatod import bearer_token
from potatod.config import Settings
from potatod.errors import ConfigError

TOKEN = "potato-0123456789abcdef"


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As systemd makes them for a service that has some."""
    place = tmp_path / "credentials"
    place.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(place))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return place


def written(path: Path, mode: int) -> Path:
    path.write_text(f"{TOKEN}\n")
    path.chmod(mode)
    return path


def test_a_credential_of_the_service_is_the_token_where_nobody_says_another(credentials: Path, tmp_path: Path) -> None:
    assert Settings().gateway.token == str(tmp_path / "state/potato/gateway.token")
    written(credentials / "gateway.token", 0o400)
    assert Settings().gateway.token == str(credentials / "gateway.token")
    assert bearer_token.read_or_make(Path(Settings().gateway.token)) == TOKEN


def test_outside_of_a_service_the_token_is_in_the_users_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert Settings().gateway.token == str(tmp_path / "potato/gateway.token")


def test_a_credentials_access_control_list_shows_as_rights_of_the_group_and_is_no_reason_to_refuse_it(credentials: Path) -> None:
    assert bearer_token.read(written(credentials / "gateway.token", 0o440)) == TOKEN


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_token_that_others_may_read_is_refused_anywhere_else(tmp_path: Path, credentials: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="others may read the token"):
        bearer_token.read(written(tmp_path / "token", mode))


@pytest.mark.parametrize("mode", [0o404, 0o460])
def test_a_credential_that_everybody_may_read_or_the_group_write_is_refused_too(credentials: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="others may read the token"):
        bearer_token.read(written(credentials / "gateway.token", mode))
