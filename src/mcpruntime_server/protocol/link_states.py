"""The protocol between the host and a sandbox: which end may send which message in which state.

Both ends hold a `LinkState` and tell it of each message before they send it and after they receive
it.

Rule 1: `TRANSITIONS` is the protocol. A message that is not in it is illegal. A legal message moves
its sender to the next state when it is sent, and its receiver when it is received.
Rule 2: both ends may send at the same time, so a message can arrive after its receiver has moved
on. The receiver accepts what is legal in any state that its peer may still be in (`PEER_STATES`). A
message that arrives late in this way never changes the receiver's state.
Rule 3: some messages belong to an earlier one, such as the content of announced files or the fork
that a run asked for. `LinkState` remembers by run number what is still to come, and refuses
everything else.
"""

from __future__ import annotations

from .wire import (
    Call,
    Certificate,
    CertificateRequest,
    Execute,
    FileData,
    FilesChanged,
    FilesSaved,
    ForkDropped,
    ForkParked,
    Interrupt,
    Kill,
    Output,
    ParkFailed,
    ProbeHit,
    Promote,
    Promoted,
    Ready,
    RemoveFile,
    Reply,
    RunDone,
    Setup,
    WireError,
    WorkerRestarted,
    WriteFile,
)

TYPE_CHECKING = False  # importing `typing` would slow down the start of every sandbox
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Optional, Set, Tuple, Type, Union

    from .wire import Message

    Transitions = Dict[str, Dict[Type[Message], str]]  # state -> message -> next state

# roles
HOST = "host"
SANDBOX = "sandbox"
PEERS = {HOST: SANDBOX, SANDBOX: HOST}

# states
NEW = "new"
STARTING = "starting"  # from `Setup` to `Ready`
IDLE = "idle"
RUNNING = "running"  # from `Execute` to `RunDone`
PROMOTING = "promoting"  # from `Promote` to `Promoted`

# Messages about earlier runs and about the interpreter do not depend on what happens now.
FORK_MESSAGES = (ForkParked, ParkFailed, ForkDropped, WorkerRestarted)
FILE_MESSAGES = (FileData, FilesSaved)  # all sent before the next run starts

TRANSITIONS: Dict[str, Transitions] = {
    HOST: {
        NEW: {Setup: STARTING},
        STARTING: {},
        IDLE: {
            Execute: RUNNING,
            Promote: PROMOTING,
            WriteFile: IDLE,
            RemoveFile: IDLE,
            Reply: IDLE,  # to a call of a run that has finished
            Certificate: IDLE,
        },
        RUNNING: {Reply: RUNNING, Certificate: RUNNING, Interrupt: RUNNING, Kill: RUNNING},
        PROMOTING: {Reply: PROMOTING, Certificate: PROMOTING},
    },
    SANDBOX: {
        NEW: {},
        STARTING: {Ready: IDLE},
        IDLE: dict.fromkeys(FORK_MESSAGES + FILE_MESSAGES, IDLE),
        RUNNING: {
            Output: RUNNING,
            Call: RUNNING,
            CertificateRequest: RUNNING,
            ProbeHit: RUNNING,
            FilesChanged: RUNNING,
            RunDone: IDLE,
            **dict.fromkeys(FORK_MESSAGES, RUNNING),
        },
        PROMOTING: {
            Promoted: IDLE,
            **dict.fromkeys(FORK_MESSAGES + FILE_MESSAGES, PROMOTING),
        },
    },
}

# The states that the peer may be in, by role and own state.
PEER_STATES: Dict[str, Dict[str, Tuple[str, ...]]] = {
    HOST: {
        NEW: (NEW,),
        STARTING: (STARTING,),
        IDLE: (IDLE,),
        RUNNING: (RUNNING, IDLE),  # `Execute` may still be on its way
        PROMOTING: (PROMOTING, IDLE),
    },
    SANDBOX: {
        NEW: (NEW,),
        STARTING: (STARTING,),
        IDLE: (IDLE, RUNNING, PROMOTING),  # `RunDone` or `Promoted` may still be on its way
        RUNNING: (RUNNING,),
        PROMOTING: (PROMOTING,),
    },
}


class ProtocolError(WireError):
    """A message that the state of the link does not allow."""


