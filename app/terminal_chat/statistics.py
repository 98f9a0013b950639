"""The figures of a conversation's answers, for `/stats` and for the line under an answer."""

from dataclasses import dataclass, field

from rich.table import Table

from app.terminal_chat.running_server import Ended, Frame

_BARS = "▁▂▃▄▅▆▇█"


@dataclass
class Statistics:
    """What is known of the last answer, and the sums of all answers."""

    blocks: list[Frame] = field(default_factory=list)  # the last answer's finished blocks
    last: Ended | None = None
    answers: int = 0
    tokens: int = 0

    def begin(self) -> None:
        """Note that a new answer begins."""
        self.blocks, self.last = [], None

    def add(self, event: Frame | Ended) -> None:
        """Note the figures of a finished block or of the answer."""
        match event:
            case Frame(settled=None):
                return
            case Frame():
                self.blocks.append(event)
            case Ended():
                self.last = event
                self.answers += 1
                self.tokens += event.completion_tokens

    @property
    def line(self) -> str:
        """Returns the last answer's most telling figures, or nothing if it has not ended."""
        if self.last is None:
            return ""
        figures = self.last.diffusion
        cut = ", cut off by the limit of tokens" if self.last.reason == "length" else ""
        return (
            f"{figures['tokens_per_second']:.0f} tokens/s, first block after "
            f"{figures['time_to_first_block_s']:.2f} s, {figures['tokens_per_step']:.1f} tokens a "
            f"step{cut}"
        )

    def table(self) -> Table | None:
        """Returns the figures of the last answer and of its blocks, or None if it has none."""
        if self.last is None:
            return None
        figures = self.last.diffusion
        table = Table.grid(padding=(0, 2))
        for name, value in (
            ("prompt", f"{self.last.prompt_tokens} tokens"),
            ("answer", f"{self.last.completion_tokens} tokens"),
            ("speed", f"{figures['tokens_per_second']:.1f} tokens/s"),
            ("first block", f"{figures['time_to_first_block_s']:.3f} s"),
            ("blocks", f"{figures['blocks']:.0f}"),
            ("steps", f"{figures['denoising_steps']:.0f}"),
            ("tokens a step", f"{figures['tokens_per_step']:.2f}"),
        ):
            table.add_row(name, value)
        for frame in self.blocks:
            assert frame.settled is not None
            table.add_row(
                f"block {frame.block + 1}",
                f"{frame.step} steps, final tokens after each: "
                f"{_bars(frame.settled)} {' '.join(map(str, frame.settled))}",
            )
        table.add_row("all answers", f"{self.answers}, {self.tokens} tokens")
        return table


def _bars(counts: list[int]) -> str:
    most = max(counts, default=0) or 1
    return "".join(_BARS[count * (len(_BARS) - 1) // most] for count in counts)
