"""What a client is told of a job. Pure."""

from __future__ import annotations

from potato_client.job_report import JobReport
from potato_client.question import PRIORITIES

from .job import Job


def report_of(job: Job, place: int, served: bool, now: float) -> JobReport:
    """``served``: whether its model is the one that runs."""
    return JobReport(
        number=job.number,
        job=job.id,
        state=job.state.value,
        title=job.title,
        model=job.model_name,
        priority=PRIORITIES[job.rank],
        prompt_tokens=job.prompt_tokens,
        completion_tokens=job.shown_tokens,
        limit_tokens=job.limit_tokens,
        accepted_at=job.accepted_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        place=place,
        s_per_token=job.s_per_token(now),
        reason=job.reason,
        code=job.code,
        why=job.why,
        served=served,
    )
