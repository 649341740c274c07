"""What the front has of one model that is served: how it is asked, what runs and waits, what its sweeps cost.

Only the desk of the model that has the engine sends sweeps. The others take jobs, which wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from potatod.jobs.job import Ask, Job
from potatod.jobs.rows import Answered
from potatod.kv_layout import KvLayout
from potatod.messages import Rows
from potatod.room import logits_rows
from potatod.stage import BootModel

from .admission import Admission
from .answers import Answers, Diary
from .beside import Beside, planned
from .cost import CostModel
from .followers import Followers
from .ledger import Ledger
from .outlook import Outlook
from .scheduler import Scheduler
from .sequence import weight_of
from .speculation import Speculation
from .sweep_times import SweepTimes


def admission_of(page: BootModel) -> Admission:
    """Reads tokenizer and template. Raises what tells what is wrong with them."""
    verdict = page.verdict
    return Admission(Path(page.folder), page.settings.sampling, verdict["max_context"], verdict["embed_rows"], verdict["vocabulary"])


class Desk:
    def __init__(
        self, at: int, page: BootModel, admission: Admission, diary: Diary, followers: Followers, send: Callable[[bytes, object], bool],
        logger: logging.Logger, changed: Callable[[Job], None], now: float,
    ) -> None:  # fmt: skip
        """``at``: which of the models that are served; ``now``: seconds, monotonic."""
        verdict, settings = page.verdict, page.settings
        self.at = at
        self.name = page.name
        self.checksum = page.checksum
        self.verdict = verdict
        self.admission = admission
        self.layers = int(verdict["layers"])
        self.vocabulary = int(verdict["vocabulary"])
        #: why its engine stays down; empty while it does not
        self.why = ""
        #: since when there have been jobs that wait for the engine; None: there are none, or it has the engine
        self.waits_since: float | None = None
        self._streamed_bytes = int(verdict["load"]["streamed_bytes"])
        expected = planned(verdict)
        self._costs = CostModel(lambda tokens: expected(tokens).compute_s, expected(1).stream_s)
        self.times = SweepTimes(lambda tokens: expected(tokens).sweep_s)
        self.beside = Beside(self.times, now)
        speculation = settings.speculation
        self.speculation = Speculation(speculation.max_tokens, lookup=speculation.lookup, draft=verdict["draft"] is not None)
        self.scheduler = Scheduler(
            max_sequences=settings.front.max_sequences,
            max_queue=settings.front.max_queue,
            ledger=Ledger(KvLayout.from_json(verdict["kv"]), verdict["kv_bytes"]),
            costs=self._costs,
            prefill_chunk=verdict["prefill_chunk"],
            prefill_share=settings.front.prefill_share,
            rope_border=verdict["rope_border"],
            drafter=self.speculation if speculation.enabled else None,
            logits_rows=logits_rows(settings) - 1,
            may_cut=settings.worker.kernels != "reference",  # its bits are those of prompts that are not cut
        )
        self.answers = Answers(self.scheduler, self.times, admission.end_ids, diary, followers, send, logger, changed)
        self.outlook = Outlook(self.answers, self.scheduler, self.times, followers, settings.front.max_sequences)

    @property
    def title(self) -> str:
        """The model, so that no other is taken for it."""
        return f"{self.name} ({self.checksum[:8]})"

    def begin(self, job: Job, ask: Ask, answered: Answered = Answered()) -> None:  # noqa: B008  frozen
        """Queues it; ``answered``: what there is of it already."""
        self.answers.begin(job, ask, partial(self.admission.text, ask), answered)

    def fits(self, job: Job) -> bool:
        """Whether all that it may say is within the context, as that is now."""
        return job.prompt_tokens + job.limit_tokens <= self.admission.max_context

    def too_long(self, job: Job) -> str:
        """What to say of one that does not fit."""
        tokens, context = job.prompt_tokens + job.limit_tokens, self.admission.max_context
        return f"job {job.id} may have {tokens} tokens, and the context has only {context} now: raise [front] max_context or [kv] size"

    def learn(self, rows: Rows) -> None:
        """What a sweep cost; one that also loads what stays says nothing of those to come."""
        sweep = self.scheduler.in_flight
        if sweep is not None and not rows.exhausted and rows.read_bytes <= self._streamed_bytes:
            self._costs.observe(*weight_of(sweep), rows.seconds, rows.waited_s)
