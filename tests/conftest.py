"""How all tests run: no result depends on how fast the machine is."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "eplb",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("eplb")


@pytest.fixture(scope="session", autouse=True)
def _unjudged():
    """A command that a test runs in its own process goes on in it; one in a process of its own is judged.

    It holds for fixtures of modules too, and a test that undoes what it has patched does not undo this:
    either would go on in a child of itself.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eplb_cli.run.judge.go_on_judged", lambda *_: None)
        yield
