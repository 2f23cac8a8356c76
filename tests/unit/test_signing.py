"""Signatures: what was signed with a secret is known by it, and by nothing that only resembles it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqmr.errors import SignatureError
from rqmr.signing import VARIABLE, sign, verified

SECRET = "correct horse battery staple"
texts = st.text(max_size=20)


@pytest.fixture(autouse=True)
def _no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(VARIABLE, SECRET)
    return SECRET


@given(kind=texts, run=texts, slot=texts, value=st.binary(max_size=100))
def test_what_was_signed_is_what_comes_back(kind: str, run: str, slot: str, value: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, SECRET)
        stored = sign(kind, run, slot, value)
        assert stored != value
        assert verified(kind, run, slot, stored) == value


@given(data=st.data(), value=st.binary(min_size=1, max_size=60))
def test_one_other_byte_anywhere_is_refused(data: st.DataObject, value: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, SECRET)
        stored = bytearray(sign("spec", "wc-7k2p9x", "", value))
        at = data.draw(st.integers(0, len(stored) - 1))
        stored[at] ^= data.draw(st.integers(1, 255))
        with pytest.raises(SignatureError):
            verified("spec", "wc-7k2p9x", "", bytes(stored))


@given(one=st.tuples(texts, texts, texts, st.binary(max_size=20)), data=st.data())
def test_no_signature_stands_for_another_kind_run_or_slot(
    one: tuple[str, str, str, bytes], data: st.DataObject
) -> None:
    """Also where the words of both, written one after the other, are the same."""
    whole = "".join(one[:3])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), min_size=2, max_size=2)))
    other = (whole[: cuts[0]], whole[cuts[0] : cuts[1]], whole[cuts[1] :])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, SECRET)
        stored = sign(*one)
        if other == one[:3]:
            assert verified(*other, stored) == one[3]
        else:
            with pytest.raises(SignatureError):
                verified(*other, stored)


def test_who_has_no_secret_signs_nothing_and_reads_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sign("spec", "run", "", b"plain") == b"plain"
    assert verified("spec", "run", "", b"plain") == b"plain"
    monkeypatch.setenv(VARIABLE, SECRET)
    stored = sign("spec", "run", "", b"plain")
    monkeypatch.delenv(VARIABLE)
    assert verified("spec", "run", "", stored) == b"plain"


def test_what_is_not_signed_is_refused_with_what_to_do(secret: str) -> None:
    with pytest.raises(SignatureError, match=r"the spec of run wc-7k2p9x isn't signed; .* RQMR_SECRET") as caught:
        verified("spec", "wc-7k2p9x", "", b"\x81\xa1a\x01")
    assert secret not in str(caught.value)


def test_another_secret_is_refused_and_neither_is_told(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = sign("split", "wc-7k2p9x", "3", b"value")
    monkeypatch.setenv(VARIABLE, "another secret of enough characters")
    with pytest.raises(SignatureError, match="was altered, or signed with another secret") as caught:
        verified("split", "wc-7k2p9x", "3", stored)
    assert secret not in str(caught.value)
    assert "another secret of" not in str(caught.value)


def test_a_secret_from_a_file_may_end_with_a_newline(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = sign("spec", "run", "", b"value")
    monkeypatch.setenv(VARIABLE, f"{secret}\n")
    assert verified("spec", "run", "", stored) == b"value"


def test_an_empty_secret_is_none_and_a_short_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    assert sign("spec", "run", "", b"value") == b"value"
    monkeypatch.setenv(VARIABLE, "hunter2")
    with pytest.raises(SignatureError, match=r"has 7 characters; it takes 16 at least") as caught:
        sign("spec", "run", "", b"value")
    assert "hunter2" not in str(caught.value)
