"""How a parcel comes to the workers of a Dask cluster; imported where Dask is used."""

from typing import Any

from distributed import WorkerPlugin

from robustness.evaluation.executors.handed import forget, keep


class Parcel(WorkerPlugin):
    """Given by the scheduler to each worker once, as soon as it is there.

    Args:
        digest: SHA-256 of the parcel.
        parcel: see `Handed`.
    """

    def __init__(self, digest: str, parcel: bytes) -> None:
        self.digest, self.parcel = digest, parcel

    def setup(self, worker: Any) -> None:
        """Keep it; it is opened with the first task."""
        del worker
        keep(self.digest, self.parcel)

    def teardown(self, worker: Any) -> None:
        """Let go of it."""
        del worker
        forget(self.digest)
