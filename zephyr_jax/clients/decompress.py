"""Replies as they come over the wire, unpacked with a bound: a few megabytes of gzip can hold gigabytes."""

import zlib
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from typing import Any

LARGEST = 32 * 2**20
"""Bytes of a reply, packed and unpacked; no model writes that much."""
ENCODINGS = "gzip, deflate"
"""What requests accept: what can be unpacked piece by piece here."""
_PIECE = 2**20  # bytes that are unpacked at one time


class UnusableReply(Exception):
    """A reply that is too large or packed in an unknown way; the message names which."""


async def bound_reply(response: Any) -> None:
    """Have a reply's bytes unpacked by this module, as they are read; an event hook of the client's HTTP library."""
    library = import_module(type(response).__module__.partition(".")[0])  # httpx or its successor, as the client has it
    base: type = library.AsyncByteStream
    encoding = response.headers.pop("content-encoding", "identity").strip().lower()
    source = response.stream

    class Unpacked(base):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            size, unpacker = 0, _Unpacker(encoding)
            async for packed in source:
                for piece in unpacker.feed(packed):
                    size += len(piece)
                    if size > LARGEST:
                        raise UnusableReply(f"a reply of more than {LARGEST:,} bytes")
                    yield piece

        async def aclose(self) -> None:
            await source.aclose()

    response.stream = Unpacked()


class _Unpacker:
    """Bytes of one encoding to what they stand for, in pieces of bounded size. Raises UnusableReply."""

    def __init__(self, encoding: str):
        if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
            raise UnusableReply(f"a reply packed with {encoding[:40]!r}; expected {ENCODINGS} or none")
        self._plain = encoding in ("identity", "")
        self._begun = False
        self._inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # gzip's or zlib's header

    def feed(self, packed: bytes) -> Iterator[bytes]:
        """What these bytes add."""
        if self._plain:
            yield packed
            return
        while packed:
            yield self._piece(packed)
            packed = self._inflate.unconsumed_tail
            if self._inflate.eof:
                packed = self._inflate.unused_data.lstrip(b"\0")  # another member of a gzip file, or padding
                self._inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)

    def _piece(self, packed: bytes) -> bytes:
        try:
            piece = self._inflate.decompress(packed, _PIECE)
        except zlib.error as error:
            if self._begun:
                raise UnusableReply(f"a packed reply that is damaged ({error})") from error
            self._inflate = zlib.decompressobj(wbits=-zlib.MAX_WBITS)  # `deflate` without zlib's header
            self._begun = True
            return self._piece(packed)
        self._begun = True
        return piece
