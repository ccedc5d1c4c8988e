"""The protocol's table: both ends agree, whatever crosses on the way, and refuse the rest."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from mcpruntime_server.protocol import wire
from mcpruntime_server.protocol.link_states import (
    HOST,
    IDLE,
    NEW,
    PEER_STATES,
    PEERS,
    RUNNING,
    SANDBOX,
    STARTING,
    TRANSITIONS,
    LinkState,
    ProtocolError,
)

SETUP = wire.Setup(wire.PROTOCOL_VERSION, True, 1, 1, 1, 1, 1, 1, 1, 1, {})
READY = wire.Ready(wire.PROTOCOL_VERSION, "3.11", "linux")


def make_message(message_type: type[wire.Message], run_number: int) -> wire.Message:
    """Return a message of this type about this run."""
    examples = {
        wire.Setup: SETUP,
        wire.Execute: wire.Execute(run_number, "1", "<step>", [], "seed"),
        wire.Reply: wire.Reply(1),
        wire.WriteFile: wire.WriteFile("f", 0o600, 0, True, b""),
        wire.RemoveFile: wire.RemoveFile("f"),
        wire.Ready: READY,
        wire.Output: wire.Output(run_number, "stdout", 0, b""),
        wire.Call: wire.Call(1, run_number, "t", {}),
        wire.FilesChanged: wire.FilesChanged(run_number, [], []),
        wire.WorkerRestarted: wire.WorkerRestarted("it died"),
        wire.RunDone: wire.RunDone(run_number, "ok"),
        wire.FileData: wire.FileData(run_number, "f", 0o600, True, b""),
        wire.FilesSaved: wire.FilesSaved(run_number, []),
        wire.ParkFailed: wire.ParkFailed(run_number, "threads are running"),
        wire.Promoted: wire.Promoted(run_number, True, [], []),
        wire.ProbeHit: wire.ProbeHit(run_number, 1, {}),
        wire.CertificateRequest: wire.CertificateRequest("example.com"),
        wire.Certificate: wire.Certificate("example.com", ""),
    }
    return examples.get(message_type) or message_type(run_number)


def started_pair() -> tuple[LinkState, LinkState]:
    """Return both ends of a link on which the sandbox has answered `Setup`."""
    host, sandbox = LinkState(HOST), LinkState(SANDBOX)
    for sender, receiver, message in ((host, sandbox, SETUP), (sandbox, host, READY)):
        sender.send(message)
        receiver.receive(message)
    return host, sandbox


def test_every_message_of_the_link_has_exactly_one_sender() -> None:
    senders = {
        role: {message_type for messages in states.values() for message_type in messages}
        for role, states in TRANSITIONS.items()
    }
    assert senders[HOST].isdisjoint(senders[SANDBOX])
    assert senders[HOST] | senders[SANDBOX] == set(wire.MESSAGE_TYPES) - {wire.Park}


def test_a_message_that_arrives_late_changes_no_state() -> None:
    for role, by_state in PEER_STATES.items():
        for state, (first, *others) in by_state.items():
            assert first == state
            for other in others:
                late = TRANSITIONS[PEERS[role]][other]
                current = TRANSITIONS[PEERS[role]][state]
                assert all(late[each] == other for each in late.keys() - current.keys())


@pytest.mark.parametrize("role", [HOST, SANDBOX])
@pytest.mark.parametrize("state", [NEW, STARTING, IDLE, RUNNING, "promoting"])
def test_what_is_not_in_the_table_is_refused_and_changes_nothing(role: str, state: str) -> None:
    for message_type in wire.MESSAGE_TYPES:
        if message_type in TRANSITIONS[role][state]:
            continue
        end = LinkState(role)
        end.state = state
        with pytest.raises(ProtocolError, match=f"must not send {message_type.__name__} while"):
            end.send_unread(message_type)
        assert end.state == state


@pytest.mark.parametrize(
    "message",
    [
        wire.RunDone(2, "ok"),
        wire.Output(2, "stdout", 0, b""),
        wire.FilesChanged(2, [], []),
        wire.ForkParked(1),
        wire.ForkParked(9),
        wire.ParkFailed(-1, ""),
        wire.ForkDropped(0),
        wire.Promoted(1, True, [], []),
        wire.FileData(1, "f", 0o600, True, b""),
        wire.FilesSaved(0, []),
        wire.Park(1),
    ],
    ids=repr,
)
def test_during_run_1_the_host_refuses(message: wire.Message) -> None:
    host, _ = started_pair()
    host.send(make_message(wire.Execute, 1))
    with pytest.raises(ProtocolError):
        host.receive(message)


def test_a_fork_is_announced_once_and_dropped_once() -> None:
    host, _ = started_pair()
    host.send(make_message(wire.Execute, 1))
    host.receive(wire.RunDone(1, "ok"))
    host.receive(wire.ForkParked(1))
    with pytest.raises(ProtocolError):
        host.receive(wire.ForkParked(1))
    host.receive(wire.ForkDropped(1))
    with pytest.raises(ProtocolError):
        host.receive(wire.ForkDropped(1))


def test_a_run_that_is_not_to_be_parked_gets_no_fork() -> None:
    host, _ = started_pair()
    host.send(wire.Execute(1, "1", "<step>", [], "seed", park=False))
    host.receive(wire.RunDone(1, "ok"))
    with pytest.raises(ProtocolError):
        host.receive(wire.ForkParked(1))


def test_a_state_that_is_not_parked_cannot_have_been_promoted() -> None:
    host, _ = started_pair()
    host.send(wire.Promote(3))
    with pytest.raises(ProtocolError):
        host.receive(wire.Promoted(3, True, [], []))


def test_files_are_announced_again_only_after_the_earlier_ones_are_saved() -> None:
    host, _ = started_pair()
    host.send(make_message(wire.Execute, 1))
    host.receive(wire.FilesChanged(1, ["f"], []))
    with pytest.raises(ProtocolError):
        host.receive(wire.FilesChanged(1, ["g"], []))
    host.receive(wire.RunDone(1, "ok"))
    host.receive(wire.FileData(1, "f", 0o600, True, b""))
    host.receive(wire.FilesSaved(1, []))


def test_runs_are_numbered_without_gaps() -> None:
    host, sandbox = started_pair()
    for end in (host.send, sandbox.receive):
        with pytest.raises(ProtocolError):
            end(make_message(wire.Execute, 2))


class TwoEnds(RuleBasedStateMachine):
    """Both ends send whatever their table allows; messages arrive some time later, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = dict(zip((HOST, SANDBOX), started_pair(), strict=True))
        self.in_flight: dict[str, deque[wire.Message]] = {HOST: deque(), SANDBOX: deque()}

    def send(self, role: str, data: st.DataObject) -> None:
        end = self.ends[role]
        message_type = data.draw(st.sampled_from(list(TRANSITIONS[role][end.state])))
        numbers = [0, end.last_run, end.last_run + 1, end.files_run, end.promoting_run]
        numbers += [*end.unsettled_runs, *end.parked_runs]
        message = make_message(message_type, data.draw(st.sampled_from(numbers)))
        try:
            end.send(message)
        except ProtocolError:  # not about this run
            return
        self.in_flight[role].append(message)

    @rule(data=st.data())
    def host_sends(self, data: st.DataObject) -> None:
        self.send(HOST, data)

    @rule(data=st.data())
    def sandbox_sends(self, data: st.DataObject) -> None:
        self.send(SANDBOX, data)

    @precondition(lambda self: self.in_flight[HOST])
    @rule()
    def sandbox_receives(self) -> None:
        self.ends[SANDBOX].receive(self.in_flight[HOST].popleft())

    @precondition(lambda self: self.in_flight[SANDBOX])
    @rule()
    def host_receives(self) -> None:
        self.ends[HOST].receive(self.in_flight[SANDBOX].popleft())

    def teardown(self) -> None:
        """When everything has arrived, both ends know the same."""
        while self.in_flight[HOST] or self.in_flight[SANDBOX]:
            for role, queue in self.in_flight.items():
                if queue:
                    self.ends[PEERS[role]].receive(queue.popleft())
        host, sandbox = (vars(end) | {"role": ""} for end in self.ends.values())
        assert host == sandbox


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(stateful_step_count=40)
