"""Tokens of many generations become text by few items, in order, each on its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.detokenizer import MOST, Detokenizer, Text
from mesh.errors import EngineError, InternalError, InvalidInput
from mesh.item import Reply, Request
from mesh.tensor import bytes_tensor, pack, unpack
from protos.mesh.v1.stage_pb2 import Target
from tests.conftest import eventually
from tests.gateway.generating import detokenize, generating_mesh
from tests.gateway.stages import FakeMesh


@asynccontextmanager
async def reading() -> AsyncIterator[tuple[Detokenizer, FakeMesh]]:
    async with generating_mesh() as mesh:
        yield Detokenizer(mesh.stages.postprocess, Target(name="detokenize")), mesh


class Reader:
    """A generation whose text is told bit by bit."""

    def __init__(self, detokenizer: Detokenizer, *stop: str) -> None:
        self.pieces: list[str] = []
        self.text = Text(stop, self.pieces.append)
        self._detokenizer = detokenizer

    def add(self, letters: bytes) -> None:
        for letter in letters:
            self.text.add(letter)
        self._detokenizer.push(self.text)

    def end(self) -> None:
        self.text.end()
        self._detokenizer.push(self.text)


class Held:
    """Postprocess that answers when it is let go."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.rows: list[int] = []

    async def __call__(self, request: Request) -> Reply:
        reply = await detokenize(request)
        self.rows.append(len(unpack(request.payload)["final"]))
        await self.gate.wait()
        return reply


async def test_text_comes_in_pieces_and_to_an_end() -> None:
    async with reading() as (detokenizer, _):
        reader = Reader(detokenizer)
        reader.add(b"He")
        await eventually(lambda: reader.pieces == ["He"])
        reader.add(b"llo")
        reader.end()
        assert await reader.text.done is False
        assert "".join(reader.pieces) == "Hello"


async def test_stop_string_over_several_tokens_ends_the_text_before_it() -> None:
    async with reading() as (detokenizer, _):
        reader = Reader(detokenizer, "###", "END")
        for letter in b"one two #EN":
            reader.add(bytes([letter]))
            await asyncio.sleep(0)
        reader.add(b"D three")
        assert await reader.text.done is True
        assert "".join(reader.pieces) == "one two #"


async def test_while_items_are_under_way_tokens_wait_for_one_that_carries_them_all() -> None:
    async with reading() as (detokenizer, mesh):
        mesh.postprocess.answer = held = Held()
        readers = [Reader(detokenizer) for _ in range(50)]
        for reader in readers[:MOST]:
            reader.add(b"a")
            await asyncio.sleep(0.02)
        assert held.rows == [1] * MOST
        for reader in readers:
            reader.add(b"bc")
            reader.end()
        held.gate.set()
        await asyncio.gather(*(reader.text.done for reader in readers))
        assert ["".join(reader.pieces) for reader in readers] == ["abc"] * MOST + ["bc"] * 48
        assert len(held.rows) <= 2 * MOST
        assert max(held.rows) >= 24


async def test_tokens_of_one_text_are_never_under_way_twice() -> None:
    async with reading() as (detokenizer, mesh):
        mesh.postprocess.answer = held = Held()
        reader = Reader(detokenizer)
        for letter in b"abcdef":
            reader.add(bytes([letter]))
            await asyncio.sleep(0.01)
        assert held.rows == [1]
        held.gate.set()
        reader.end()
        await reader.text.done
        assert "".join(reader.pieces) == "abcdef"


async def test_what_cannot_be_read_fails_alone() -> None:
    async with reading() as (detokenizer, mesh):
        mesh.postprocess.answer = held = Held()
        first = [Reader(detokenizer) for _ in range(MOST)]
        for reader in first:
            reader.add(b"x")
            await asyncio.sleep(0.01)
        readers = [Reader(detokenizer) for _ in range(5)]
        for number, reader in enumerate(readers):
            reader.add(b"\0" if number == 2 else b"fine")
            reader.end()
        held.gate.set()
        ends = await asyncio.gather(*(r.text.done for r in readers), return_exceptions=True)
        assert [type(end) for end in ends] == [bool, bool, InvalidInput, bool, bool]


async def test_stage_that_fails_fails_the_texts_it_had_and_the_next_are_read() -> None:
    async def fail(_: Request) -> Reply:
        raise EngineError("broken")

    async with reading() as (detokenizer, mesh):
        mesh.postprocess.answer = fail
        readers = [Reader(detokenizer) for _ in range(3)]
        for reader in readers:
            reader.add(b"x")
        for reader in readers:
            with pytest.raises(EngineError, match="broken"):
                await reader.text.done
        mesh.postprocess.answer = detokenize
        reader = Reader(detokenizer)
        reader.end()
        assert await reader.text.done is False


async def test_answer_that_is_none_leaves_nobody_waiting() -> None:
    async def garble(_: Request) -> Reply:
        return Reply(pack({"text": bytes_tensor(b"x")}))

    async with reading() as (detokenizer, mesh):
        mesh.postprocess.answer = garble
        reader = Reader(detokenizer)
        reader.add(b"x")
        with pytest.raises(InternalError):
            await asyncio.wait_for(asyncio.shield(reader.text.done), 5)


async def test_text_that_is_done_is_read_no_more() -> None:
    async with reading() as (detokenizer, mesh):
        reader = Reader(detokenizer)
        reader.text.done.cancel()
        reader.add(b"x")
        await asyncio.sleep(0.05)
        assert mesh.postprocess.requests == []
        assert reader.pieces == []
