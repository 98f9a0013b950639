"""The fields that switch thinking on and off and bound it, under the names of other servers.

The model knows only on and off. Every word for an effort therefore means one of both. A budget is
kept by the worker, whatever the model does.
"""

from collections.abc import Mapping
from typing import Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from app.dialects.fields import Fields, JsonObject, RequestFields, TokenBudget, unsupported

T = TypeVar("T")

_NO_EFFORT = ("none", "minimal", "off", "disable", "disabled")
Effort = Literal[
    "none",
    "minimal",
    "off",
    "disable",
    "disabled",
    "auto",
    "default",
    "on",
    "enable",
    "enabled",
    "low",
    "medium",
    "high",
    "xhigh",
    "max",
]
_SWITCH = "enable_thinking"  # the template's variable, which is set by these fields alone
_BUDGET = "thinking_budget"  # a variable of some templates, which is a budget too
# Variables of a template that have fields of their own in a request.
_OWN_FIELDS = ("messages", "tools", "documents", "add_generation_prompt")


def thinks(effort: str | None) -> bool | None:
    """Returns whether this effort switches thinking on, or None if it leaves that open."""
    return None if effort in (None, "auto", "default") else effort not in _NO_EFFORT


class Thinking(Fields):
    """DeepSeek's and Anthropic's form."""

    type: Literal["enabled", "disabled", "adaptive", "auto"]
    budget_tokens: TokenBudget = None


class Reasoning(Fields):
    """OpenRouter's form. With `exclude` the model thinks, but its thoughts are not sent."""

    effort: Effort | None = None
    enabled: bool | None = None
    exclude: bool | None = None
    max_tokens: TokenBudget = None


class BudgetFields(RequestFields):
    """The budget of thoughts. Raises an error if it is given twice with different numbers.

    The names are Qwen's, vLLM's and llama.cpp's. -1 sets none.
    """

    thinking_budget: TokenBudget = None
    thinking_token_budget: TokenBudget = None
    thinking_budget_tokens: TokenBudget = None
    reasoning_budget_tokens: TokenBudget = None

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        budgets = self._budgets()
        first = next(iter(budgets), None)
        for field, budget in budgets.items():
            if first is not None and budget != budgets[first]:
                raise unsupported(field, f"it contradicts {first}")
        return self

    @property
    def thought_budget(self) -> int | None:
        """Returns the most tokens of all thoughts of an answer, or None if the request sets none.

        0 means that the model does not think, whatever switches thinking on.
        """
        return next(iter(self._budgets().values()), None)

    def _budgets(self) -> dict[str, int]:
        """Returns the fields that set a budget, with what they say."""
        budgets = {name: getattr(self, name) for name in BudgetFields.model_fields}
        return _given(budgets | self._nested_budgets())

    def _nested_budgets(self) -> dict[str, int | None]:
        """Returns the budgets inside other fields of the request, by their path."""
        return {}


class ThinkingFields(BudgetFields):
    """The switch in all of its forms. Raises an error if two of them contradict each other."""

    chat_template_kwargs: JsonObject | None = Field(
        default=None, description="Variables of the chat template; enable_thinking is the switch"
    )
    enable_thinking: bool | None = None
    think: bool | Effort | None = None
    thinking: Thinking | None = None
    reasoning: Reasoning | None = None
    reasoning_effort: Effort | None = None
    include_reasoning: bool | None = None

    @field_validator("chat_template_kwargs")
    @classmethod
    def _no_own_fields(cls, value: JsonObject | None) -> JsonObject | None:
        for name in _OWN_FIELDS:
            if name in (value or {}):
                raise ValueError(f"the variable {name!r} cannot be set here")
        return value

    @model_validator(mode="after")
    def _agree(self) -> "ThinkingFields":
        wishes = self._wishes()
        first = next(iter(wishes), None)
        for field, wish in wishes.items():
            if first is not None and wish != wishes[first]:
                raise unsupported(field, f"it contradicts {first}")
        return self

    @property
    def thinks(self) -> bool:
        """Returns whether thinking is on. A budget alone switches it on too."""
        budget = self.thought_budget
        return budget != 0 and next(iter(self._wishes().values()), budget is not None)

    @property
    def shows_thoughts(self) -> bool:
        excluded = self.reasoning is not None and self.reasoning.exclude
        return self.include_reasoning is not False and not excluded

    @property
    def template_options(self) -> JsonObject:
        """Returns the further variables of the chat template."""
        options = self.chat_template_kwargs or {}
        return {name: value for name, value in options.items() if name != _SWITCH}

    def _wishes(self) -> dict[str, bool]:
        """Returns the fields that switch thinking on or off, with what they say."""
        switch = (self.chat_template_kwargs or {}).get(_SWITCH)
        if not isinstance(switch, bool | None):
            raise unsupported("chat_template_kwargs", f"{_SWITCH} should be true or false")
        reasoning = self.reasoning or Reasoning()
        kind = None if self.thinking is None else self.thinking.type
        wishes = {
            "chat_template_kwargs": switch,
            "enable_thinking": self.enable_thinking,
            "think": thinks(self.think) if isinstance(self.think, str) else self.think,
            "thinking": None if kind in (None, "auto") else kind != "disabled",
            "reasoning": thinks(reasoning.effort)
            if reasoning.enabled is None
            else reasoning.enabled,
            "reasoning_effort": thinks(self.reasoning_effort),
        }
        return _given(wishes)

    def _nested_budgets(self) -> dict[str, int | None]:
        variable = (self.chat_template_kwargs or {}).get(_BUDGET)
        if variable is not None and (type(variable) is not int or not -1 <= variable < 2**31):
            raise unsupported("chat_template_kwargs", f"{_BUDGET} should be a number of tokens")
        return {
            "thinking": None if self.thinking is None else self.thinking.budget_tokens,
            "reasoning": None if self.reasoning is None else self.reasoning.max_tokens,
            "chat_template_kwargs": None if variable == -1 else variable,
        }


def _given(values: Mapping[str, T | None]) -> dict[str, T]:
    return {field: value for field, value in values.items() if value is not None}
