"""What was found of a model, or of a run, as lines that a person reads and attributes that a program does."""

import dataclasses
import textwrap

__all__ = ["ADVICE", "Checklist", "Finding"]

ADVICE = "infer.check(model, *arguments) looks at a model before a run."  # what warnings of engines end with

_WIDTH = 110
_MARKS = {True: "✓", False: "✗", None: "·"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is, such as ``"data of site 'y'"``.
        passed: whether it is as it should be; None where there is nothing to pass.
        told: what was found.
        cure: what to do where it did not pass.
    """

    name: str
    passed: bool | None
    told: str
    cure: str = ""

    def __str__(self) -> str:
        lines = textwrap.wrap(f"{_MARKS[self.passed]} {self.name}: {self.told}", _WIDTH, subsequent_indent="    ")
        if self.passed is False and self.cure:
            lines += textwrap.wrap(self.cure, _WIDTH, initial_indent="    cure: ", subsequent_indent="          ")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Checklist:
    """All that was looked at; its ``repr`` is the list.

    Attributes:
        findings: in the order in which they were looked at. The first that fails may end the list.
        engine: the name in ``infer`` of the engine that is recommended; None where something is to be mended first.
        reason: why this one.
        network_calls: of the run that ``reason`` names; None without an engine.
        seconds: of that run on this machine, roughly, compilation left out; None where it was not measured.
        log_weight_sd: the standard deviation of log w, nats, in the noises of the chain that guidance makes of the
            model; None where it was not measured.
        is_of_run: whether a run was looked at: then no engine is recommended.
    """

    findings: tuple[Finding, ...]
    engine: str | None = None
    reason: str = ""
    network_calls: int | None = None
    seconds: float | None = None
    log_weight_sd: float | None = None
    is_of_run: bool = False

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(finding.passed is not False for finding in self.findings)

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The findings that did not pass."""
        return tuple(finding for finding in self.findings if finding.passed is False)

    def __repr__(self) -> str:
        lines = [str(finding) for finding in self.findings]
        if self.engine:
            cost = f"{self.network_calls:,} network calls" if self.network_calls else ""
            cost += f", about {self.seconds:.0f} s here" if self.seconds is not None else ""
            lines += textwrap.wrap(f"→ {self.engine}: {self.reason}; {cost}", _WIDTH, subsequent_indent="    ")
        elif self.is_of_run:
            lines.append("→ nothing wrong was found" if self.passed else "→ not to be trusted: mend the first ✗")
        else:
            lines.append("→ no engine is recommended: mend the first ✗")
        return "\n".join(lines)
