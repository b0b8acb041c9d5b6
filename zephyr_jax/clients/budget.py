"""What answers may cost: counted, and held back for what is under way, so that no limit is passed."""

from dataclasses import dataclass

from zephyr_jax.config.sections import EndpointOptions
from zephyr_jax.errors import InputError


@dataclass(frozen=True)
class Cost:
    """Tokens that go there and come back, and their price."""

    there: int = 0
    back: int = 0
    dollars: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.there + other.there, self.back + other.back, self.dollars + other.dollars)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.there - other.there, self.back - other.back, self.dollars - other.dollars)

    @property
    def tokens(self) -> int:
        """There and back."""
        return self.there + self.back

    def priced(self, options: EndpointOptions) -> "Cost":
        """The same tokens with what they cost there."""
        return Cost(
            self.there,
            self.back,
            (self.there * options.price_per_mtok_in + self.back * options.price_per_mtok_out) / 1e6,
        )


class Budget:
    """Tokens and dollars of one endpoint, or of several. A request is let out when the most it can cost fits beside all else."""

    def __init__(self, options: EndpointOptions):
        self._most_tokens, self._most_dollars = options.max_total_tokens, options.max_cost_usd
        self._used = self._held = self._lost = Cost()
        self._under_way = 0

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all."""
        return self._most_tokens is not None or self._most_dollars is not None

    @property
    def under_way(self) -> bool:
        """Whether anything is held back, so that there may be more room later."""
        return self._under_way > 0

    def hold(self, most: Cost) -> bool:
        """Hold back what a request may cost; False where that does not fit now."""
        if not self._fits(self._used + self._held + most):
            return False
        self._held += most
        self._under_way += 1
        return True

    def settle(self, held: Cost, used: Cost, lost: bool = False) -> None:
        """What was held back is free again, and what was used is gone."""
        self._under_way -= 1
        self._held = self._held - held if self._under_way else Cost()
        self.spend(used, lost)

    def spend(self, used: Cost, lost: bool = False) -> None:
        """Count what was used; `lost`: by a request whose answer never came."""
        self._used += used
        self._lost += used if lost else Cost()

    def spent(self) -> str:
        """Tokens, and money where there are prices, in words."""
        money = f", ${self._used.dollars:.2f}" if self._used.dollars else ""
        lost = f" (up to {self._lost.tokens:,} of them for answers that never came)" if self._lost.tokens else ""
        return f"{self._used.tokens:,} tokens{lost}{money}"

    def exhausted(self, most: Cost) -> InputError:
        """The error for a request that does not fit any more."""
        used = self._used
        if self._most_tokens is not None and (used + most).tokens > self._most_tokens:
            state = (
                f"{used.tokens:,} tokens were used, the next request may take {most.tokens:,}, and max_total_tokens is "
                f"{self._most_tokens:,}"
            )
        else:
            state = (
                f"${used.dollars:.4f} were spent, the next request may cost ${most.dollars:.4f}, and max_cost_usd is "
                f"{self._most_dollars:g}"
            )
        return InputError(f"{state}. What was answered is kept: raise the limit, and the same command goes on.")

    def _fits(self, together: Cost) -> bool:
        tokens = self._most_tokens is None or together.tokens <= self._most_tokens
        return tokens and (self._most_dollars is None or together.dollars <= self._most_dollars)
