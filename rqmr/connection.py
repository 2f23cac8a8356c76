"""Redis clients with rqmr's own time-outs, and whether a server can serve."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import EqualJitterBackoff, NoBackoff
from redis.connection import HiredisRespSerializer
from redis.retry import Retry

from rqmr.damage import reading
from rqmr.errors import RedisError
from rqmr.facts import Memory
from rqmr.where import hide_password

Client = Any  # redis-py's own annotations give each reply as "now or awaitable"

#: Seconds for one reply. redis-py repeats a command that gets none, so every write of rqmr can be repeated.
_SOCKET_SECONDS = 5
_CONNECT_SECONDS = 5
#: A server that is restarted or loads its data is waited for, 12 s at least and 24 s at most. No health checks: every
#: command can be repeated anyway, and redis-py would nest their retries in those of the command.
_RETRIES = 12
#: How a server says so, of commands and of scripts that reckon with what they have read.
_OF_ANOTHER_TYPE = re.compile(r"WRONGTYPE|is not an? (valid )?(integer|float)|stream has exhausted|user_script:\d+: ")
#: With what a process logs in at the servers that a shuffle is spread over, if not as at the run's own.
LOGIN = "RQMR_SHUFFLE_LOGIN"
_LOGIN = ("username", "password", "credential_provider")
_OLDEST = {"redis": (7, 0), "valkey": (7, 2)}


def connect(url: str) -> Client:
    """Return a client for a URL; connects when it is first used.

    Raises:
        RedisError: it isn't a Redis URL.
    """
    try:
        return redis.Redis.from_url(url, **_options())
    except ValueError:  # its text may have the password
        raise RedisError(
            f"{hide_password(url) or 'an empty --redis-url'} is no Redis URL; write redis://host:6379/0, "
            f"rediss://… for TLS, or unix:///path/to/socket, with %40 and %2F for @ and / in a password"
        ) from None


def clone(connection: Client, *, patient: bool, seconds: float = 2, name: str = "") -> Client:
    """Return a client of the same server as RQ's connection, with rqmr's time-outs (RQ's has 415 s).

    `patient`: repeats for some seconds; otherwise gives up at once, for callers that come again anyway, after `seconds`
    if there is no reply. `name`: what the server is told of its connections.
    """
    pool = connection.connection_pool
    options = {**pool.connection_kwargs, **_options()} | ({"client_name": name} if name else {})
    if not patient:
        options |= {"retry": Retry(NoBackoff(), 0), "socket_timeout": seconds, "socket_connect_timeout": 2}
    if issubclass(pool.connection_class, redis.UnixDomainSocketConnection):
        for name in ("socket_connect_timeout", "socket_keepalive"):
            options.pop(name, None)
    # A client that isn't told so leaves its connections open when it is closed, until they are collected as garbage.
    return redis.Redis.from_pool(redis.ConnectionPool(connection_class=pool.connection_class, **options))


def join(url: str, client: Client, *, patient: bool) -> Client:
    """Return a client of another server, with the login and the certificates of this process's client; as `clone`.

    With `RQMR_SHUFFLE_LOGIN` in the environment its login is that one, or none if it is empty.

    Raises:
        RedisError: it isn't a Redis URL, or that isn't a login.
    """
    known = client.connection_pool.connection_kwargs
    wanted = [name for name in known if name in _LOGIN or (name.startswith("ssl_") and url.startswith("rediss:"))]
    options = {name: known[name] for name in wanted} | _options()
    if (login := os.environ.get(LOGIN)) is not None:
        options = {name: value for name, value in options.items() if name not in _LOGIN} | _login(login)
    try:
        other = redis.Redis.from_url(url, **options)
    except ValueError:
        raise RedisError(f"{hide_password(url)} is no Redis URL") from None
    if patient:
        return other
    try:
        return clone(other, patient=False, seconds=1)
    finally:
        other.close()


def _login(text: str) -> dict[str, str]:
    user, colon, password = text.partition(":")
    if text and not colon:
        raise RedisError(f"{LOGIN} is no login: write USER:PASSWORD, or :PASSWORD")
    told = {"username": user, "password": password}
    return {name: value for name, value in told.items() if value}


def one_way(client: Client) -> Client:
    """Return a connection to a client's server that is never answered, so that a command costs no round trip."""

    def begin(connection: Client) -> None:
        connection.on_connect()
        connection.send_command("CLIENT", "REPLY", "OFF")

    pool = client.connection_pool
    return pool.connection_class(**{**pool.connection_kwargs, "redis_connect_func": begin})


#: Where the login is to be written.
_IN_URL = (
    "write it into the URL, as redis://:PASSWORD@host:6379/0 or redis://USER:PASSWORD@host:6379/0 (best in "
    "RQMR_REDIS_URL), with %40 and %2F for @ and / in it"
)
IN_ENVIRONMENT = (
    f"put user and password into {LOGIN}=USER:PASSWORD, in the environment of this command and of the workers"
)


def check_server(client: Client, url: str, *, login: str = _IN_URL) -> tuple[str, list[str]]:
    """Return what serves, as "Valkey 9.1.2", and warnings about how it is set. `login`: where its password belongs.

    Raises:
        RedisError: it can't be reached, refuses, or is older than Redis 7.0 / Valkey 7.2.
    """
    shown = hide_password(url)
    asking = clone(client, patient=False)  # one that isn't there shall be told at once
    try:
        info = asking.info("server")
        policy = asking.info("memory").get("maxmemory_policy", "noeviction")
    except redis.AuthenticationError as error:
        if not asking.connection_pool.connection_kwargs.get("password"):
            raise RedisError(f"{shown} wants a password: {login}") from None
        check = "check the URL" if login is _IN_URL else login
        raise RedisError(f"{shown} refuses this user or password ({error}); {check}") from None
    except redis.RedisError as error:
        raise RedisError(f"no Redis answers at {shown}: {error}; is it running, and is the URL right?") from None
    finally:
        asking.close()
    kind = "valkey" if info.get("server_name") == "valkey" or "valkey_version" in info else "redis"
    version = str(info.get("valkey_version" if kind == "valkey" else "redis_version", "0"))
    name = f"{kind.capitalize()} {version}"
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < _OLDEST[kind]:
        raise RedisError(f"{shown} is {name}; rqmr needs Redis 7.0 or Valkey 7.2 at least")
    warnings = []
    if policy != "noeviction":
        warnings.append(
            f"{name} may evict keys (maxmemory-policy {policy}): a run could lose data and start over; "
            f"set it: CONFIG SET maxmemory-policy noeviction"
        )
    return name, warnings


def memory_of(client: Client) -> Memory:
    """Return how full the server is; without a limit where it makes room itself, or may not be asked."""
    try:
        info = client.info("memory", "clients")
    except redis.ResponseError:  # an ACL without INFO
        return Memory()
    # What the server holds against its limit, by its own reckoning.
    used = info.get("used_memory", 0) - info.get("mem_not_counted_for_evict", 0)
    evicts = info.get("maxmemory_policy", "noeviction") != "noeviction"
    limit = info.get("maxmemory", 0)
    holds = limit or info.get("total_system_memory", 0) // 2
    return Memory(used, 0 if evicts else limit, info.get("connected_clients", 1), holds)


@contextmanager
def reading_keys(what: str) -> Iterator[None]:
    """Raise DamagedError as `reading` does, and where a key or field isn't of the type that it should be."""
    with reading(what):
        try:
            yield
        except redis.ResponseError as error:
            if not _OF_ANOTHER_TYPE.search(str(error)):
                raise
            raise ValueError(str(error)) from error


class _Packer(HiredisRespSerializer):
    """Spells numbers in Python.

    hiredis (3.5) crashes if a signal's handler raises while it does so: that ends PyObject_Repr with NULL, for which it
    doesn't look. All our commands can be interrupted anywhere.
    """

    def pack(self, *args: Any) -> list[bytes]:
        spelled: list[Any] = [repr(arg) if type(arg) in (int, float) else arg for arg in args]
        packed: list[bytes] = super().pack(*spelled)
        return packed


def _options() -> dict[str, Any]:
    return {
        "command_packer": _Packer(),
        "socket_timeout": _SOCKET_SECONDS,
        "socket_connect_timeout": _CONNECT_SECONDS,
        "retry": Retry(EqualJitterBackoff(base=0.05, cap=3), _RETRIES),
    }
