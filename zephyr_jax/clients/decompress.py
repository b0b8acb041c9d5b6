"""Decompression of HTTP replies with a size limit: a few megabytes of gzip can expand to gigabytes."""

import zlib
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from typing import Any

MAX_REPLY_BYTES = 32 * 2**20
"""Limit for a reply after decompression; no model writes that much."""
ENCODINGS = "gzip"
"""The `Accept-Encoding` of requests: what can be decompressed in pieces here."""
_PIECE_BYTES = 2**20


class UnusableReply(Exception):
    """A reply that is too large, damaged or compressed in an unsupported way."""


async def limit_reply_size(response: Any) -> None:
    """Event hook of the HTTP library: decompress the reply in this module while it is read."""
    library = import_module(type(response).__module__.partition(".")[0])  # httpx, or the fork that the client ships
    encoding = response.headers.pop("content-encoding", "identity").strip().lower()
    source = response.stream

    stream_type: type = library.AsyncByteStream

    class Decompressed(stream_type):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            if encoding not in ("identity", "", "gzip", "x-gzip"):
                raise UnusableReply(f"expected a reply in {ENCODINGS} or uncompressed, got encoding {encoding[:40]!r}")
            decompressor, size = _Gzip() if "gzip" in encoding else None, 0
            async for data in source:
                for piece in decompressor.feed(data) if decompressor else [data]:
                    size += len(piece)
                    if size > MAX_REPLY_BYTES:
                        raise UnusableReply(f"expected a reply of at most {MAX_REPLY_BYTES:,} bytes, got more")
                    yield piece

        async def aclose(self) -> None:
            await source.aclose()

    response.stream = Decompressed()


class _Gzip:
    """Decompresses a gzip stream of one or more members in pieces of bounded size."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The decompressed bytes of `data`. Raises UnusableReply for a damaged stream."""
        while data:
            try:
                yield self._member.decompress(data, _PIECE_BYTES)
            except zlib.error as error:
                raise UnusableReply(f"damaged gzip reply ({error})") from error
            data = self._member.unconsumed_tail
            if self._member.eof:
                data = self._member.unused_data.lstrip(b"\0")  # padding before the next member
                self._member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
