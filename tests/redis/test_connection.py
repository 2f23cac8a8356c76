"""Clients: what they open they close."""

from __future__ import annotations

from typing import Any

from harness import wait_until

from rqmr.connection import clone


def test_a_client_that_is_closed_has_no_connection_left(redis: Any) -> None:
    client = clone(redis, patient=False, name="a-clone")
    client.ping()
    assert "a-clone" in names(redis)
    client.close()
    wait_until(lambda: "a-clone" not in names(redis), timeout=5, what="the server sees it go")
    assert client.ping(), "it is still there to be asked"
    client.close()


def names(redis: Any) -> list[str]:
    return [each["name"] for each in redis.client_list()]
