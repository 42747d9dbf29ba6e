"""Fixtures only: a clean environment for every test."""

import pytest

NAMES = (
    "RUNCOMFY_API_TOKEN",
    "RUNCOMFY_TOKEN",
    "RUNCOMFY_API_KEY",
    "RUNCOMFY_CONFIG_DIR",
    "RUNCOMFY_MODEL_API_BASE",
    "XDG_CONFIG_HOME",
)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test finds the developer's own token, or a proxy."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path_factory.getbasetemp() / "home"))
