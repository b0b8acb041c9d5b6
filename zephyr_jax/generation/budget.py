"""What an endpoint's answers may cost: counted, and held back for what is under way, so that no limit is passed."""

from dataclasses import dataclass

from zephyr_jax.config import EndpointOptions
from zephyr_jax.errors import InputError


@dataclass(frozen=True)
class Tokens:
    """Tokens that go there and come back."""

    there: int = 0
    back: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.there + other.there, self.back + other.back)

    def __sub__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.there - other.there, self.back - other.back)

    @property
    def total(self) -> int:
        """All of them."""
        return self.there + self.back

    def dollars(self, options: EndpointOptions) -> float:
        """Their price."""
        return (self.there * options.price_in + self.back * options.price_out) / 1e6


class Budget:
    """Tokens and dollars of one endpoint. A request is let out only when the most it can take fits beside all else."""

    def __init__(self, options: EndpointOptions):
        self._options = options
        self._used = self._held = self._lost = self._surplus = Tokens()

    @property
    def under_way(self) -> bool:
        """Whether anything is held back, so that there may be more room later."""
        return self._held != Tokens()

    def hold(self, most: Tokens) -> Tokens | None:
        """Hold back what a request may take; None where that does not fit now."""
        most += self._surplus
        together, options = self._used + self._held + most, self._options
        if options.most_tokens is not None and together.total > options.most_tokens:
            return None
        if options.most_dollars is not None and together.dollars(options) > options.most_dollars:
            return None
        self._held += most
        return most

    def settle(self, held: Tokens, used: Tokens, lost: bool = False) -> None:
        """What was held back is free again, and what was used is gone. An endpoint that counts more than we expect is
        expected to do so again."""
        self._held -= held
        self.spend(used, lost)
        over = used - held + self._surplus
        self._surplus = Tokens(max(over.there, self._surplus.there), max(over.back, self._surplus.back))

    def spend(self, used: Tokens, lost: bool = False) -> None:
        """Count tokens; `lost`: of a request whose answer never came."""
        self._used += used
        self._lost += used if lost else Tokens()

    def spent(self) -> str:
        """Tokens, and money where prices are known, in words."""
        money = (
            f", ${self._used.dollars(self._options):.2f}" if self._options.price_in or self._options.price_out else ""
        )
        lost = f" (up to {self._lost.total:,} of them for answers that never came)" if self._lost.total else ""
        return f"{self._used.total:,} tokens{lost}{money}"

    def exhausted(self, most: Tokens) -> InputError:
        """The error for a request that does not fit any more."""
        options, used, most = self._options, self._used, most + self._surplus
        if options.most_tokens is not None and (used + most).total > options.most_tokens:
            state = (
                f"{used.total:,} tokens were used, the next request may take {most.total:,}, and most_tokens is "
                f"{options.most_tokens:,}"
            )
        else:
            state = (
                f"${used.dollars(options):.4f} were spent, the next request may cost ${most.dollars(options):.4f}, and "
                f"most_dollars is {options.most_dollars:g}"
            )
        return InputError(f"{state}. What was answered is kept: raise the limit, and the same command goes on.")
