"""The stateful property test of one blob, with several writers that share it: each goes on where the others stopped.

The operations, and what must always be true, are those of `test_model`; between them another peer takes over, comes, goes,
or commits what it had staged. A list of rows still explains all of it.
"""

from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from test_model import MODEST, BlobMachine

import tensorblob as tb
from tensorblob.staging import Staging

PEERS = 3


class PeersMachine(BlobMachine):
    """`blob` is the peer whose turn it is."""

    def __init__(self) -> None:
        super().__init__()
        self.peers: list[tb.TensorBlob] = []
        self.staged: dict[int, tuple[Staging, list[int]]] = {}

    def teardown(self) -> None:
        for peer in self.peers:
            self.leave(peer)
        self.peers = []
        super().teardown()

    def join(self) -> tb.TensorBlob:
        blob = tb.TensorBlob.open(self.path, "a+", shared=True, durability=self.durability)
        self.peers.append(blob)
        return blob

    def leave(self, peer: tb.TensorBlob) -> None:
        """Close a peer; what it has staged goes with it."""
        staging, _ = self.staged.pop(id(peer), (None, []))
        if staging is not None:
            staging.discard()
        peer.close()

    @initialize(durability=st.sampled_from(["process", "process", "power"]))
    def create(self, durability: str) -> None:
        self.durability = durability
        tb.TensorBlob.open(self.path, "w", **self.options).close()
        self.blob = self.join()

    def start_over(self) -> None:
        """Writers that share a blob never truncate it by opening it."""

    @rule(which=st.integers(0, PEERS - 1), leaves=st.booleans())
    def reopen(self, which: int, leaves: bool) -> None:
        """Another peer takes over, which may have to come first; the one before may leave."""
        if leaves:
            self.peers.remove(self.blob)
            self.leave(self.blob)
        self.blob = self.peers[which] if which < len(self.peers) else self.join()
        before = self.blob.rows, self.blob.first_row, self.blob.history
        assert self.blob.refresh() or before == (self.blob.rows, self.blob.first_row, self.blob.history)
        self.blob.seek(0, 2)

    @rule(which=st.integers(0, PEERS - 1), data=st.data())
    def stage(self, which: int, data: st.DataObject) -> None:
        """Nobody sees what is staged, and no turn is needed for it."""
        peer = self.peers[which % len(self.peers)]
        assert peer._writer is not None
        if id(peer) not in self.staged:
            self.staged[id(peer)] = Staging(peer._writer), []
        staging, numbers = self.staged[id(peer)]
        fresh = self.fresh(data.draw(self.batch))
        columns, count = peer._batches.columns(self.rows(fresh))
        staging.append(columns, count)
        numbers += fresh
        assert staging.rows == len(numbers)

    @precondition(lambda self: self.staged)
    @rule(which=st.integers(0, PEERS - 1), is_copied=st.booleans())
    def commit_what_is_staged(self, which: int, is_copied: bool) -> None:
        import tensorblob.staging

        owner, (staging, numbers) = list(self.staged.items())[which % len(self.staged)]
        limit, tensorblob.staging.COPY_NBYTES = tensorblob.staging.COPY_NBYTES, 1 << 40 if is_copied else 1
        try:
            if self.durability == "power":
                staging.sync()
            start = staging.commit(lambda _: [])
        finally:
            tensorblob.staging.COPY_NBYTES = limit
        if numbers:
            assert start == self.blob.first_row + len(self.model)
        self.model = [*self.model, *numbers]
        del self.staged[owner]
        self.blob.refresh()
        self.blob.seek(0, 2)

    @precondition(lambda self: self.staged)
    @rule(which=st.integers(0, PEERS - 1))
    def discard_what_is_staged(self, which: int) -> None:
        owner = list(self.staged)[which % len(self.staged)]
        self.staged.pop(owner)[0].discard()

    @rule(by_path=st.booleans())
    def be_a_source(self, by_path: bool) -> None:
        """A blob that is shared can be taken over by another one, which stays independent."""
        self.copies += 1
        with tb.TensorBlob.open(self.directory / f"target {self.copies}", "w+", **self.options) as target:
            target.extend(self.path if by_path else self.blob)
            assert self.numbers(target[:]) == self.model
            target.write(self.rows([0]))


class SeveralFields(PeersMachine):
    schema: ClassVar[dict[str, Any]] = {"obs": ("int16", (2, 1024)), "reward": ("int32", (512,))}
    block_rows = 2
    batch = st.integers(0, 6)


TestPeersAreOneListOfRows = pytest.mark.slow(PeersMachine.TestCase)
TestPeersOfSeveralFieldsAreOneListOfRows = pytest.mark.slow(SeveralFields.TestCase)
TestPeersAreOneListOfRows.settings = settings(MODEST, max_examples=25)
TestPeersOfSeveralFieldsAreOneListOfRows.settings = MODEST
