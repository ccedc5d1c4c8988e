"""What a worker prints on its way through the supervisor."""

from __future__ import annotations

import os
import select

from mcpruntime_server.protocol import wire
from mcpruntime_server.sandboxed.kernel.output import OutputStreams


def test_a_stream_past_its_limit_is_read_again_after_a_pause() -> None:
    sent: list[wire.Message] = []
    poller = select.poll()
    streams = OutputStreams(10, sent.append, poller)
    streams.start_run(1)
    full, other = streams.pipes
    os.write(full.write_end, b"x" * 100)
    os.write(other.write_end, b"y")
    for descriptor, _ in poller.poll(0):
        streams.handle_readable(descriptor)
    os.write(full.write_end, b"x" * 100)
    os.write(other.write_end, b"y")
    assert [descriptor for descriptor, _ in poller.poll(0)] == [other.read_end]
    assert streams.resume_at
    streams.resume()
    assert len(poller.poll(0)) == 2
    streams.send_available(is_last=True)
    assert [(each.stream, each.dropped_bytes, each.data) for each in sent] == [  # type: ignore[attr-defined]
        ("stdout", 0, b"x" * 10),
        ("stdout", 190, b""),
        ("stderr", 0, b"yy"),
    ]


def test_a_new_run_is_read_at_once() -> None:
    poller = select.poll()
    streams = OutputStreams(10, lambda _: None, poller)
    streams.start_run(1)
    os.write(streams.pipes[0].write_end, b"x" * 100)
    streams.handle_readable(streams.pipes[0].read_end)
    assert streams.resume_at
    streams.start_run(2)
    assert not streams.resume_at
    os.write(streams.pipes[0].write_end, b"x")
    assert poller.poll(0)