class LinkState:
    """What one end knows of the link. A method that raises `ProtocolError` changes nothing."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.state = NEW
        self.last_run = 0  # the number of the last `Execute`
        self.promoting_run = 0  # that of the last `Promote`
        self.files_run = 0  # the run whose `FilesSaved` is still to come
        self.unsettled_runs: Set[int] = set()  # whose `ForkParked` or `ParkFailed` is still to come
        self.parked_runs: Set[int] = set()

    def send(self, message: Message) -> None:
        """Note that this end sends `message`."""
        self._note(self.role, (self.state,), type(message), message)

    def send_unread(self, message_type: Type[Message]) -> None:
        """Note that this end passes on a frame of this type; only its peer reads the content."""
        self._note(self.role, (self.state,), message_type, None)

    def receive(self, message: Message) -> None:
        """Note that this end has received `message`."""
        states = PEER_STATES[self.role][self.state]
        self._note(PEERS[self.role], states, type(message), message)

    def receive_unread(self, message_type: Type[Message]) -> None:
        """Note that this end has received a frame of this type, and passes it on unread."""
        states = PEER_STATES[self.role][self.state]
        self._note(PEERS[self.role], states, message_type, None)

    def _note(
        self,
        sender: str,
        states: Tuple[str, ...],
        message_type: Type[Message],
        message: Optional[Message],
    ) -> None:
        """Check a message against the table, in each of the `states` that its sender may be in."""
        for state in states:
            following = TRANSITIONS[sender][state].get(message_type)
            if following is not None:
                break
        else:
            name = message_type.__name__
            raise ProtocolError(f"the {sender} must not send {name} while the link is {self.state}")
        check = RUN_CHECKS.get(message_type)
        if message is not None and check is not None and not check(self, message):
            raise ProtocolError(f"unexpected run number in {message!r:.200}")
        if state == self.state:
            self.state = following

    # Each check notes the message, or returns False if its run number is not an expected one.

    def _check_execute(self, message: Execute) -> bool:
        if message.run_number != self.last_run + 1:
            return False
        self.last_run = message.run_number
        if message.park:
            self.unsettled_runs.add(message.run_number)
        return True

    def _check_current(self, message: Union[Output, ProbeHit, RunDone]) -> bool:
        return message.run_number == self.last_run

    def _check_files_changed(self, message: FilesChanged) -> bool:
        if message.run_number != self.last_run or self.files_run:
            return False
        self.files_run = message.run_number
        return True

    def _check_file_data(self, message: FileData) -> bool:
        return message.run_number == self.files_run != 0

    def _check_files_saved(self, message: FilesSaved) -> bool:
        if message.run_number != self.files_run or not self.files_run:
            return False
        self.files_run = 0
        return True

    def _check_fork_parked(self, message: ForkParked) -> bool:
        if not self._settle_run(message.run_number):
            return False
        self.parked_runs.add(message.run_number)
        return True

    def _check_park_failed(self, message: ParkFailed) -> bool:
        return self._settle_run(message.run_number)

    def _settle_run(self, run_number: int) -> bool:
        is_current = self.state == RUNNING and run_number == self.last_run
        if is_current or run_number not in self.unsettled_runs:
            return False
        self.unsettled_runs.remove(run_number)
        return True

    def _check_fork_dropped(self, message: ForkDropped) -> bool:
        if message.run_number not in self.parked_runs:
            return False
        self.parked_runs.remove(message.run_number)
        return True

    def _check_promote(self, message: Promote) -> bool:
        if message.run_number < 0:
            return False
        self.promoting_run = message.run_number
        return True

    def _check_promoted(self, message: Promoted) -> bool:
        is_known = message.run_number == 0 or message.run_number in self.parked_runs
        return message.run_number == self.promoting_run and (is_known or not message.ok)


RUN_CHECKS: Dict[Type[Message], Callable[[LinkState, Any], bool]] = {
    Execute: LinkState._check_execute,
    Output: LinkState._check_current,
    FilesChanged: LinkState._check_files_changed,
    ProbeHit: LinkState._check_current,
    RunDone: LinkState._check_current,
    FileData: LinkState._check_file_data,
    FilesSaved: LinkState._check_files_saved,
    ForkParked: LinkState._check_fork_parked,
    ParkFailed: LinkState._check_park_failed,
    ForkDropped: LinkState._check_fork_dropped,
    Promote: LinkState._check_promote,
    Promoted: LinkState._check_promoted,
}
