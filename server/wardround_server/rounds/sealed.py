"""Protection `hpke`: every update is opened, checked and added up as it arrives, then forgotten."""

from flwr.app import Message
from flwr.serverapp import Grid

from wardround_common.errors import VerificationError
from wardround_common.rounds import BlobRef, RoundPlan
from wardround_common.updates import segments, update_specs
from wardround_server.rounds.aggregate import MeanUpdate
from wardround_server.rounds.answers import AcceptedAnswer, AnswerChecker, AnswerRefused, AnswerRejected
from wardround_server.rounds.desk import Desk, Entry
from wardround_server.rounds.gathering import Gathered, answer_entries, dropped, refusal_reason
from wardround_server.rounds.progress import Progress
from wardround_server.rounds.witnessing import Content, exchange
from wardround_server.transport.flower import unpack


class SealedUpdates:
    """Collects a study's sealed updates.

    Args:
        desk: the study's collaborators.
        progress: told who answered.
    """

    def __init__(self, *, desk: Desk, progress: Progress) -> None:
        self._desk = desk
        self._progress = progress
        self._added: list[BlobRef] = []  # sealed updates that are in the stored sum

    def gather(self, grid: Grid, plan: RoundPlan, *, more: bool) -> Gathered:
        """Ask every member, and add up what holds (see `gathering.Updates`)."""
        desk, study = self._desk, self._desk.study
        mean = MeanUpdate(segments(study, desk.layout.trained), members=len(desk.sites))
        accepted, lost = self._collect(grid, plan, mean)
        entries = [e for answer in accepted for e in answer_entries(plan, answer.site, answer.answer)] + lost
        if mean.count < study.cohort.min_cohort:
            return Gathered(entries=entries, failed="cohort-too-small")
        survivors = tuple(answer.site for answer in accepted)
        return Gathered(entries=entries, survivors=survivors, mean=mean.value())

    def forget(self, round_: int) -> None:
        """Single updates are not kept longer than it takes to add them up."""
        for sealed in self._added:
            self._desk.blobs.remove(sealed)
        self._added.clear()

    def _collect(self, grid: Grid, plan: RoundPlan, mean: MeanUpdate) -> tuple[list[AcceptedAnswer], list[Entry]]:
        desk, accepted, lost = self._desk, list[AcceptedAnswer](), list[Entry]()
        specs = update_specs(desk.study, desk.layout.trained)
        checker = AnswerChecker(study=desk.study, plan=plan, specs=specs, open=desk.blobs.open, unseal=desk.unseal)
        content: Content = dict.fromkeys(desk.present, (plan, (plan.adapter,)))
        late = set(content)
        for site, reply in exchange(
            grid,
            desk,
            "train",
            plan.round,
            content,
            enough=lambda: mean.count >= desk.study.cohort.min_cohort,
            waiting=lambda missing: self._progress.waiting(plan.round, "answers", missing),
        ):
            late.discard(site)
            result = self._take(checker, mean, site, reply)
            if isinstance(result, AcceptedAnswer):
                accepted.append(result)
            else:
                lost.append(result)
            self._progress.answered(site)
            self._progress.report("running", plan.round, f"{mean.count} of {len(content)} answers")
        lost += [dropped(plan, site, "late") for site in sorted(late)]
        return sorted(accepted, key=lambda answer: answer.site), lost

    def _take(self, checker: AnswerChecker, mean: MeanUpdate, site: str, reply: Message) -> AcceptedAnswer | Entry:
        if reply.has_error():
            return dropped(checker.plan, site, "failed-locally")
        try:
            answer, values = checker.check(site, *unpack(reply))
            mean.add(values)
        except AnswerRefused as refusal:
            return dropped(checker.plan, site, refusal_reason(refusal.code))
        except AnswerRejected as rejection:
            return dropped(checker.plan, site, rejection.reason)
        except VerificationError:
            return dropped(checker.plan, site, "out-of-range")
        self._added.append(answer.header.sealed)
        return answer
