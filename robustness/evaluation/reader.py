"""The rows of a plan's jobs, for the samples that count, and what they say of each sample."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robustness.evaluation.jobs import KINDS, Findings, SampleRow
from robustness.evaluation.jobs.rows import columns, values_of
from robustness.evaluation.plan import Job
from robustness.evaluation.records import SampleRecord
from robustness.evaluation.schedule import Schedule
from robustness.threat import Norm


@dataclass(frozen=True)
class Reader:
    """What a run has found.

    Attributes:
        schedule: of the plan, over what is done of it.
    """

    schedule: Schedule

    def jobs(self, model: int, kind: str) -> list[Job]:
        """The jobs of one kind on one model, those that were refused included."""
        return [job for job in self.schedule.plan.jobs if (job.model, job.kind) == (model, kind)]

    def rows(self, job: Job) -> list[Any]:
        """The job's rows."""
        counted = set(self.schedule.plan.order[: job.samples])
        return [
            row
            for row in self.schedule.rows(job)
            if not isinstance(row, SampleRow) or row.sample in counted
        ]

    def records(self, model: int) -> list[SampleRecord]:
        """What is known of each sample under one model, in the suite's order."""
        plan = self.schedule.plan
        records: dict[int, SampleRecord] = {}
        for job in plan.jobs:
            if job.model == model and job.refusal is None:
                KINDS[job.kind].note(job, self.rows(job), records)
        return [records[index] for index in plan.order[: plan.samples]]

    def table(self, kind: str) -> tuple[list[str], list[list[object]]]:
        """The rows of all jobs of a kind under their columns, to be exported: bytes as hexadecimal.

        Each stands behind the model, and the name, norm and eps of its job.
        """
        plan = self.schedule.plan
        heads = ["model", "name", "norm", "eps"]
        rows = [
            [plan.models[job.model].name, job.name, job.norm, job.eps]
            + [v.hex() if isinstance(v, bytes) else v for v in values_of(row)]
            for job in plan.jobs
            if job.kind == kind
            for row in self.rows(job)
        ]
        return heads + [column.name for column in columns(KINDS[kind].row)], rows

    def findings(
        self,
        model: int,
        kind: str,
        records: Mapping[int, SampleRecord],
        grids: Mapping[Norm, list[float]],
    ) -> Findings[Any]:
        """What all jobs of a kind found of one model."""
        jobs = [(job, self.rows(job)) for job in self.jobs(model, kind)]
        return Findings(self.schedule.plan, model, jobs, records, grids)
