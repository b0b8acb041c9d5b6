"""A hard limit on tokens and cost: requests in flight reserve the most they can use, so no limit is exceeded."""

from zephyr_jax.clients.base import Usage
from zephyr_jax.config.sections import EndpointOptions
from zephyr_jax.errors import InputError


class CostBudget:
    """Tokens and USD of one endpoint or several. A request is sent only if its maximum usage fits beside all others."""

    def __init__(self, options: EndpointOptions):
        self._max_tokens, self._max_cost = options.max_total_tokens, options.max_cost_usd
        self._used = self._reserved = self._lost = Usage()
        self._in_flight = 0

    @property
    def limited(self) -> bool:
        """Whether tokens or cost are limited."""
        return self._max_tokens is not None or self._max_cost is not None

    @property
    def in_flight(self) -> int:
        """Number of open reservations; each may free budget when it is committed."""
        return self._in_flight

    def reserve(self, usage: Usage) -> bool:
        """Reserve the maximum usage of a request; False if it does not fit now."""
        total = self._used + self._reserved + usage
        if self._max_tokens is not None and total.total_tokens > self._max_tokens:
            return False
        if self._max_cost is not None and total.cost_usd > self._max_cost:
            return False
        self._reserved += usage
        self._in_flight += 1
        return True

    def commit(self, reserved: Usage, used: Usage, lost: bool = False) -> None:
        """Replace a reservation by the actual usage."""
        self._in_flight -= 1
        self._reserved = self._reserved - reserved if self._in_flight else Usage()  # no float residue when idle
        self.add(used, lost)

    def add(self, used: Usage, lost: bool = False) -> None:
        """Count usage. `lost`: the request may have been billed, but its response never arrived."""
        self._used += used
        self._lost += used if lost else Usage()

    def summary(self) -> str:
        """Tokens used and, if prices are set, their cost."""
        cost = f", ${self._used.cost_usd:.2f}" if self._used.cost_usd else ""
        lost = f" (including up to {self._lost.total_tokens:,} for lost responses)" if self._lost.total_tokens else ""
        return f"{self._used.total_tokens:,} tokens{lost}{cost}"

    def limit_error(self, usage: Usage) -> InputError:
        """The error for a request whose maximum usage does not fit."""
        used = self._used
        if self._max_tokens is not None and (used + usage).total_tokens > self._max_tokens:
            limit = f"max_total_tokens={self._max_tokens:,}"
            state = f"{used.total_tokens:,} tokens used, the next request may use {usage.total_tokens:,}"
        else:
            limit = f"max_cost_usd={self._max_cost:g}"
            state = f"${used.cost_usd:.4f} spent, the next request may cost ${usage.cost_usd:.4f}"
        return InputError(
            f"Budget exhausted: {limit}, {state}. Responses so far are saved; raise the limit and rerun the same command."
        )
