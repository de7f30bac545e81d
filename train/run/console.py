"""The lines that a run prints about its steps, and the format of the numbers in them."""

from __future__ import annotations

from preprocess.console import format_duration

MAX_PLAIN_PERPLEXITY = 1e7  # larger ones are printed with an exponent


def format_step(step: int, max_steps: int, parts: list[str], *, seconds_left: float | None) -> str:
    """Return a line about an optimizer step: `parts` between the number of the step and the time left."""
    left = [] if seconds_left is None else [f"{format_duration(seconds_left)} left"]
    return "  ".join([f"step {step:,}/{max_steps:,}", *parts, *left])


def format_speed(speed: dict[str, float | None]) -> list[str]:
    """Return the values of `StepCost.speed` as the console prints them."""
    tokens_per_s, mfu, memory_bytes = (speed[key] for key in ("tokens_per_s", "mfu", "peak_memory_bytes"))
    parts = [f"{tokens_per_s:,.0f} tokens/s"]
    parts += [] if mfu is None else [f"MFU {mfu:.1%}"]
    return parts if memory_bytes is None else [*parts, f"{memory_bytes / 1e9:.1f} GB"]


def format_perplexity(value: float | None) -> str:
    """Return a perplexity such as 25.79 or, if it is very large, 1.1e+26; "n/a" for None."""
    return "n/a" if value is None else f"{value:,.2f}" if value < MAX_PLAIN_PERPLEXITY else f"{value:.1e}"


def format_rate(value: float) -> str:
    """Return a learning rate such as 1.0e-3."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"
